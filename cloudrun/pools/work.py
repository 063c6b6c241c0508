"""What a pool works through, and what it takes over of a client that is dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloudrun.core.records import UnitRecord
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs.slots import Turn


class Work(Protocol):
    """What a pool works through. All but `carry_out` is called by the deciding thread."""

    def backlog(self) -> Backlog: ...

    def take(self, beside: Sequence[Any]) -> Any:
        """The task that is next for a unit that has those; None where there is none after all."""

    def begin(self, given: Sequence[tuple[str, Any]]) -> Sequence[Any]:
        """Write down what is being given to units now, (instance id, task) each, all at once. Returns the tasks in that
        order, as they are to be carried out."""

    def carry_out(self, unit: PooledUnit, task: Any, turn: Turn) -> None:
        """In a thread of the unit's. `turn` is to be taken before it begins there, and ended once only the way home is
        left of it, and the unit can begin another. Raises what went wrong with the machine, not with the task."""

    def ended(self, task: Any, error: BaseException | None) -> None:
        """A task is over, or has to be done once more. Raises what is to end all of it."""

    def stopped(self) -> str:
        """Why no further task is to be started; "" where they are."""

    def is_open(self) -> bool:
        """Whether more tasks may come yet."""

    def given_up(self, why: str, error: BaseException | None) -> None:
        """Tasks wait, and no machine ever will be there for them. `error`: what put an end to launching. Raises what is
        to end all of it."""


@dataclass(frozen=True)
class Joined:
    """What a dead client has left: `units` with the tasks on them, `ending` ones that are good for nothing, and
    `launches` whose keys and groups may still be there. `spent_usd`: on what has ended."""

    units: tuple[tuple[UnitRecord, float, tuple[Any, ...]], ...] = ()  # with what each costs an hour
    ending: tuple[str, ...] = ()
    launches: tuple[str, ...] = ()
    spent_usd: float = 0.0
