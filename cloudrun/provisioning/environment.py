"""Which Python environment a script gets on a unit, fully pinned before anything is launched.

Where the requirements come from, the first of:

1. the script's `# /// script` block (PEP 723);
2. a file at the project root: `uv.lock`, `pylock.toml`, `requirements.lock`, `requirements.txt`, in this order;
3. the exact versions installed where cloudrun runs of what the script and its local modules import, plus what those
   need on the unit, so that a model loads at home.

joblib is always added, since models come home with it; nothing else is. What 1 and 2 leave open, uv decides, keeping to
the versions installed here of the packages that a model's passport names. A resolution is kept in the cache by the
digest of its inputs and not made again until one changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from cloudrun.core.errors import UsageError
from cloudrun.core.records import Environment
from cloudrun.core.rundir import read_json, write_json
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.plan.imports import ImportScan, scan_imports, script_block
from cloudrun.provisioning.installed import Installed, client_python, site_stamp, unit_markers
from cloudrun.provisioning.uv import exact_lines, resolve, run_uv

ARCHITECTURES = ("x86_64", "arm64")
ROOT_FILES = ("uv.lock", "pylock.toml", "requirements.lock", "requirements.txt")
ALWAYS = "joblib"
_CACHE_FORM = 1  # counts up when the same inputs are to give another environment
_PASSPORT_PACKAGES = ("joblib", "numpy", "scikit-learn", "scipy")
_PYTHONS = ("3.13", "3.12", "3.11", "3.10", "3.14")  # what to try where the client's own is not allowed, best first
_INCLUDE = re.compile(rb"(?m)^\s*(?:-r|-c|--requirement|--constraint)[ =]\s*(\S+)")


@dataclass(frozen=True)
class _Plan:
    """Requirements not resolved yet. `inputs` is all that the answer depends on, beside Python and architecture."""

    source: str
    requires_python: str | None
    inputs: Sequence[str]
    file: Path | None  # a lock, a requirements file or the script with its block; None: the imports
    scan: ImportScan | None = None


def environment_for(
    script: Path, root: Path, *, architecture: str, python: str | None = None, cache_dir: Path
) -> Environment:
    """The environment for `script` of the project at `root`, on a unit of `architecture` ("x86_64" or "arm64").

    `python` is a minor version as in "3.12"; None is the client's own, or the newest that the script's requirements
    allow. Raises UsageError where the script is not Python, imports what nobody has, or its requirements do not
    resolve; ProvisionError where an index was needed and could not be reached.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"no environments are made for {architecture}; there are {' and '.join(ARCHITECTURES)}")
    script, root = script.resolve(), root.resolve()
    plan = _plan(script, root)
    minor = choose_python(python, plan.requires_python, plan.source)
    key = hashlib.sha256(json.dumps([_CACHE_FORM, minor, architecture, plan.source, *plan.inputs]).encode()).hexdigest()
    kept = cache_dir / "environments" / f"{key}.json"
    known = _cached(kept, minor, architecture)
    if known is not None:
        return known
    installed = Installed()
    source = plan.source
    if plan.file is not None:
        lines = _from_file(plan.file, minor, architecture, root, source, installed)
    else:
        assert plan.scan is not None  # noqa: S101  # mypy: a plan has one or the other
        lines, notes = _from_imports(plan.scan, minor, architecture, root, source, installed)
        source += f" ({'; '.join(notes)})" if notes else ""
    environment = Environment(minor, architecture, lines, source, environment_fingerprint(minor, architecture, lines))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"requirements": lines, "source": source})
    return environment


def choose_python(given: str | None, requires: str | None, source: str) -> str:
    """The minor version for a unit: `given`, else the client's, else the newest that `requires` allows.

    Raises UsageError where that is none, or `given` is not one.
    """
    if given is not None and not re.fullmatch(r"3\.\d{1,2}", given):
        raise UsageError(f"{given!r} is not a minor version of Python", next_step="write it as in 3.12")
    try:
        allowed = SpecifierSet(requires or "")
    except InvalidSpecifier as error:
        raise UsageError(f"the requires-python of {source} is not a version range: {requires!r}") from error
    for minor in (given,) if given else (client_python(), *_PYTHONS):
        # the unit has the newest patch release, whichever that is; `==3.11.4` is met by that very one
        if any(allowed.contains(f"{minor}.{patch}") for patch in (99, *range(30))):
            return minor
    wanted = f"Python {given}" if given else "any Python that a unit can have"
    raise UsageError(f"{source} asks for Python {requires}, which leaves out {wanted}")


