"""Turns a fork of a parent that has imported modules into `python script arguments`, as exactly as possible.

`become` runs in the fork and does all that can fail, so that a script that a fork cannot run as a fresh interpreter
would (shadowed modules, syntax errors) is left to one. What it returns runs the script.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.machinery
import json
import os
import sys
import time
import types
import warnings
from dataclasses import dataclass
from typing import Any, Callable, Iterable

from cloudrun.agent import jobenv
from cloudrun.core.rundir import RunDir

# `warnings` passes over frames of files with this name as if they were not there, so that a stacklevel that leads out
# of the script leads out of the program, as it does in a fresh interpreter.
INTERNAL = "<frozen importlib._bootstrap>"
# A module that imports these at its start is imported before the script's folder or PYTHONPATH is looked at by others.
CUSTOMIZERS = frozenset({"sitecustomize", "usercustomize"})
KEPT = frozenset({"threading"})  # what the interpreter itself calls at its end


class NotExactError(Exception):
    """A fork would not do what a fresh interpreter does with this script."""


@dataclass(frozen=True)
class Interpreter:
    """What was noted of a parent's interpreter before it was anything else than a fresh one."""

    startup: frozenset[str]  # the names in sys.modules when it was up
    loaded: frozenset[str]  # and when the preloaded modules were imported
    path: list[str]  # sys.path without PYTHONPATH and without a script's folder
    importers: frozenset[str]  # the names in sys.path_importer_cache
    main: frozenset[str]  # the names that a __main__ module has by itself
    added: dict[str, str]  # environment variables set by the interpreter's start and by the imports


def become(run: RunDir, spec: dict[str, Any], interpreter: Interpreter) -> Callable[..., None]:
    """Make this process the job, up to its first instruction. Returns the `sys.excepthook` that runs the script.

    Raises NotExactError, OSError or what else comes: the caller then exits, and somebody starts the job freshly.
    """
    os.setsid()
    variables = jobenv.environment(run, spec, os.environ)
    program, (name, *arguments) = jobenv.program(spec), spec["argv"][1:]
    folder = jobenv.folder(run, spec)
    os.umask(jobenv.UMASK)
    _redirect(run)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({**interpreter.added, **variables})
    time.tzset()

    script = os.path.realpath(name)
    if not os.path.isfile(script):
        raise NotExactError("no such file")
    here = os.path.dirname(script)
    listed = variables.get("PYTHONPATH", "")
    entries = [os.path.abspath(entry) for entry in listed.split(os.pathsep)] if listed else []
    tops = frozenset(module.partition(".")[0] for module in interpreter.loaded | _compiled())
    for entry in entries:
        _refuse_shadows(entry, tops | CUSTOMIZERS)
    safe_path = getattr(sys.flags, "safe_path", False)
    if not safe_path:
        _refuse_shadows(here, tops - {module.partition(".")[0] for module in interpreter.startup})

    sys.argv = [name, *arguments]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = [spec["argv"][0] if "/" not in spec["argv"][0] else program, name, *arguments]
    sys.path[:] = [*([] if safe_path else [here]), *dict.fromkeys([*entries, *interpreter.path])]
    filename = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
    code = _compile(filename)
    _forget(interpreter)
    _renew()
    main = _main_module(filename, interpreter)
    set_title(" ".join([program, name, *arguments]))
    end = _note_end(run)
    return _hook(code, main, end)


def _compiled() -> frozenset[str]:
    """Modules that `_forget` leaves there, whoever imported them."""
    files = ((name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items()))
    return frozenset(name for name, file in files if file and not file.endswith(".py") and "." not in name)


def _redirect(run: RunDir) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, run.stdout, flags),
        (2, run.stderr, flags),
    ):
        opened = os.open(path, mode | os.O_CLOEXEC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def _refuse_shadows(folder: str, names: frozenset[str]) -> None:
    """A module of the job's own that is called like one which is imported already would not be found."""
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotExactError("an archive on PYTHONPATH")
        return
    suffixes = tuple(importlib.machinery.all_suffixes())
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, rest = entry.name.partition(".")
            if stem not in names:
                continue
            if dot + rest in suffixes or (not dot and _is_package(entry.path, suffixes)):
                raise NotExactError(stem)


def _is_package(folder: str, suffixes: Iterable[str]) -> bool:
    return any(os.path.exists(os.path.join(folder, "__init__" + suffix)) for suffix in suffixes)


def _compile(filename: str) -> types.CodeType:
    with open(filename, "rb") as stream:
        source = stream.read()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = compile(source, filename, "exec", dont_inherit=True)
    if caught:  # now that it is known to be whole: once more, for those warnings that the job's user is to see
        code = compile(source, filename, "exec", dont_inherit=True)
    return code


def _forget(interpreter: Interpreter) -> None:
    """Take out of the interpreter what the agent brought in."""
    for name, module in list(sys.modules.items()):
        if name in interpreter.loaded or name in KEPT:
            continue
        file = getattr(module, "__file__", None)
        # what is compiled stays: it is state of the process, and some of it does not bear to be initialised twice
        if name.partition(".")[0] == "cloudrun" or (file and file.endswith(".py")):
            del sys.modules[name]
    for entry in list(sys.path_importer_cache):
        if entry not in interpreter.importers:
            del sys.path_importer_cache[entry]
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)


