"""Every error cloudrun raises, drawn as one tree. Adapters translate library errors into these where they meet them.

    CloudrunError                 1    something went wrong that is nobody's fault here
    ├── UsageError                2    the caller's input; raised before anything is launched
    │   └── ConfigError           2    a configuration file or value (knows file and line)
    ├── CredentialsError          4    AWS credentials missing, expired or without a permission
    ├── JobFailed                 5    the job itself exited non-zero, or was killed
    ├── CapacityError             6    EC2 has none of that type there now: another type or zone may do
    │   └── QuotaError            6    the account may not have more: another type will not help, a request will
    ├── LaunchError               1    EC2 refused, or the machine never came up
    │   └── UnresolvedLaunch      1    nobody knows yet whether a launch happened; resolve it before anything else
    ├── ConnectionLost            1    SSH could not be opened, or went away
    │   ├── HostKeyMismatch       1    the machine that answered is not the one that was launched
    │   ├── JumpRefused           1    the host in between lets nobody through (before a launch it is a UsageError)
    │   └── Interrupted           1    the provider took the machine back
    ├── ProvisionError            1    the playbook failed (knows the task and the log)
    ├── TransferError             1    bytes did not arrive whole
    │   ├── ManifestRefused       1    the list of outputs makes no sense, or could do harm
    │   ├── ObjectMissing         1    the bucket does not have it (yet, or any more)
    │   └── BucketMissing         1    there is no such bucket (any more)
    ├── LedgerError               1    the ledger could not be read or written
    │   └── NotFound              2    no such run, unit or artifact
    ├── PassportMismatch          1    a model made with other versions than those here
    ├── SandboxError              1    the region on localhost could not be started or used
    ├── CleanupIncomplete         8    something may still be billing (knows the ids)
    ├── DeadlineReached         124    the unit's time was up
    └── Cancelled               130    the user, or a signal, ended it

Every error says what happened, why, and what to type next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudrun.core.interrupts import no_interrupt_lost


class NextStep(str):
    """The note on an error that says what to type next: tracebacks end with it, whoever shows it otherwise skips it."""

    __slots__ = ()


class CloudrunError(Exception):
    """What happened (`str(error)`), what to type next (`next_step`; the last line of a traceback), and the exit code a
    shell sees (`exit_code`).

    `instead`: a word that was probably mistyped, and what it was meant to be; where it stands in a command line, that
    line with the right word is what to type next.
    """

    exit_code = 1
    usual_next_step = ""  # where whoever raises knows nothing better

    def __init__(self, message: str, *, next_step: str = "", instead: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step or self.usual_next_step
        self.instead = instead

    @property
    def next_step(self) -> str:
        return self._next_step

    @next_step.setter
    def next_step(self, step: str) -> None:
        self._next_step = step
        said = notes_of(self)
        if step or said:  # a list of its own: a copy of an error shares that of the error
            self.__notes__ = [*said, NextStep(f"next: {step}")] if step else said

    def add_note(self, note: str, /) -> None:
        super().add_note(note)
        self.next_step = self._next_step  # stays behind it


class UsageError(CloudrunError):
    exit_code = 2
    usual_next_step = "correct it and repeat the command"


class ConfigError(UsageError):
    def __init__(self, message: str, *, path: Path | None = None, line: int | None = None, next_step: str = "") -> None:
        where = "" if path is None else f"{path}:{line}: " if line else f"{path}: "
        super().__init__(where + message, next_step=next_step)
        self.path = path
        self.line = line


class CredentialsError(CloudrunError):
    exit_code = 4


class JobFailed(CloudrunError):
    """`run` is the run as the ledger has it: its logs and what it had written are home."""

    exit_code = 5

    def __init__(self, message: str, *, run: Any = None, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.run = run


class CapacityError(CloudrunError):
    exit_code = 6


class QuotaError(CapacityError):
    pass


class LaunchError(CloudrunError):
    pass


class UnresolvedLaunch(LaunchError):
    pass


class ConnectionLost(CloudrunError):
    usual_next_step = "cloudrun units shows whether the machine is alive, cloudrun reap ends it if nobody needs it"


class HostKeyMismatch(ConnectionLost):
    pass


class JumpRefused(ConnectionLost):
    pass


class Interrupted(ConnectionLost):
    """`run_id` is that of the run that waits for another attempt; "" where none does."""

    run_id = ""
    usual_next_step = "submit again, without --spot if it has to be over soon"


class UnitGone(Interrupted):
    """The machine went away without a word: what ran on it may have had a part in that."""


class ProvisionError(CloudrunError):
    """`task` is the failing Ansible task's name ("" where none ran); `log_path` holds Ansible's whole output."""

    def __init__(self, message: str, *, task: str = "", log_path: Path | None = None, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.task = task
        self.log_path = log_path


class TransferError(CloudrunError):
    usual_next_step = "submit again"


class ManifestRefused(TransferError):
    """What a unit says about its outputs makes no sense or could do harm: asking again will not help."""


class ObjectMissing(TransferError):
    """The object is not in its bucket: asking again helps only if somebody is about to put it there."""


class BucketMissing(TransferError):
    """There is no such bucket, in anybody's account: what was in it is nowhere."""


