"""The lifecycles of launches, units, runs, attempts and grids, as tables.

Terminal states are listed, so a state nobody knows never means "done"; the ledger refuses any transition that is not
in its table. Why something ended (`EndReason`) is kept apart from where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class State(str, Enum):
    """A state that prints, compares and serialises as its own word."""

    def __str__(self) -> str:
        return str(self.value)


class LaunchState(State):
    INTENDED = "intended"  # in the ledger; RunInstances not called yet
    REQUESTED = "requested"  # RunInstances is being called: its answer may be lost
    RESOLVED = "resolved"  # the ids are known
    REFUSED = "refused"  # EC2 said no: nothing runs
    UNRESOLVED = "unresolved"  # the answer was lost: ask again with the same token


class UnitState(State):
    LAUNCHING = "launching"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class RunState(State):
    QUEUED = "queued"
    SHIPPING = "shipping"
    RUNNING = "running"
    PULL_PENDING = "pull_pending"  # done on the unit, not home yet
    PULLING = "pulling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class GridState(State):
    OPEN = "open"  # somebody goes on with it, or may
    DONE = "done"  # every cell's run is over
    STOPPED = "stopped"  # before its end, by a limit: the same command goes on with it
    CANCELLED = "cancelled"  # the user asked


class EndReason(State):
    COMPLETED = "completed"  # exit code 0
    EXITED = "exited"  # another exit code
    SIGNALLED = "signalled"  # killed by a signal nobody of ours sent
    CANCELLED = "cancelled"  # the user asked
    CLIENT_LOST = "client_lost"  # the client died; the reaper ended it
    INTERRUPTED = "interrupted"  # the provider took the machine back
    UNIT_LOST = "unit_lost"  # the machine went away without a word
    DEADLINE = "deadline"
    WALL_TIME = "wall_time"
    MEMORY = "memory"
    DISK = "disk"
    OUTPUT_REFUSED = "output_refused"  # too many or too large outputs
    PROVISION_FAILED = "provision_failed"
    SHIP_FAILED = "ship_failed"
    PULL_FAILED = "pull_failed"


S = TypeVar("S", bound=State)

LAUNCH: Mapping[LaunchState, frozenset[LaunchState]] = {
    LaunchState.INTENDED: frozenset({LaunchState.REQUESTED, LaunchState.REFUSED}),
    LaunchState.REQUESTED: frozenset({LaunchState.RESOLVED, LaunchState.REFUSED, LaunchState.UNRESOLVED}),
    LaunchState.UNRESOLVED: frozenset({LaunchState.RESOLVED, LaunchState.REFUSED}),
    LaunchState.RESOLVED: frozenset(),
    LaunchState.REFUSED: frozenset(),
}

_END = frozenset({UnitState.TERMINATING, UnitState.TERMINATED})
UNIT: Mapping[UnitState, frozenset[UnitState]] = {
    UnitState.LAUNCHING: frozenset({UnitState.BOOTING, UnitState.STOPPING}) | _END,
    UnitState.BOOTING: frozenset({UnitState.READY, UnitState.STOPPING}) | _END,
    UnitState.READY: frozenset({UnitState.DRAINING, UnitState.STOPPING}) | _END,
    UnitState.DRAINING: frozenset({UnitState.READY, UnitState.STOPPING}) | _END,
    UnitState.STOPPING: frozenset({UnitState.STOPPED}) | _END,
    UnitState.STOPPED: frozenset({UnitState.BOOTING}) | _END,
    UnitState.TERMINATING: frozenset({UnitState.TERMINATED}),
    UnitState.TERMINATED: frozenset(),
}

_FAIL = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.LOST})
RUN: Mapping[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.SHIPPING}) | _FAIL,
    RunState.SHIPPING: frozenset({RunState.RUNNING, RunState.QUEUED}) | _FAIL,
    RunState.RUNNING: frozenset({RunState.PULLING, RunState.PULL_PENDING, RunState.QUEUED}) | _FAIL,
    RunState.PULL_PENDING: frozenset({RunState.PULLING, RunState.QUEUED}) | _FAIL,
    RunState.PULLING: frozenset({RunState.SUCCEEDED, RunState.PULL_PENDING, RunState.QUEUED}) | _FAIL,
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.LOST: frozenset(),
}

GRID: Mapping[GridState, frozenset[GridState]] = {
    GridState.OPEN: frozenset({GridState.DONE, GridState.STOPPED, GridState.CANCELLED}),
    GridState.STOPPED: frozenset({GridState.OPEN, GridState.CANCELLED}),
    GridState.DONE: frozenset(),
    GridState.CANCELLED: frozenset(),
}

TERMINAL: frozenset[State] = frozenset(
    {
        LaunchState.RESOLVED,
        LaunchState.REFUSED,
        UnitState.TERMINATED,
        RunState.SUCCEEDED,
        RunState.FAILED,
        RunState.CANCELLED,
        RunState.LOST,
        GridState.DONE,
        GridState.CANCELLED,
    }
)


def allowed(table: Mapping[S, frozenset[S]], before: S, after: S) -> bool:
    """Whether `before -> after` is in the table. Staying where one is, is no transition and never allowed."""
    return after in table[before]


def is_terminal(state: State) -> bool:
    return state in TERMINAL
