"""More time for a machine of a pool: recorded and told in a thread of its own, believed where it was told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread

from cloudrun.core.events import Note, Observer
from cloudrun.ledger import Ledger
from cloudrun.pools.hands import Hand
from cloudrun.runs.deadlines import move_deadline
from cloudrun.wiring import Cloud


def extend(
    cloud: Cloud,
    ledger: Ledger,
    observe: Observer,
    hand: Hand,
    deadline: float,
    tell: Callable[[Callable[[], None]], None],
) -> None:
    """Move the deadline of the hand's unit, to seconds since 1970. `tell` has something done by the deciding thread.

    Money is counted to the later of the two deadlines from now on; where the machine was not told, work is planned to
    the earlier from then on.
    """
    unit = hand.unit
    if unit is None or not unit.opened:
        return  # nobody can tell it yet: it is asked for again when somebody can
    before = hand.deadline if hand.sure_until is None else hand.sure_until
    hand.deadline = max(hand.deadline, deadline)  # the later of two, whichever it comes to hold

    def sure(until: float | None) -> None:
        hand.sure_until = until

    def move() -> None:
        try:
            moment = datetime.fromtimestamp(deadline, UTC)
            move_deadline(cloud, ledger, ledger.unit(unit.instance_id), moment, unit.session, unit.agent, observe)
            tell(lambda: sure(None))
        except Exception as error:  # noqa: BLE001  # whatever it is: the machine may end as early as before
            tell(lambda: sure(before))
            observe(Note(f"{unit.instance_id} has no more time than before: {error}", "warning"))

    Thread(target=move, name="cloudrun-extend", daemon=True).start()
