"""The `cloudrun` command: one front page, one place where errors become words and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from cloudrun.cli.catalogue import front_page
from cloudrun.core.errors import Cancelled, CloudrunError, UsageError


def main() -> NoReturn:
    """The console script. Exit codes: see `core.errors`, and 128 + n where signal n ended it."""
    _tolerant_streams()
    received = _signals_end_blocks()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        code = 0  # who read us has seen enough
    except KeyboardInterrupt:
        print("cloudrun: interrupted", file=sys.stderr)
        code = 130
    except Cancelled as error:
        _tell(error)
        code = 128 + received[0] if received else error.exit_code
    except CloudrunError as error:
        _tell(error)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - the outermost place: a bug becomes a short message and a crash log
        code = _crash(error)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code. Raises CloudrunError."""
    if not arguments or arguments[0] in {"--help", "-h", "help"}:
        sys.stdout.write(front_page())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"cloudrun {version('cloudrun')}\n")
        return 0
    return _command(arguments)() or 0


def _command(arguments: Sequence[str]) -> Callable[[], int | None]:
    """The command that the arguments name, ready to be called. Raises UsageError where they do not fit."""
    from cyclopts import CycloptsError

    from cloudrun.cli.parser import application

    try:
        command, bound, _ = application().parse_args(list(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        name = "" if arguments[0].startswith("-") else f"{arguments[0]} "
        if type(error).__name__ == "UnknownCommandError":
            name = ""
        hint = "; what is meant for the script goes after --" if name == "submit " else ""
        raise UsageError(str(error).rstrip("."), next_step=f"cloudrun {name}--help{hint}") from error
    return lambda: command(*bound.args, **bound.kwargs)


def _tolerant_streams() -> None:
    """A terminal that cannot show a character gets its escape, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _signals_end_blocks() -> list[int]:
    """SIGTERM and SIGHUP leave every `with` block as Ctrl-C does; returns the list in which they note themselves."""
    received: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # ignored stays ignored: nohup
            signal.signal(number, leave)
    return received


def _tell(error: CloudrunError) -> None:
    """What happened, why, and what to type next; clean-up errors chained behind the first cause come after it."""
    what, *why = str(error).splitlines() or [type(error).__name__]
    lines = [f"cloudrun: {what}", *(f"  {line}" for line in why)]
    log_path = getattr(error, "log_path", None)
    if log_path and str(log_path) not in str(error):
        lines.append(f"  log: {log_path}")
    lines += [f"  {line}" for note in getattr(error, "__notes__", ()) for line in note.splitlines()]
    if error.next_step:
        lines.append(f"  next: {error.next_step}")
    print("\n".join(lines), file=sys.stderr)
    if os.environ.get("CLOUDRUN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)


def _crash(error: Exception) -> int:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="cloudrun-crash-", suffix=".log", delete=False) as log:
        log.write(" ".join(["cloudrun", *sys.argv[1:]]) + "\n")
        traceback.print_exception(error, file=log)
    print(
        f"cloudrun: this is a bug in cloudrun: {type(error).__name__}: {error}\n"
        f"  log: {log.name}\n"
        "  next: cloudrun units shows what is still alive, cloudrun reap ends it; please report the log",
        file=sys.stderr,
    )
    if os.environ.get("CLOUDRUN_DEBUG") == "1":
        traceback.print_exception(error)
    return 1


def _abandon_stdout() -> None:
    # or the interpreter's own flush at exit would complain once more
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