def _renew() -> None:
    """What imported modules took from the parent's process, and each process has for itself."""
    modules = sys.modules
    if "numpy.random.mtrand" in modules:
        modules["numpy.random.mtrand"].seed()  # every fork would draw the parent's numbers; `random` sees to itself
    if "multiprocessing.process" in modules:
        process: Any = modules["multiprocessing.process"]
        process.ORIGINAL_DIR = os.getcwd()  # where spawned workers look for the script
        process.current_process().authkey = os.urandom(32)
    if "tempfile" in modules:
        tempfile: Any = modules["tempfile"]
        tempfile.tempdir = None  # TMPDIR is another now
    if "logging" in modules:
        logging = vars(modules["logging"])  # %(relativeCreated)d counts from there
        logging["_startTime"] = time.time_ns() if isinstance(logging["_startTime"], int) else time.time()
    if "linecache" in modules:
        modules["linecache"].clearcache()


def _main_module(filename: str, interpreter: Interpreter) -> types.ModuleType:
    main = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", filename)
    values = {"__loader__": loader, "__builtins__": sys.modules["builtins"], "__annotations__": {}}
    for name in ("__loader__", "__annotations__", "__builtins__"):
        if name in interpreter.main:
            setattr(main, name, values[name])
    main.__file__ = filename
    if sys.version_info < (3, 15):
        main.__dict__["__cached__"] = None
    before = sys.modules["__main__"]
    for name in [name for name, module in sys.modules.items() if module is before]:
        sys.modules[name] = main  # multiprocessing has another name for it
    return main


def _note_end(run: RunDir) -> Callable[[int], None]:
    """Have the exit code written at the interpreter's end, for whoever is not its parent. Returns how to set it."""
    pid, known = os.getpid(), [0]
    path, temporary = str(run.ended), "{}.tmp{}".format(run.ended, pid)

    def write() -> None:
        if os.getpid() != pid:
            return  # a process that the job has forked ends as an interpreter, too
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                how = {"signal": -known[0]} if known[0] < 0 else {"exit_code": known[0]}
                os.write(descriptor, json.dumps({"pid": pid, **how}).encode("ascii"))
            finally:
                os.close(descriptor)
            os.replace(temporary, path)

    atexit.register(write)  # before any of the script's own, so it runs after them

    def end(code: int) -> None:
        known[0] = code

    return end


def _hook(code: types.CodeType, main: types.ModuleType, end: Callable[[int], None]) -> Callable[..., None]:
    """What runs the script when it is called as `sys.excepthook`, for a KeyboardInterrupt.

    An excepthook is called by the interpreter itself, so below the script there is this one frame only. SystemExit
    out of it ends the interpreter as everywhere. Returning from it ends the interpreter as a KeyboardInterrupt does.
    """
    held = [main.__dict__]

    def run_script(*_: object) -> None:
        sys.excepthook = sys.__excepthook__
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        failed = []
        try:
            exec(code, held[0])  # noqa: S102  # this is what it is for
        except SystemExit as error:
            _strip(error)
            end(exit_code(error.code))
            held.clear()
            raise
        except BaseException as error:  # noqa: BLE001  # shown as the interpreter would
            _strip(error)
            failed.append(error)
        _flush()
        interrupted = bool(failed) and isinstance(failed[0], KeyboardInterrupt)
        result = 1 if failed else 0
        if interrupted:
            end(-2)
        else:
            end(result)
        if failed:
            _show(failed.pop(), end)
        for name in ("__file__", "__cached__"):
            held[0].pop(name, None)
        held.clear()
        if not interrupted:
            raise SystemExit(result)

    run_script.__code__ = run_script.__code__.replace(co_filename=INTERNAL)
    return run_script


def exit_code(value: object) -> int:
    """What a process ends with for `SystemExit(value)`."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF if -(2**63) <= value < 2**63 else 0xFF
    return 1


def _strip(error: BaseException) -> None:
    """Take our frame off its traceback."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(Exception):
            stream.flush()


def _show(error: BaseException, end: Callable[[int], None]) -> None:
    """PyErr_Print: through `sys.excepthook`, which is the script's to replace and may fail itself."""
    kind, trace = type(error), error.__traceback__
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        _print("sys.excepthook is missing\n")
        sys.__excepthook__(kind, error, trace)
        return
    try:
        hook(kind, error, trace)
        return
    except SystemExit as other:
        end(exit_code(other.code))
        raise
    except BaseException as other:  # noqa: BLE001  # as the interpreter
        second = other
    _strip(second)
    _print("Error in sys.excepthook:\n")
    sys.__excepthook__(type(second), second, second.__traceback__)
    _print("\nOriginal exception was:\n")
    sys.__excepthook__(kind, error, trace)


def _print(text: str) -> None:
    with contextlib.suppress(Exception):
        sys.stderr.write(text)


_arguments: list[int] = []  # where the kernel reads this process's command line: first address, address after it


def find_title() -> None:
    """Note where the command line lies in memory, once; it stays there in forks."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as stream:
            text = stream.read()
        fields = text[text.rindex(b")") + 2 :].split()
        first, after = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
        if 0 < first < after:
            _arguments[:] = [first, after]


def set_title(title: str) -> None:
    """What `ps` shows for this process, as far as there is room for it.

    The kernel takes a last byte that is not zero for the sign of a title: a text that ends at its first zero byte.
    """
    if not _arguments:
        return
    first, after = _arguments
    room = after - first - 2
    if room > 0:
        text = os.fsencode(title).replace(b"\0", b" ")[:room]
        ctypes.memmove(first, text.ljust(room + 1, b"\0") + b".", room + 2)
