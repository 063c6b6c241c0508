"""What each run of a unit cost: every second of the unit is paid by the runs that were on it then, in equal parts."""

from __future__ import annotations

from collections.abc import Iterable

Stay = tuple[str, float, float]  # run, from, to: seconds since 1970


def shares(usd_per_hour: float, stays: Iterable[Stay]) -> dict[str, float]:
    """USD by run. `stays` are all attempts on one unit; a run that came back has several.

    A second in which nothing ran is nobody's: what all shares leave of the unit's bill is its overhead.
    """
    events = sorted(
        (moment, is_end, run)
        for run, began, ended in stays
        if ended > began
        for moment, is_end in ((began, False), (ended, True))
    )
    usd_per_s = usd_per_hour / 3600
    cost: dict[str, float] = {}
    here: dict[str, int] = {}
    since = 0.0
    for moment, is_end, run in events:
        for other in here:
            cost[other] = cost.get(other, 0.0) + (moment - since) * usd_per_s / len(here)
        since = moment
        here[run] = here.get(run, 0) + (-1 if is_end else 1)
        if not here[run]:
            del here[run]
    return cost
