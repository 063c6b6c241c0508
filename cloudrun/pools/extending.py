"""Another deadline for a machine of a pool: recorded and told in a thread of its own, believed where it was told."""

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

    Money is counted to the later of the two deadlines from now on, and to a nearer one once the machine has it. Work is
    planned to the earlier where that is the new one, and where the machine was not told.
    """
    unit = hand.unit
    if unit is None or not unit.opened:
        return  # nobody can tell it yet: it is asked for again when somebody can
    before = hand.deadline if hand.sure_until is None else hand.sure_until
    is_nearer = deadline < before
    hand.deadline = max(hand.deadline, deadline)  # the later of two, whichever it comes to hold
    if is_nearer:
        hand.sure_until = deadline

    def took_it() -> None:
        hand.sure_until = None
        if is_nearer:
            hand.deadline = deadline

    def did_not() -> None:
        hand.sure_until = min(before, deadline)

    def move() -> None:
        try:
            moment = datetime.fromtimestamp(deadline, UTC)
            move_deadline(cloud, ledger, ledger.unit(unit.instance_id), moment, unit.session, unit.agent, observe)
            tell(took_it)
        except Exception as error:  # noqa: BLE001  # whatever it is: the machine may end as early as before
            tell(did_not)
            what = "may live longer than the budget pays for" if is_nearer else "has no more time than before"
            observe(Note(f"{unit.instance_id} {what}: {error}", "warning"))

    Thread(target=move, name="cloudrun-extend", daemon=True).start()
