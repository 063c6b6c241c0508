"""More time for a machine of a pool: recorded and told in a thread of its own, believed where it was told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread

from cloudrun.core.errors import CloudrunError
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

    Until the machine has agreed, money is counted to the later of the two deadlines and work planned to the earlier.
    """
    unit = hand.unit
    if unit is None:
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
        except CloudrunError as error:  # it may end as early as before
            tell(lambda: sure(before))
            observe(Note(f"{error}", "warning"))

    Thread(target=move, name="cloudrun-extend", daemon=True).start()