class LedgerError(CloudrunError):
    pass


class NotFound(LedgerError):
    exit_code = 2


class PassportMismatch(CloudrunError):
    pass


class SandboxError(CloudrunError):
    usual_next_step = "cloudrun sandbox stop --force, then repeat the command"


class CleanupIncomplete(CloudrunError):
    """`ids` are the AWS ids that may still be billing."""

    exit_code = 8

    def __init__(self, message: str, *, ids: Sequence[str] = (), next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.ids = tuple(ids)


class DeadlineReached(CloudrunError):
    exit_code = 124


BEGIN_AGAIN = "the same command begins again"  # where nothing was done that could be looked at


class Cancelled(CloudrunError):
    exit_code = 130
    usual_next_step = "cloudrun results shows what came home"


def notes_of(error: BaseException) -> list[str]:
    """What was noted on an error beside what to type next."""
    return [note for note in getattr(error, "__notes__", ()) if not isinstance(note, NextStep)]


def mark_incomplete(error: BaseException) -> None:
    """Note on a first cause that the clean-up behind it failed: a shell gets 8 then, since something may be billing."""
    error.cleanup_incomplete = True  # type: ignore[attr-defined]


def note_clean_up(error: BaseException, failure: BaseException) -> None:
    """Chain what went wrong in cleaning up behind the first cause, which it never hides."""
    next_step = f" (next: {failure.next_step})" if isinstance(failure, CloudrunError) else " (next: cloudrun reap)"
    error.add_note(f"cleaning up failed too: {failure or type(failure).__name__}{next_step}")
    if isinstance(failure, CleanupIncomplete):
        mark_incomplete(error)


def exit_code_of(error: BaseException, otherwise: int) -> int:
    """8 where the clean-up behind an error failed, else `otherwise`."""
    return CleanupIncomplete.exit_code if getattr(error, "cleanup_incomplete", False) else otherwise


@contextmanager
def before_launch(instance_id: str | None = None) -> Iterator[None]:
    """Whoever interrupts what is done in here is told that there is nothing to end, nor to pay; or that the machine
    which was to be used again is as it was."""
    try:
        with no_interrupt_lost():
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        error.add_note(untouched(instance_id))
        stopped(error, BEGIN_AGAIN)
        raise


def stopped(error: BaseException, next_step: str) -> None:
    """Note on what the user has stopped a command with what to type next; on an error of ours, only where nobody who
    knew better has."""
    if not isinstance(error, Exception) or getattr(error, "next_step", None) == Cancelled.usual_next_step:
        error.next_step = next_step  # type: ignore[attr-defined]


def untouched(instance_id: str | None) -> str:
    if instance_id is None:
        return "nothing was launched: nothing runs, and nothing is billed"
    return f"nothing was begun on {instance_id}, which is as it was, and billed as it was: cloudrun units"
