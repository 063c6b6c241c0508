"""What is installed where cloudrun runs: which distribution brings a module, its exact version and what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from cloudrun.core.errors import UsageError


def unit_markers(python: str, architecture: str) -> dict[str, str]:
    """The environment that requirement markers are evaluated for: CPython `python` on a Linux unit.

    The unit's patch release is not known before it boots; the client's own stands for it.
    """
    patch = sys.version_info.micro
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.{patch}",
        "os_name": "posix",
        "platform_machine": "aarch64" if architecture == "arm64" else architecture,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.{patch}",
        "python_version": python,
        "sys_platform": "linux",
    }


@dataclass(frozen=True)
class Pins:
    """Exact requirement lines for some distributions and all they need."""

    lines: tuple[str, ...]
    missing: tuple[str, ...]  # requirements that hold on the unit and are not installed here
    notes: tuple[str, ...]  # what differs from here, for people


class Installed:
    """The distributions on this interpreter's path, read once."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path = list(sys.path if path is None else path)
        self._by_name: dict[str, metadata.Distribution] = {}
        for distribution in metadata.distributions(path=self._path):
            if "Name" in distribution.metadata:  # a half-removed package has none
                self._by_name.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution)

    def providers(self, modules: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The canonical names of the distributions that bring each dotted module; none where nothing does.

        Several distributions may share a top-level name (`google`): then those that have the submodule count.
        """
        by_top: dict[str, list[str]] = {}
        wanted = {module.partition(".")[0] for module in modules}
        for name, distribution in self._by_name.items():
            for top in _top_level(distribution) & wanted:
                by_top.setdefault(top, []).append(name)
        return {module: self._narrowed(module, by_top.get(module.partition(".")[0], [])) for module in modules}

    def _narrowed(self, module: str, names: list[str]) -> tuple[str, ...]:
        parts = module.split(".")
        while len(names) > 1 and len(parts) > 1:
            base = "/".join(parts)
            having = [name for name in names if _has_file(self._by_name[name], (f"{base}/__init__.py", f"{base}.py"))]
            if having:
                return tuple(sorted(having))
            parts.pop()
        return tuple(sorted(names))

    def versions(self, names: Iterable[str]) -> tuple[str, ...]:
        """Exact lines for those of `names` that are installed."""
        found = {name: self._by_name[name].version for name in names if name in self._by_name}
        return tuple(f"{name}=={version}" for name, version in found.items())

    def pins(self, names: Iterable[str], markers: Mapping[str, str]) -> Pins:
        """Exact lines for `names` and, transitively, for what they need on a machine that `markers` describe.

        Raises UsageError for a distribution that a unit cannot install: one in a folder or file of this computer.
        """
        lines: dict[str, str] = {}
        missing: set[str] = set()
        notes: list[str] = []
        waiting: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset()) for name in names]
        done: set[tuple[str, frozenset[str]]] = set()
        while waiting:
            name, extras = item = waiting.pop()
            if item in done:
                continue
            done.add(item)
            distribution = self._by_name.get(name)
            if distribution is None:
                missing.add(name)
                continue
            lines[name], note = _pin(name, distribution)
            if note and note not in notes:
                notes.append(note)
            for needed in _needs(distribution, extras, markers):
                needed_name = canonicalize_name(needed.name)
                if needed_name in self._by_name:
                    waiting.append((needed_name, frozenset(needed.extras)))
                else:
                    needed.marker = None
                    missing.add(str(needed))
        return Pins(tuple(sorted(lines.values())), tuple(sorted(missing)), tuple(notes))


def _top_level(distribution: metadata.Distribution) -> set[str]:
    """The names that can be imported, from `top_level.txt` where there is one (it is short), else from RECORD."""
    listed = distribution.read_text("top_level.txt")
    if listed:
        return {line.strip().partition("/")[0] for line in listed.splitlines() if line.strip()}
    record = distribution.read_text("RECORD") or ""
    tops: set[str] = set()
    for row in record.splitlines():
        first, slash, _ = row.partition("/")
        if slash:
            tops.add(first)
        else:  # a module without a folder: name.py or name.cpython-311-x86_64-linux-gnu.so, then hash and size
            tops.add(first.partition(",")[0].partition(".")[0])
    return tops


def _has_file(distribution: metadata.Distribution, paths: tuple[str, ...]) -> bool:
    record = distribution.read_text("RECORD") or ""
    return any(row.startswith(f"{path},") for row in record.splitlines() for path in paths)


def _needs(
    distribution: metadata.Distribution, extras: frozenset[str], markers: Mapping[str, str]
) -> Iterable[Requirement]:
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
            holds = requirement.marker is None or any(
                requirement.marker.evaluate({**markers, "extra": extra}) for extra in (extras or {""})
            )
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue  # metadata older than the standard; pip skips it too
        if holds:
            yield requirement


def _pin(name: str, distribution: metadata.Distribution) -> tuple[str, str]:
    """One exact line, and a note where it is not exactly what is installed here."""
    text = distribution.read_text("direct_url.json")
    installer = (distribution.read_text("INSTALLER") or "").strip()
    if text and installer != "conda":  # conda records the folder of its build machine
        origin = json.loads(text)
        url = str(origin.get("url", ""))
        if "vcs_info" in origin:
            vcs = origin["vcs_info"]
            return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}", ""
        if url.startswith("file:"):
            kind = "in development mode" if origin.get("dir_info", {}).get("editable") else "from this computer"
            raise UsageError(
                f"{name} is installed {kind} ({url}), where a unit cannot fetch it",
                next_step=f"put its modules into the project, or list what the script needs without {name} in a "
                "`# /// script` block or a requirements.txt",
            )
        return f"{name} @ {url}", ""
    try:
        version = Version(distribution.version)
    except (InvalidVersion, TypeError) as error:
        raise UsageError(
            f"{name} is installed here with the version {distribution.version!r}, which no index can serve",
            next_step=f"pip install --force-reinstall {name}",
        ) from error
    if version.local:  # +cpu, +cu124: builds from another index than the default one
        return f"{name}=={version.public}", f"{name} {version.public} without its +{version.local}"
    return f"{name}=={version}", ""
