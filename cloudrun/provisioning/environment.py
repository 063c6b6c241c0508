"""Which Python environment a script gets on a unit, fully pinned before anything is launched.

Where the requirements come from, the first of:

1. the script's `# /// script` block (PEP 723);
2. a file at the project root: `uv.lock`, `pylock.toml`, `requirements.lock`, `requirements.txt`, in this order;
3. the exact versions installed where cloudrun runs of what the script and its local modules import, plus what those
   need on the unit, so that a model loads at home.

joblib is always added, since models come home with it; nothing else is. What 1 and 2 leave open, uv decides, keeping to
the versions installed here of the packages that a model's passport names. A resolution is kept in the cache by the
digest of its inputs, and made again when one of them changes or the cache is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.core.records import Environment, System, Wheel
from cloudrun.core.rundir import read_json, write_json
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.plan.imports import ImportScan, scan_imports, script_block
from cloudrun.provisioning import locks
from cloudrun.provisioning.indexes import VARIABLE, Logins, cleaned, has_secret, logins_for, logins_in, netrc_text
from cloudrun.provisioning.uv import resolve
from cloudrun.provisioning.wheels import local_wheels, wheels_of

# `provisioning.installed` and `packaging` are imported where they are used: a known environment saves that 0.1 s.

ARCHITECTURES = ("x86_64", "arm64")
ALWAYS = "joblib"
_CACHE_FORM = 2  # counts up when the same inputs are to give another environment
_NO_SYSTEM = System()
_PASSPORT_PACKAGES = ("joblib", "numpy", "scikit-learn", "scipy")
_PYTHONS = ("3.13", "3.12", "3.11", "3.10", "3.14")  # tried in turn where the client's own is not allowed


@dataclass(frozen=True)
class _Plan:
    """Requirements not resolved yet. `inputs` is what the answer depends on, beside Python and architecture."""

    source: str
    requires_python: str | None
    inputs: Sequence[str]
    origin: Path | ImportScan  # the script with its block, a file at the root, or the imports
    text: str = ""  # of all that was read, where credentials may be in it


def environment_for(
    script: Path,
    root: Path,
    *,
    architecture: str,
    python: str | None = None,
    cache_dir: Path,
    system: System = _NO_SYSTEM,
    index_url: str | None = None,
) -> Environment:
    """The environment for `script` of the project at `root`, on a unit of `architecture` ("x86_64" or "arm64").

    `python` is a minor version as in "3.12"; None is the client's own where the requirements allow it, else another
    that they allow. `system` is what the unit is to have beside it, `index_url` the package index in place of PyPI.
    Raises UsageError where the script is not Python, imports what nobody has, or its requirements do not resolve;
    ProvisionError where an index was needed and could not be reached.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"no environments are made for {architecture}; there are {' and '.join(ARCHITECTURES)}")
    script, root = script.resolve(), root.resolve()
    plan = _plan(script, root)
    minor = choose_python(python, plan.requires_python, plan.source)
    indexes = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("UV_"))
    facts = [_CACHE_FORM, minor, architecture, plan.source, index_url, *plan.inputs, *indexes]
    kept = cache_dir / "environments" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
    inline = logins_in(plan.text)
    known = _cached(kept)
    if known is not None:
        return _environment(minor, architecture, *known, system, index_url, inline)
    source = plan.source
    if isinstance(plan.origin, Path):
        lines = _from_file(plan.origin, minor, architecture, root, source, index_url)
    else:
        lines, notes = _from_imports(plan.origin, minor, architecture, root, source, index_url)
        source += f" ({'; '.join(notes)})" if notes else ""
    lines, wheels = wheels_of(cleaned(lines), root)
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(kept, {"requirements": lines, "source": source, "wheels": [[each.path, each.sha256] for each in wheels]})
    return _environment(minor, architecture, lines, source, wheels, system, index_url, inline)


def _environment(
    python: str,
    architecture: str,
    requirements: tuple[str, ...],
    source: str,
    wheels: tuple[Wheel, ...],
    system: System,
    index_url: str | None,
    inline: Logins,
) -> Environment:
    fingerprint = environment_fingerprint(python, architecture, requirements, system)
    logins = netrc_text(logins_for(requirements, index_url, inline))
    return Environment(python, architecture, requirements, source, fingerprint, system, wheels, logins)


