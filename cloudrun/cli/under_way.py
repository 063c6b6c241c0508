"""What is under way in words: a run or a grid as its machines tell it, where `show` and `ps` have asked them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from cloudrun.core.clock import utc_text
from cloudrun.plan.quantities import counted, duration_text

if TYPE_CHECKING:
    from cloudrun.grids.watching import SeenGrid
    from cloudrun.runs.watching import Seen

WORDS = {
    "waiting": "waits for its turn on its machine",
    "done": "is done, and not home yet",
    "failed": "has failed, and is not home yet",
    "cancelled": "was ended, and is not home yet",
    "lost": "has ended, and is not home yet",
    "in its bucket": "is done, and waits in its bucket",
    "interrupted": "was interrupted, and waits for another machine",
}


def running_s(seen: Seen, now: datetime) -> float:
    """How long its job has run, on its machine's clock; 0 where it has not begun, or nobody knows."""
    if seen.status is None or seen.status.started_at is None:
        return 0.0
    return max(0.0, (seen.status.ended_at or now.timestamp()) - seen.status.started_at)


def standing(seen: Seen, now: datetime) -> str:
    """What a run does now, to be said behind its name: "is running, for 12 s now". Of one whose machine does not say
    it, what the ledger has heard last."""
    if seen.word == "running":
        took = running_s(seen, now)
        return f"is running, for {duration_text(took)} now" if took else "is running"
    if seen.word in ("gone", "unknown"):
        return f"was {seen.run.state} when it was last heard of"
    return WORDS.get(seen.word, f"is {seen.word}")


def cells_of(seen: SeenGrid) -> list[str]:
    """How many cells of a grid are what."""
    away = seen.there["done"] + seen.there["failed"]
    words = {"running": seen.running, "waiting": seen.there["waiting"], "failed": seen.failed}
    words |= {"cancelled": seen.cancelled, "not home": away}
    if not seen.attended:
        words["without a machine"] = seen.left
    cells = counted(seen.grid.cells, "cell")
    return [f"{seen.done} of {cells} done", *(f"{count} {word}" for word, count in words.items() if count)]


def document(seen: Seen) -> dict[str, Any]:
    """What `show --json` says of a run beside what the ledger has."""
    return {
        "doing": seen.word,
        "attended": seen.attended,
        "deadline": utc_text(seen.deadline) if seen.deadline else None,
        "next_step": seen.next_step,
        "problem": seen.problem,
    }
