"""What a pool's machines have cost and may cost yet, those among them that are on their way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cloudrun.plan import budget
from cloudrun.plan.scheduling import UnitView
from cloudrun.pools.hands import Hand


class Bill:
    """For the deciding thread. A machine that was told to end costs until EC2 says that it is gone."""

    def __init__(self, patience_s: float) -> None:
        """What is not gone `patience_s` seconds after the pool has let go of it keeps its money, not its place."""
        self.ended_usd = 0.0
        self._patience_s = patience_s
        self._leaving: dict[str, tuple[Hand, float]] = {}  # nothing of ours is on them since then, and they may live

    def leaves(self, hand: Hand, now: float) -> None:
        """It was told to end."""
        self._leaving[hand.record.instance_id] = hand, now

    def stays(self, hand: Hand, now: float) -> None:
        """It is left to its deadline, and paid for until then."""
        self.ended_usd += budget.worst_usd(now, [hand.view()], 0.0)

    def spent_usd(self, hands: Iterable[Hand], now: float) -> float:
        """What has ended and what has run so far, at the price that was known."""
        live = [*hands, *(hand for hand, _ in self._leaving.values())]
        return self.ended_usd + sum(budget.cost_usd(hand.usd_per_hour, now - hand.requested_at) for hand in live)

    def settle(self, is_ending: Callable[[str], bool], now: float) -> tuple[list[UnitView], list[UnitView]]:
        """Count what has gone, at what it cost. Returns what is still being ended, and what should be gone by now."""
        leaving: list[UnitView] = []
        stuck: list[UnitView] = []
        for instance_id, (hand, since) in list(self._leaving.items()):
            if not is_ending(instance_id):
                del self._leaving[instance_id]
                self.ended_usd += budget.cost_usd(hand.usd_per_hour, now - hand.requested_at)
            elif now - since < self._patience_s:
                leaving.append(hand.view())
            else:
                stuck.append(hand.view())
        return leaving, stuck

    def close(self, is_ending: Callable[[str], bool], now: float) -> None:
        """Nobody will look again: what is not gone is counted to its deadline."""
        leaving, stuck = self.settle(is_ending, now)
        self.ended_usd += budget.worst_usd(now, leaving + stuck, 0.0)
        self._leaving.clear()