def client_python() -> str:
    """The minor version that cloudrun runs on, as in "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def choose_python(given: str | None, requires: str | None, source: str) -> str:
    """The minor version for a unit: `given`, else the client's, else another that `requires` allows.

    Raises UsageError where that is none, or `given` is not a minor version.
    """
    if given is not None and not re.fullmatch(r"3\.\d{1,2}", given):
        raise UsageError(f"{given!r} is not a minor version of Python", next_step="write it as in 3.12")
    if requires is None:
        return given or client_python()
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        allowed = SpecifierSet(requires)
    except InvalidSpecifier as error:
        raise UsageError(f"the requires-python of {source} is not a version range: {requires!r}") from error
    for minor in (given,) if given else (client_python(), *_PYTHONS):
        # which patch release the unit will have is not known: any will do
        if any(allowed.contains(f"{minor}.{patch}") for patch in range(100)):
            return minor
    wanted = f"Python {given}" if given else "any Python that a unit can have"
    raise UsageError(f"{source} asks for Python {requires}, which leaves out {wanted}")


def _plan(script: Path, root: Path) -> _Plan:
    try:
        relative = script.relative_to(root).as_posix()
    except ValueError as error:
        raise UsageError(f"{script} is not below the project root {root}") from error
    content = _read(root, relative)
    if content is None:
        raise UsageError(f"{relative} does not exist or is not a file")
    scan = scan_imports(relative, lambda path: _read(root, path))  # also where a block or file decides: is it Python?
    block = script_block(content, relative)
    if block is not None:
        if has_secret(block.content):
            raise UsageError(
                f"the script block of {relative} has an address with credentials, which would be kept with the script",
                next_step="write the address without them, and who you are to its host in ~/.netrc, or as user:password"
                f" of --index-url's host in {VARIABLE}",
            )
        text = content.decode(errors="replace")
        inputs = [text, *_wheel_facts(text, script.parent)]
        return _Plan(f"the script block of {relative}", block.requires_python, inputs, script, text)
    file = locks.root_file(root)
    if file is not None:
        contents = locks.contents(file)
        inputs = [part for path, text in contents.items() for part in (str(path), text)]
        inputs += [fact for path, text in contents.items() for fact in _wheel_facts(text, path.parent)]
        return _Plan(file.name, locks.required_python(file), inputs, file, "\n".join(contents.values()))
    modules = [f"{module.name} {module.guarded}" for module in scan.third_party]
    return _Plan(f"the imports of {relative}", None, [*modules, sys.version, _site_stamp()], scan)


def _wheel_facts(text: str, folder: Path) -> list[str]:
    return [f"{wheel.path} {wheel.sha256}" for wheel in local_wheels(text, folder)]


def _read(root: Path, path: str) -> bytes | None:
    try:
        return (root / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} could not be read: {error}") from error


def _site_stamp() -> str:
    """A text that changes when something is installed or removed: each folder of packages with its time of change."""
    folders = [Path(entry) for entry in sys.path if entry]
    holding = [folder for folder in folders if any(folder.glob("*.dist-info"))]
    return "\n".join(f"{folder} {folder.stat().st_mtime_ns}" for folder in holding)


def _from_file(
    path: Path, python: str, architecture: str, root: Path, source: str, index_url: str | None
) -> tuple[str, ...]:
    from cloudrun.provisioning.installed import Installed

    wanted = locks.wanted(path, root) if path.name in locks.ROOT_FILES else locks.Wanted(files=(path,))
    resolved = resolve(
        wanted.files,
        [*wanted.index_lines, *wanted.lines, ALWAYS],
        python=python,
        architecture=architecture,
        root=root,
        preferences=Installed().versions(_PASSPORT_PACKAGES),
        named=source,
        index_url=index_url,
    )
    others = [line for line in wanted.index_lines if index_url is None or not line.startswith(("-i", "--index-url"))]
    return (*_index_line(index_url), *others, *resolved)


def _index_line(index_url: str | None) -> tuple[str, ...]:
    return () if index_url is None else (f"--index-url {index_url}",)


def _from_imports(
    scan: ImportScan, python: str, architecture: str, root: Path, source: str, index_url: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from cloudrun.provisioning.installed import Installed, unit_markers

    installed = Installed()
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
    pins = installed.pins(names, unit_markers(python, architecture))
    if not pins.missing and python == client_python():
        return (*_index_line(index_url), *pins.lines), pins.notes
    lines = [*pins.lines, *pins.missing]
    resolved = resolve(
        [], lines, python=python, architecture=architecture, root=root, named=source, index_url=index_url
    )
    return (*_index_line(index_url), *resolved), pins.notes


def _cached(path: Path) -> tuple[tuple[str, ...], str, tuple[Wheel, ...]] | None:
    """Requirements, where they came from, and wheels of this computer."""
    try:
        kept: Any = read_json(path)
        wheels = tuple(Wheel(str(place), str(digest)) for place, digest in kept["wheels"])
        return tuple(map(str, kept["requirements"])), str(kept["source"]), wheels
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none yet, or unreadable: it is made again
