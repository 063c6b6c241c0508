"""A function on its way to a unit and back: what travels with it, the environment it needs, and what came of it.

It is pickled by cloudpickle: a function of `__main__`, of a notebook, a closure or a lambda by value, one of a module
by that module's name, which has to be in the project or installed. A module that is neither travels by value too.
"""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import os
import pickletools
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from cloudrun import prepared
from cloudrun.core.errors import JobFailed, LedgerError, UsageError
from cloudrun.core.events import Observer
from cloudrun.core.ids import new_id
from cloudrun.core.records import Artifact, FileEntry, Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.fingerprint import canonical_json, code_digest
from cloudrun.plan.imports import ImportScan, scan_imports
from cloudrun.prepared import Job, Prepared
from cloudrun.submit import with_data
from cloudrun.wiring import Cloud

CALLS = "calls"  # the folder below `.cloudrun` for what travels
SCANNED = 200_000  # instructions of a pickle that are looked at for modules' names: the function's come first
NEVER_NEEDED = frozenset({"__main__", "__mp_main__", "cloudrun", "cloudpickle"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class RemoteTraceback(Exception):
    """The cause of an exception that a function raised on a unit: the traceback as it was there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Functions:
    """Prepares calls for one pool. The project's files are those of the first call."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        cloud: Cloud,
        image: Image,
        observe: Observer,
        pool_id: str,
        finish: Callable[[Prepared], Prepared] = lambda plan: plan,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._cloud = cloud
        self._image = image
        self._observe = observe
        self._finish = finish  # what the pool adds to every plan
        self._root = ledger.project.resolve()
        self._folder = ledger.home.resolve() / CALLS / pool_id
        self._kinds: dict[Needs, Prepared] = {}
        self._scans: dict[Path, ImportScan] = {}

    def prepare(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], name: str
    ) -> Prepared:
        """What a unit is to do. Raises UsageError for what cannot be pickled, or not be run there."""
        content = pickled(function, arguments, keywords, self._root)
        folder = self._folder / new_id("f")
        kind = self._kind(needs(content, function, self._root, self._scans))
        folder.mkdir(parents=True)
        (folder / "call").write_bytes(content)
        place = folder.relative_to(self._root).as_posix()
        entry = FileEntry(f"{place}/call", len(content), hashlib.sha256(content).hexdigest(), 0o644)
        goods = replace(kind.shipment, entries=(*kind.shipment.entries, entry))
        start = Path(goods.root, goods.cwd)
        job = replace(kind.job, name=name, arguments=(_relative(folder, start),))
        return replace(kind, job=job, shipment=goods)

    def forget(self, plan: Prepared) -> None:
        """What travelled is needed no more."""
        shutil.rmtree(Path(plan.shipment.root, plan.shipment.entries[-1].path).parent, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kind(self, wanted: Needs) -> Prepared:
        """A plan without a call, for all functions that need the same."""
        if wanted not in self._kinds:
            from cloudrun.provisioning.environment import client_python, environment_for

            first = next(iter(self._kinds.values()), None)
            self._folder.mkdir(parents=True, exist_ok=True)
            script = self._folder / f"called{len(self._kinds) or ''}.py"
            script.write_text(wanted.script(), encoding="utf-8")
            environment = environment_for(
                script,
                self._root,
                architecture=self._image.architecture,
                python=client_python(),  # byte code of another minor version is not understood
                cache_dir=self._ledger.home / "cache",
            )
            local = {path: (self._root / path).read_bytes() for path in wanted.local_files}
            here = Path.cwd().resolve()
            job = Job(script, cwd=here if here.is_relative_to(self._root) else self._root)
            if first is None:
                goods = prepared.inspect(job, self._settings, self._ledger, self._observe, root=self._root)
                plan = Prepared(job, goods, environment, self._settings, "")
                first = self._finish(with_data(plan, self._cloud, self._observe))
            path = script.relative_to(self._root).as_posix()
            content = script.read_bytes()
            own = FileEntry(path, len(content), hashlib.sha256(content).hexdigest(), 0o644)
            entries = [entry for entry in first.shipment.entries if entry.path != first.shipment.script]
            self._kinds[wanted] = replace(
                first,
                job=job,
                shipment=replace(first.shipment, script=path, entries=(*entries, own)),
                environment=environment,
                code_digest=code_digest(local),
                search_path=wanted.search_path,
                third_party=wanted.third_party,
            )
        return self._kinds[wanted]


def call_key(key: Any, function: Callable[..., Any], environment: str) -> str:
    """64 hexadecimal characters: the caller's key, the function's name and the environment, and nothing else."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    lines = ["cloudrun call 1", f"key {canonical_json(key, 'key')}", f"function {name}", f"environment {environment}"]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def outcome_file(run: Run) -> Artifact | None:
    """What the function gave back, still pickled; None where it never got so far."""
    found = [each for each in run.artifacts if each.path.startswith(f".cloudrun/{CALLS}/")]
    return next((each for each in found if each.path.endswith("/outcome")), None)


def outcome(run: Run) -> Any:
    """What the function returned; raises what it raised, with the unit's traceback as its cause.

    The digest is checked before anything is unpickled. Raises JobFailed where it never got so far, LedgerError where
    what it returned cannot be unpickled here.
    """
    artifact = outcome_file(run)
    if artifact is None:
        raise JobFailed(
            f"{run.name} did not come to its end: {run.detail or run.state}",
            run=run,
            next_step=f"cloudrun show {run.run_id} --log",
        )
    import cloudpickle

    with run.store.open(artifact.sha256) as file:
        try:
            how, value, text = cloudpickle.load(file)
        except Exception as error:  # a pickle runs code of its own, which may raise anything
            raise LedgerError(
                f"what {run.name} gave back cannot be unpickled here: {type(error).__name__}: {error}",
                next_step=f"cloudrun show {run.run_id}",
            ) from error
    if how == "returned":
        return value
    value.__cause__ = RemoteTraceback(text)
    raise value


def pickled(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], root: Path) -> bytes:
    """Raises UsageError where that cannot be."""
    import cloudpickle

    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = _file_of(module.__name__) if module else None
    if module and file and not _is_installed(file) and not file.is_relative_to(root) and module.__name__ != "__main__":
        cloudpickle.register_pickle_by_value(sys.modules.get(module.__name__.partition(".")[0], module))
    try:
        return bytes(cloudpickle.dumps((function, arguments, dict(keywords))))
    except Exception as error:  # a class may raise anything here
        raise UsageError(
            f"{getattr(function, '__name__', function)} and what it is called with cannot be pickled: {error}",
            next_step="open files, locks and connections inside the function, not outside",
        ) from error


def chunks_of(items: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk


def each(fn: Callable[..., Any]) -> Callable[[list[tuple[Any, ...]]], list[Any]]:
    """As a closure, because that travels by value: there is no cloudrun on a unit."""

    def call_each(chunk: list[tuple[Any, ...]]) -> list[Any]:
        return [fn(*items) for items in chunk]

    call_each.__module__ = getattr(fn, "__module__", None) or "__main__"
    call_each.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call_each


# -- what a function needs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    third_party: tuple[str, ...]  # dotted names of modules
    local_files: tuple[str, ...]  # of the project, relative to its root
    search_path: tuple[str, ...]  # folders below the root that modules are found in

    def script(self) -> str:
        """The program for the unit. What it names in the end is how the environment is found, as for any script."""
        source = Path(__file__).with_name("called.py").read_text(encoding="utf-8")
        lines = [f"    import {name}" for name in self.third_party]
        return "\n".join([source, "", "def needed_by_the_function() -> None:", *lines, "    return", ""])


def needs(
    content: bytes, function: Callable[..., Any], root: Path, scans: dict[Path, ImportScan] | None = None
) -> Needs:
    """Of a pickled call: the modules that it names and that its code imports, and what those in the project import.

    For a function of a script that is what the script imports: all functions of it have one environment. `scans` are
    those of files that were read before.
    """
    scans = {} if scans is None else scans
    third_party: set[str] = set()
    local_files: set[str] = set()
    folders = dict.fromkeys(_below(Path(entry or "."), root) for entry in sys.path)
    named = {*_named_in(content), *_imported_by(function)}
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if getattr(function, "__module__", None) == "__main__" and main:
        named.add("__main__")
    for name in sorted(named):
        file = Path(main).resolve() if name == "__main__" and main else _file_of(name)
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or (top in NEVER_NEEDED and name != "__main__"):
            continue
        if name != "__main__" and (file is None or _is_installed(file)):
            if _has_file(name):
                third_party.add(name)
        elif file is not None and not _is_installed(file) and (name == "__main__" or file.is_relative_to(root)):
            base = root if file.is_relative_to(root) else file.parent
            if file not in scans:
                scans[file] = scan_imports(file.relative_to(base).as_posix(), partial(_read, base))
            scan = scans[file]
            third_party.update(module.name for module in scan.third_party)
            if name != "__main__":
                local_files.update(scan.local_files)
                folders[_below(_import_folder(name, file), root)] = None
            if base == root:
                folders.update(dict.fromkeys(scan.search_path))
    third_party = {name for name in third_party if name.partition(".")[0] not in NEVER_NEEDED}
    search_path = tuple(folder for folder in folders if folder is not None)
    return Needs(tuple(sorted(third_party)), tuple(sorted(local_files)), search_path)


def _named_in(content: bytes) -> Iterator[str]:
    """Names of modules that are loaded here and that a pickle speaks of."""
    for _, argument, _ in islice(pickletools.genops(content), SCANNED):
        if isinstance(argument, str) and argument in sys.modules and _DOTTED.fullmatch(argument):
            yield argument


def _imported_by(function: Any) -> set[str]:
    """What the code of a function imports when it is called, and that of functions of the same module that it calls."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        one = waiting.pop()
        one = getattr(one, "__func__", one)
        if isinstance(one, partial):
            waiting.append(one.func)
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        codes = list(_codes(one.__code__))
        found.update(name for code in codes for name in _imports(code))
        reached = [one.__globals__.get(name) for code in codes for name in code.co_names]
        reached += [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
        waiting += [each for each in reached if getattr(each, "__module__", None) == one.__module__]
    return found


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


def _file_of(name: str) -> Path | None:
    """Where a module comes from; None where that is no file."""
    try:
        module = sys.modules.get(name)
        origin = (
            getattr(module, "__file__", None) if module else getattr(importlib.util.find_spec(name), "origin", None)
        )
    except (ImportError, ValueError):
        return None
    return Path(origin).resolve() if origin and Path(origin).suffix == ".py" else None


def _has_file(name: str) -> bool:
    """False for a package without `__init__`, which is nobody's: what is in it counts by itself."""
    return name not in sys.modules or getattr(sys.modules[name], "__file__", None) is not None


def _is_installed(file: Path) -> bool:
    prefixes = {Path(prefix).resolve() / "lib" for prefix in (sys.base_prefix, sys.prefix)}
    return bool(_INSTALLED.intersection(file.parts)) or any(file.is_relative_to(prefix) for prefix in prefixes)


def _import_folder(name: str, file: Path) -> Path:
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth]


def _below(folder: Path, root: Path) -> str | None:
    """Relative to the root ("" for itself); None where it is not there, or holds what is installed."""
    path = folder.resolve()
    if not path.is_relative_to(root) or not path.is_dir() or _is_installed(path / "x"):
        return None
    place = path.relative_to(root).as_posix()
    return "" if place == "." else place


def _read(base: Path, path: str) -> bytes | None:
    file = base / path
    return file.read_bytes() if file.is_file() else None


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()
