"""The `cloudrun` command: one front page, one place where errors become words and exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import FrameType
from typing import NoReturn

from cloudrun.cli.catalogue import first_page, help_page
from cloudrun.cli.early import begin
from cloudrun.cli.printing import abandon, columns, folded, print_json, printable, printed_json, styled
from cloudrun.core.errors import Cancelled, CloudrunError, UsageError, before_launch, exit_code_of, notes_of
from cloudrun.plan.typed import quoted

LOOK_STEP = "cloudrun results shows what came home, cloudrun units what is alive"


def main() -> NoReturn:
    """The console script. Exit codes: see `core.errors`, and 128 + n where signal n ended it."""
    _tolerant_streams()
    received = _signals_end_blocks()
    try:
        code = run(_without_debug(sys.argv[1:]))
        sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
        code = 128 + signal.SIGPIPE  # who read us has seen enough; a shell knows this code from every filter
    except KeyboardInterrupt as error:
        _tell("interrupted", error, getattr(error, "next_step", LOOK_STEP))
        code = exit_code_of(error, 130)
    except SystemExit as error:
        if not received:
            raise
        _tell(f"ended by {signal.Signals(received[0]).name}", error, getattr(error, "next_step", LOOK_STEP))
        code = exit_code_of(error, 128 + received[0])
    except CloudrunError as error:
        next_step = retyped(sys.argv[1:], error.instead) or error.next_step
        _tell(str(error), error, next_step)
        if _wants_json() and not printed_json():
            print_json({"error": {"kind": type(error).__name__, "message": str(error), "next_step": next_step}})
        by_signal = received and isinstance(error, Cancelled)
        code = exit_code_of(error, 128 + received[0] if by_signal else error.exit_code)
    except Exception as error:  # noqa: BLE001 - the outermost place: a bug becomes a short message and a crash log
        code = _crash(error)
    sys.exit(code)


def retyped(words: Sequence[str], instead: tuple[str, str] | None) -> str:
    """The command line with the right word in place of the wrong one; "" where that is not in it, or twice."""
    if instead is None:
        return ""
    wrong, right = instead
    ours, scripts = _ours([*words])
    places = [place for place, word in enumerate(ours) if wrong in (word, *word.partition("=")[::2])]
    if len(places) != 1:
        return ""
    (place,) = places
    if right in ours and not ours[place - 1].startswith("-"):
        return ""  # it is one of several of a kind, and the right one is among them already
    name, equals, value = ours[place].partition("=")
    parts = [right if part == wrong else part for part in (name, value)]
    ours[place] = right if ours[place] == wrong else equals.join(parts)
    return " ".join(map(quoted, ["cloudrun", *ours, *scripts]))


def _wants_json() -> bool:
    """Whether stdout is for a program."""
    return "--json" in _ours(sys.argv[1:])[0]


def _without_debug(words: list[str]) -> list[str]:
    """`--debug` may stand anywhere; it is the variable CLOUDRUN_DEBUG=1 from here on."""
    ours, scripts = _ours(words)
    if "--debug" in ours:
        os.environ["CLOUDRUN_DEBUG"] = "1"
    return [word for word in ours if word != "--debug"] + scripts


def _ours(words: list[str]) -> tuple[list[str], list[str]]:
    """What comes after -- is the script's, with that word."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end:]


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code. Raises CloudrunError."""
    if not arguments:
        sys.stdout.write(_painted(first_page(columns(sys.stdout))))
        return 0
    if arguments[0] in {"--help", "-h", "help"}:
        sys.stdout.write(_painted(help_page(columns(sys.stdout))))
        return 0
    if arguments[0] == "__names":  # asked by a shell: see `cli.completion`
        from cloudrun.cli.names import print_names

        print_names(arguments[1:])
        return 0
    if arguments[0] == "--version":
        _print_version(arguments[1:])
        return 0
    with before_launch() if arguments[0] == "submit" else nullcontext():
        command = _command(arguments)
    return command() or 0


def _painted(page: str) -> str:
    """With what may be typed in colour, where there is colour."""
    typed = re.compile(r"^( +)(cloudrun(?: \S+)*)", re.MULTILINE)
    return typed.sub(lambda found: found[1] + styled(found[2], "command"), page)


def _print_version(options: Sequence[str]) -> None:
    """One line; with --verbose what a bug report should say, with --json all of it as a document."""
    if unknown := set(options) - {"--verbose", "-v", "--json"}:
        raise UsageError(f"--version knows no {min(unknown)}", next_step="cloudrun --version --verbose")
    if not options:
        from importlib.metadata import version

        sys.stdout.write(f"cloudrun {version('cloudrun')}\n")
        return
    from cloudrun.setup.versions import versions

    found = versions()
    if "--json" in options:
        print_json({"versions": found})
    else:
        sys.stdout.writelines(f"{name:<16}{version}\n" for name, version in found.items())


def _command(arguments: Sequence[str]) -> Callable[[], int | None]:
    """The command that the arguments name, ready to be called. Raises UsageError where they do not fit."""
    if arguments[0] == "submit":
        begin(arguments[1:])
    from cyclopts import CycloptsError

    from cloudrun.cli.parser import application

    try:
        command, bound, _ = application().parse_args(list(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        from cloudrun.cli.refused import usage_error

        raise usage_error(error, arguments) from error
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


def _tell(message: str, error: BaseException, next_step: str) -> None:
    """What happened, why, and what to type next; notes on the error (clean-up that failed too) come after its cause.

    Control characters become escapes: what a machine printed may be part of the message, and moves no cursor here.
    """
    what, *why = message.splitlines() or [type(error).__name__]
    log_path = getattr(error, "log_path", None)
    if log_path and str(log_path) not in message:
        why.append(f"log: {log_path}")
    for note in notes_of(error):
        why += note.splitlines()
    lines = [f"cloudrun: {what}", *(f"  {line}" for line in why)]
    width = columns(sys.stderr)
    said = "\n".join(folded(printable(line.expandtabs()), width) for line in lines)
    print(said.replace("cloudrun:", styled("cloudrun:", "bad", sys.stderr), 1), file=sys.stderr)
    for line in f"next: {next_step}".splitlines() if next_step else ():
        print(f"  {styled(printable(line), 'command', sys.stderr)}", file=sys.stderr)
    if os.environ.get("CLOUDRUN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)


def _crash(error: Exception) -> int:
    import tempfile
    import traceback

    message = f"a bug in cloudrun: {type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="cloudrun-crash-", suffix=".log", delete=False) as log:
            log.write(" ".join(["cloudrun", *sys.argv[1:]]) + "\n")
            traceback.print_exception(error, file=log)
        message += f"\nlog: {log.name}"
    except OSError as unwritten:  # the full disk may be what the bug is about
        whole = "".join(traceback.format_exception(error))
        message += f"\nno log could be written ({unwritten}): here is what it would say\n{whole}"
    _tell(message, error, "report the log; cloudrun units shows what is alive, cloudrun reap ends it")
    return 1


if __name__ == "__main__":
    main()