def _plan(script: Path, root: Path) -> _Plan:
    try:
        relative = script.relative_to(root).as_posix()
    except ValueError as error:
        raise UsageError(f"{script} is not below the project root {root}") from error
    source = _read(root, relative)
    if source is None:
        raise UsageError(f"{relative} does not exist or is not a file")
    block = script_block(source, relative)
    if block is not None:
        return _Plan(
            f"the script block of {relative}", block.requires_python, [source.decode(errors="replace")], script
        )
    for name in ROOT_FILES:
        path = root / name
        if path.is_file():
            contents = _contents(path)
            return _Plan(name, _locked_python(path), [*map(str, contents), *contents.values()], path)
    scan = scan_imports(relative, lambda path: _read(root, path))
    modules = [f"{module.name} {module.guarded}" for module in scan.third_party]
    return _Plan(f"the imports of {relative}", None, [*modules, sys.version, site_stamp()], None, scan)


def _read(root: Path, path: str) -> bytes | None:
    try:
        return (root / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} could not be read: {error}") from error


def _contents(path: Path) -> Mapping[Path, str]:
    """A requirements file and all that it includes, with their text."""
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found or not current.is_file():
            continue  # uv says it better where one is missing
        content = current.read_bytes()
        found[current] = content.decode(errors="replace")
        if current.suffix != ".toml":
            waiting += [current.parent / name.decode(errors="replace") for name in _INCLUDE.findall(content)]
    return found


def _locked_python(path: Path) -> str | None:
    if path.suffix == ".txt" or path.name == "requirements.lock":
        return None
    try:
        requires = tomllib.loads(path.read_text(encoding="utf-8")).get("requires-python")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not TOML: {error}", next_step=f"make {path.name} again") from error
    return requires if isinstance(requires, str) else None


def _from_file(
    path: Path, python: str, architecture: str, root: Path, source: str, installed: Installed
) -> tuple[str, ...]:
    preferences = [
        f"{name}=={version}"
        for name in _PASSPORT_PACKAGES
        if (version := installed.version(name)) and "+" not in version
    ]

    def resolved(sources: Sequence[Path], extra: Sequence[str]) -> tuple[str, ...]:
        return resolve(
            sources,
            extra,
            python=python,
            architecture=architecture,
            root=root,
            preferences=preferences,
            named=source,
        )

    if path.name == "uv.lock":
        exported = run_uv(
            [
                *("export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-python-downloads"),
                *("--format", "requirements.txt", "--no-hashes", "--no-header", "--no-annotate"),
            ],
            root=root,
            named=source,
        )
        return resolved([], [*exact_lines(exported), ALWAYS])
    if path.name == "pylock.toml":  # uv takes nothing beside one
        locked = run_uv(
            ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python, str(path)],
            root=root,
            named=source,
        )
        return resolved([], [*exact_lines(locked), ALWAYS])
    return resolved([path], [ALWAYS])


def _from_imports(
    scan: ImportScan, python: str, architecture: str, root: Path, source: str, installed: Installed
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    providers = installed.providers([module.name for module in scan.third_party])
    for module in scan.third_party:
        if not providers[module.name] and not module.guarded:
            top = module.name.partition(".")[0]
            raise UsageError(
                f"{module.path}:{module.line} imports {top}, which is neither installed here nor part of the project",
                next_step=f"pip install {top}, or list what the script needs in a `# /// script` block or a "
                "requirements.txt",
            )
    names = {name for found in providers.values() for name in found} | {ALWAYS}
    pins = installed.pins(sorted(names), unit_markers(python, architecture))
    if not pins.missing and python == client_python():
        return pins.lines, pins.notes
    resolved = resolve(
        [], [*pins.lines, *pins.missing], python=python, architecture=architecture, root=root, named=source
    )
    return resolved, pins.notes


def _cached(path: Path, python: str, architecture: str) -> Environment | None:
    try:
        kept: Any = read_json(path)
        lines, source = tuple(map(str, kept["requirements"])), str(kept["source"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none yet, or unreadable: it is made again
    return Environment(python, architecture, lines, source, environment_fingerprint(python, architecture, lines))
