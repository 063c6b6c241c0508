"""What a function needs on a unit: the modules that it names or imports, and what those of the project import."""

from __future__ import annotations

import dis
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from cloudrun.plan.imports import ImportScan, scan_imports

MAIN = "__main__"
NEVER = frozenset({"__mp_main__", "cloudrun", "cloudpickle"})  # what no unit has, or has by itself
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Needs:
    third_party: tuple[str, ...]  # dotted names of modules
    local_files: tuple[str, ...]  # of the project, relative to its root
    search_path: tuple[str, ...]  # folders below the root that modules are found in


def needs(named: Iterable[str], root: Path, scans: dict[Path, ImportScan]) -> Needs:
    """Of the modules that are `named`, and of what the project's among them import.

    A function of a script (its module is `__main__`) needs what the script imports: all functions of it have one
    environment. `scans` are those of files that were read before. Raises UsageError where one is not Python.
    """
    third_party: set[str] = set()
    local_files: set[str] = set()
    folders = dict.fromkeys(_below(Path(entry or "."), root) for entry in sys.path)
    for name in sorted(named):
        top = name.partition(".")[0]
        if (top in sys.stdlib_module_names and name != MAIN) or top in NEVER:
            continue
        file = file_of(name)
        if name != MAIN and (file is None or is_installed(file)):
            if _is_importable(name):
                third_party.add(name)
        elif file is not None and (name == MAIN or file.is_relative_to(root)):
            base = root if file.is_relative_to(root) else file.parent
            if file not in scans:
                scans[file] = scan_imports(file.relative_to(base).as_posix(), partial(_read, base))
            scan = scans[file]
            third_party.update(module.name for module in scan.third_party)
            if name != MAIN:
                local_files.update(scan.local_files)
                folders[_below(_import_folder(name, file), root)] = None
            if base == root:
                folders.update(dict.fromkeys(scan.search_path))
    third_party = {name for name in third_party if name.partition(".")[0] not in NEVER}
    search_path = tuple(folder for folder in folders if folder is not None)
    return Needs(tuple(sorted(third_party)), tuple(sorted(local_files)), search_path)


def imported_by(function: Any) -> set[str]:
    """What the code of a function imports when it is called, and that of functions of the same module that it calls."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop()
        if isinstance(one, partial):
            waiting.append(one.func)
        if isinstance(one, MethodType):
            one = one.__func__
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        codes = list(_codes(one.__code__))
        found.update(name for code in codes for name in _imports(code))
        reached = [one.__globals__.get(name) for code in codes for name in code.co_names]
        reached += [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
        waiting += [each for each in reached if getattr(each, "__module__", None) == one.__module__]
    return found


def file_of(name: str) -> Path | None:
    """The source of a module that is loaded, or could be; None where that is no file."""
    try:
        module = sys.modules.get(name)
        found = getattr(module, "__file__", None) if module else getattr(importlib.util.find_spec(name), "origin", None)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(found).resolve() if isinstance(found, str) and found.endswith(".py") else None


def is_installed(file: Path) -> bool:
    prefixes = {Path(prefix).resolve() / "lib" for prefix in (sys.base_prefix, sys.prefix)}
    return bool(_INSTALLED.intersection(file.parts)) or any(file.is_relative_to(prefix) for prefix in prefixes)


def _is_importable(name: str) -> bool:
    """False for what a class merely says of itself, and for a package without `__init__`, which is nobody's: what is in
    it counts by itself."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _imports(code: CodeType) -> Iterable[str]:
    return (str(step.argval) for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME" and step.argval)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _import_folder(name: str, file: Path) -> Path:
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth]


def _below(folder: Path, root: Path) -> str | None:
    """Relative to the root ("" for itself); None where it is not there, or holds what is installed."""
    path = folder.resolve()
    if not path.is_relative_to(root) or not path.is_dir() or is_installed(path / "x"):
        return None
    place = path.relative_to(root).as_posix()
    return "" if place == "." else place


def _read(base: Path, path: str) -> bytes | None:
    file = base / path
    return file.read_bytes() if file.is_file() else None
