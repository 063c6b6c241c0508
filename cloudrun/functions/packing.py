"""Functions on their way to a unit: what travels with them, the environment they get, and what came of them.

What travels is in `.cloudrun/calls/POOL` until it is needed no more: each function once, however often it is called,
its calls, `called.py`, which makes them, and the pickler.
"""

from __future__ import annotations

import hashlib
import linecache
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import relpath
from typing import Any, cast

import cloudpickle

from cloudrun.core.errors import JobFailed, LedgerError
from cloudrun.core.events import Observer
from cloudrun.core.ids import new_id
from cloudrun.core.records import Artifact, Environment, FileEntry, Image
from cloudrun.core.settings import Settings
from cloudrun.functions.needs import Needs, imported_by, needs
from cloudrun.functions.pickling import pickled
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.fingerprint import canonical_json, code_digest
from cloudrun.plan.imports import ImportScan
from cloudrun.runs import prepared
from cloudrun.runs.prepared import Job, Prepared

_BARE_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+), in .*(?!\n    )$', re.MULTILINE)
CALLS = "calls"  # the folder below `.cloudrun` for what travels
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # of one call


@dataclass(frozen=True)
class Function:
    """One that was pickled. `modules`: those that it speaks of."""

    name: str
    full_name: str
    entry: FileEntry
    modules: frozenset[str]


@dataclass(frozen=True)
class Parcel:
    """Calls of one function that are one run. `kind`: its plan without them, shared by all that need the same."""

    name: str
    kind: Prepared
    function: FileEntry
    calls: FileEntry

    @property
    def file(self) -> Path:
        return self.kind.shipment.root / self.calls.path

    def plan(self) -> Prepared:
        goods = self.kind.shipment
        words = [relpath(each.path, goods.cwd) for each in (self.function, self.calls)]
        return replace(
            self.kind,
            job=replace(self.kind.job, name=self.name, arguments=(*words, cloudpickle.__version__)),
            shipment=replace(goods, entries=(*goods.entries, self.function, self.calls)),
        )


