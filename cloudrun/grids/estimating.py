"""What a grid will take and cost, from what the ledger knows of its cells and of machines like those it will have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudrun.core.records import MachineTimes
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan.estimate import Estimate, estimate, usual_times
from cloudrun.plan.scheduling import Limits, Terms

# What a machine takes beside its work until one has been seen: guesses, like those for booting.
UNSEEN = {"sandbox": MachineTimes(3.0, 2.0, 1.0), "aws": MachineTimes(60.0, 40.0, 30.0)}


def estimate_of(
    ledger: Ledger,
    cells: int,
    expected_s: Sequence[float] | None,
    *,
    settings: Settings,
    region: str,
    environment: str,
    limits: Limits,
    terms: Callable[[str], Terms],
    spent_usd: float = 0.0,
) -> Estimate:
    """Of `cells` that are to be run; `expected_s` as for `plan.estimate`, `environment` the fingerprint of theirs."""
    seen = ledger.machine_times(settings.provider, region)
    return estimate(
        cells,
        expected_s,
        units=limits.max_units,
        slots=limits.slots,
        usd_per_hour=limits.usd_per_hour,
        beside=usual_times(seen, environment, UNSEEN[settings.provider]),
        deadline_s=limits.deadline_s,
        budget_usd=limits.budget_usd,
        dearest_usd_per_hour=max((terms(name).usd_per_hour for name in settings.fallback_types), default=0.0),
        spent_usd=spent_usd,
    )
