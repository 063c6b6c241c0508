"""A pool in a test's hands: its cells, machines that nobody logs in to, an EC2 that is slow to let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Event
from typing import Any

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError
from cloudrun.core.events import Event as Happened
from cloudrun.core.events import nobody
from cloudrun.core.records import Image, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog, Limits
from cloudrun.pools import pool as pools
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs.slots import Turn
from tests.fakes import Ec2, cloud_of, launch_one

IMAGE = Image("ami-1", "/dev/sda1", "x86_64", "/dev/sda1", "ubuntu", 8)
LIMITS = Limits(max_units=2, slots=1, usd_per_hour=1.0, boot_s=1.0, deadline_s=4 * 3600.0, budget_usd=20.0)
USD_PER_HOUR = 1.0
CLIENT = "c-1"


class Unit(PooledUnit):
    """Nobody logs in to it."""

    def open(self) -> None:
        self._ending.callback(self._hand_back)
        self.opened = True


class Lingering(Ec2):
    """What it is asked to terminate goes on until `gone` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = Event()

    def terminate(self, ids: Sequence[str]) -> None:
        if not self.gone.is_set():
            raise CloudrunError("EC2 cannot be reached")
        super().terminate(ids)


class Cells:
    """One cell for each unit, which `carry_out` says how to do; open until `over` is set."""

    def __init__(self, running: int, carry_out: Callable[[PooledUnit], None] = lambda _: None) -> None:
        self.running = running
        self.over = Event()
        self.why_stopped = ""
        self.errors: list[BaseException | None] = []  # with which cells have ended
        self._carry_out = carry_out

    def backlog(self) -> Backlog:
        return Backlog(0, self.running, 1.0)

    def take(self, beside: Sequence[Any]) -> Any:
        return None

    def begin(self, given: Sequence[tuple[str, Any]]) -> list[Any]:
        return [task for _, task in given]

    def carry_out(self, unit: PooledUnit, task: Any, turn: Turn) -> None:
        self._carry_out(unit)

    def ended(self, task: Any, error: BaseException | None) -> None:
        self.running -= 1
        self.errors.append(error)

    def stopped(self) -> str:
        return self.why_stopped

    def is_open(self) -> bool:
        return not self.over.is_set()

    def given_up(self, why: str, error: BaseException | None) -> None: ...


def joined_unit(ledger: Ledger, ec2: Ec2, life: timedelta) -> UnitRecord:
    clock = SystemClock()
    unit = launch_one(ledger, clock, ec2, "l-1", CLIENT)
    ledger.move_unit(unit.instance_id, UnitState.BOOTING)
    ledger.update_unit(unit.instance_id, deadline=clock.now() + life)
    return ledger.unit(unit.instance_id)


def a_pool(
    ledger: Ledger,
    ec2: Ec2,
    changed: Callable[[pools.Pool], None],
    timeout_s: float = 60.0,
    observe: Callable[[Happened], None] = nobody,
) -> pools.Pool:
    settings = Settings(terminate_timeout_s=timeout_s)
    return pools.Pool(cloud_of(ec2), ledger, settings, IMAGE, LIMITS, observe, CLIENT, SystemClock(), changed=changed)