class Functions:
    """Packs calls for one pool. The project's files are as they are at the first one."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        image: Image,
        observe: Observer,
        pool_id: str,
        finish: Callable[[Prepared], Prepared],
    ) -> None:
        """`finish` finds a plan's data, and adds what is the pool's."""
        self._ledger = ledger
        self._settings = settings
        self._image = image
        self._observe = observe
        self._finish = finish
        self._root = ledger.project.resolve()
        self._folder = ledger.home.resolve() / CALLS / pool_id
        self._base: Prepared | None = None
        self._kinds: dict[Needs, Prepared] = {}
        self._needs: dict[frozenset[str], Needs] = {}
        self._scans: dict[Path, ImportScan] = {}

    def function(self, function: Callable[..., Any]) -> Function:
        """Raises UsageError for what cannot be pickled."""
        name = getattr(function, "__name__", type(function).__name__)
        content, modules = pickled(function, f"the function {name}", self._root)
        digest = hashlib.sha256(content).hexdigest()
        entry = self._written(f"{digest[:32]}.function", content)
        return Function(name, full_name(function), entry, modules | imported_by(function))

    def parcel(self, function: Function, calls: Sequence[Arguments]) -> Parcel:
        """Raises UsageError for arguments that cannot be pickled, and for what cannot be run on a unit."""
        content, modules = pickled(list(calls), f"what {function.name} is called with", self._root)
        kind = self._kind(function.modules | modules)
        return Parcel(function.name, kind, function.entry, self._written(f"{new_id('f')}.calls", content))

    def forget(self, parcel: Parcel) -> None:
        """It is needed no more. What cannot be deleted now goes with its folder."""
        with suppress(OSError):
            parcel.file.unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _written(self, name: str, content: bytes) -> FileEntry:
        file = self._folder / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_bytes(content)
            part.rename(file)
        place = file.relative_to(self._root).as_posix()
        return FileEntry(place, len(content), hashlib.sha256(content).hexdigest(), 0o644)

    # -- kinds ---------------------------------------------------------------------------------------------------------

    def _kind(self, modules: frozenset[str]) -> Prepared:
        if modules not in self._needs:
            self._needs[modules] = needs(modules, self._root, self._scans)
        wanted = self._needs[modules]
        if wanted not in self._kinds:
            self._kinds[wanted] = self._new_kind(wanted)
        return self._kinds[wanted]

    def _new_kind(self, wanted: Needs) -> Prepared:
        from cloudrun.provisioning.environment import client_python, environment_for

        entry = self._written(f"called{len(self._kinds) or ''}.py", _program(wanted).encode())
        script = self._root / entry.path
        environment = environment_for(
            script,
            self._root,
            architecture=self._image.architecture,
            python=client_python(),  # byte code of another minor version is not understood
            cache_dir=self._ledger.home / "cache",
            system=prepared.system_of(self._settings, self._ledger),
            index_url=self._settings.index_url,
        )
        here = Path.cwd().resolve()
        job = Job(script, cwd=here if here.is_relative_to(self._root) else self._root)
        base = self._base = self._base or self._new_base(job, environment)
        return replace(
            base,
            job=job,
            shipment=replace(base.shipment, script=entry.path, entries=(*base.shipment.entries, entry)),
            environment=environment,
            code_digest=code_digest({path: (self._root / path).read_bytes() for path in wanted.local_files}),
            search_path=wanted.search_path,
            third_party=(*wanted.third_party, "cloudpickle"),
        )

    def _new_base(self, job: Job, environment: Environment) -> Prepared:
        """The project and the pickler, for all kinds."""
        goods = prepared.inspect(job, self._settings, self._ledger, self._observe, root=self._root)
        sources = sorted(Path(cloudpickle.__file__).parent.glob("*.py"))
        lib = [self._written(f"lib/cloudpickle/{source.name}", source.read_bytes()) for source in sources]
        files = [each for each in goods.entries if each.path != goods.script]
        plan = Prepared(job, replace(goods, entries=(*files, *lib)), environment, self._settings, "")
        return self._finish(plan)


def _program(wanted: Needs) -> str:
    """`called.py` for a unit. What it names in the end is how the environment is found, as for any script."""
    source = Path(__file__).with_name("called.py").read_text(encoding="utf-8")
    lines = [f"    import {name}" for name in wanted.third_party]
    return "\n".join([source, "", "def needed_by_the_function() -> None:", *lines, "    return", ""])


def full_name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def call_key(key: Any, function: str, environment: str) -> str:
    """64 hexadecimal characters: the caller's key, the function's full name and the environment's fingerprint, and
    nothing else. Raises UsageError for a key that JSON has no words for."""
    lines = [
        "cloudrun call 1",
        f"key {canonical_json(key, 'key')}",
        f"function {function}",
        f"environment {environment}",
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# -- what came of them -------------------------------------------------------------------------------------------------


def outcome_file(run: Run) -> Artifact | None:
    """What the calls gave back, still pickled; None where they never got so far."""
    found = (each for each in run.artifacts if each.path.startswith(f".cloudrun/{CALLS}/"))
    return next((each for each in found if each.path.endswith(".outcome")), None)


def outcome(run: Run) -> list[Any]:
    """What each call returned; raises what one raised, with the traceback on the unit as a note, or RuntimeError with
    its type and words, from an `OnUnit`, where it cannot be made again here.

    The digest is checked before anything is unpickled. Raises JobFailed where they never got so far, LedgerError where
    what they returned cannot be unpickled here.
    """
    artifact = outcome_file(run)
    if artifact is None:
        raise JobFailed(
            f"{run.name} did not come to its end: {run.detail or f'its exit code was {run.exit_code}'}",
            run=run,
            next_step=f"cloudrun show {run.run_id} --log",
        )
    with run.store.open(artifact.sha256) as file:
        try:
            how, value, *told = cloudpickle.load(file)
        except Exception as error:  # a pickle runs code of its own, which may raise anything
            raise LedgerError(
                f"what {run.name} gave back cannot be unpickled here: {type(error).__name__}: {error}",
                next_step=f"cloudrun show {run.run_id}",
            ) from error
    if how == "returned":
        return list(value)
    words, text = told
    trace = f"on {run.instance_id}:\n{_with_sources(text.rstrip())}"
    raise _made_again(value, words, trace)


class OnUnit(Exception):
    """The traceback, as it was there, of an exception that cannot be made again here."""


def _made_again(content: bytes, words: str, trace: str) -> BaseException:
    """The exception that a call raised. Its class is the user's, and may refuse to be made from what it was."""
    with suppress(Exception):
        error = cloudpickle.loads(content)
        error.add_note(trace)
        return cast("BaseException", error)
    told = RuntimeError(words)
    told.__cause__ = OnUnit(trace)
    return told


def _with_sources(trace: str) -> str:
    """The lines of files that are here and not on the unit, as those of the user's script."""

    def add(frame: re.Match[str]) -> str:
        line = linecache.getline(frame["file"], int(frame["line"])).strip()
        return f"{frame[0]}\n    {line}" if line else frame[0]

    return _BARE_FRAME.sub(add, trace)
