"""When a unit's time is over, by the orders of its owner; and how it powers itself off."""

from __future__ import annotations

import contextlib
import math
import subprocess
from typing import Any, NamedTuple, Sequence

SAVING_S = 15.0  # beside the grace of its jobs: how long before a deadline outputs begin to be saved
SHARE = 0.1  # of a unit's time: a deadline that is near leaves less
WHEN_DONE_S = 5.0  # a client that has just gone may come back
GRACE_SHARE = 2 / 3  # of the time that is left before an end: the rest is for saving outputs
OVERDUE_GRACE_S = 300.0  # what a machine that was started again after its deadline has, for its owner to move it
COMMAND_S = 30.0
COMMANDS = (
    ("sudo", "-n", "systemctl", "poweroff"),
    ("systemctl", "poweroff"),
    ("sudo", "-n", "shutdown", "-h", "now"),
    ("shutdown", "-h", "now"),
)


class Facts(NamedTuple):
    """What there is on the unit. Times in seconds since 1970, durations in seconds."""

    now: float
    given_at: float  # when the orders came
    quiet_s: float  # for how long there has been no active run and no client
    client: bool
    graces_s: Sequence[float]  # of each active run
    unsaved: int  # finished runs that are neither home nor in the store
    waiting: int = 0  # runs whose turn has not come


class Plan(NamedTuple):
    end_jobs: bool
    grace_s: float  # the most that a job may take for its end
    power_off: str  # why, or ""
    next_s: float  # when to ask again at the latest


def can_be_followed(orders: dict[str, Any]) -> bool:
    """Whether they are orders at all, and not what a job has made of them."""
    deadline, idle_s, slots = orders.get("deadline"), orders.get("idle_s"), orders.get("slots")
    return (
        isinstance(deadline, (int, float))
        and math.isfinite(deadline)
        and (idle_s is None or isinstance(idle_s, (int, float)))
        and (slots is None or isinstance(slots, int))
    )


def may_start(orders: dict[str, Any], now: float, given_at: float, grace_s: float) -> bool:
    """Whether a run that waits may begin: not where it would have to end before it could save anything."""
    left_s = float(orders["deadline"]) - now
    return left_s > max(grace_s, _lead_s(orders, given_at, grace_s))


def plan(orders: dict[str, Any], facts: Facts) -> Plan:
    """What the orders (`core.records.UnitOrders`) demand now."""
    left_s = float(orders["deadline"]) - facts.now
    lead_s = _lead_s(orders, facts.given_at, max(facts.graces_s, default=0.0))
    ending = left_s <= lead_s
    grace_s = max(0.0, left_s) * GRACE_SHARE
    over = not facts.graces_s and not facts.unsaved and not facts.client
    done = over and not facts.waiting
    idle_s = orders.get("idle_s")
    why = ""
    if left_s <= 0:
        why = "deadline"
    elif ending and over:
        why = "deadline, and everything is saved"
    elif done and orders.get("power_off_when_done") and facts.quiet_s >= WHEN_DONE_S:
        why = "done"
    elif done and idle_s is not None and facts.quiet_s >= float(idle_s):
        why = "idle"
    return Plan(ending, grace_s, why, _next_s(left_s, lead_s))


def _lead_s(orders: dict[str, Any], given_at: float, grace_s: float) -> float:
    return min(grace_s + SAVING_S, SHARE * max(0.0, float(orders["deadline"]) - given_at))


def _next_s(left_s: float, lead_s: float) -> float:
    return min((moment for moment in (left_s - lead_s, left_s) if moment > 0), default=float("inf"))


def off() -> bool:
    """Power the machine off, by the first command that does it."""
    for command in COMMANDS:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            null = subprocess.DEVNULL
            # one that hangs is left behind: it is root's, so that it could not be killed, and not be waited for
            started = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
            if started.wait(timeout=COMMAND_S) == 0:
                return True
    return False
