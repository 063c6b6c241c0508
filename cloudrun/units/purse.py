"""The budget of machines that follow each other, where the provider takes one back: each has what the ones before it
have left."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.costs import usd_text
from cloudrun.plan.quantities import duration_text
from cloudrun.units.beforehand import check_budget, known_price
from cloudrun.units.costs import price_of

LEAST_S = 60.0  # a machine that could not live so long is not worth its boot


class Purse:
    """For one block of work, or one run. A machine that was there before counts from when it was taken for this: what
    it cost until then was of another budget."""

    def __init__(self, ledger: Ledger, run_id: str | None = None) -> None:
        """`run_id`: a run whose earlier attempts, by whichever process, have cost something already."""
        self._ledger = ledger
        self._since: dict[str, datetime] = {}
        for attempt in ledger.attempts(run_id) if run_id is not None else ():
            is_first = ledger.attempts_on([attempt.instance_id])[0].run_id == run_id
            unit = ledger.unit(attempt.instance_id)
            self.pays_for(unit, unit.created_at if is_first else attempt.started_at)

    def pays_for(self, unit: UnitRecord, since: datetime) -> None:
        self._since.setdefault(unit.instance_id, since)

    def spent_usd(self, *, apart_from: str = "") -> float:
        """What those that have ended cost, and what the others can until they power themselves off."""
        usd = 0.0
        for name, since in self._since.items():
            if name == apart_from:
                continue
            unit = self._ledger.unit(name)
            until = unit.ended_at.timestamp() if unit.ended_at else unit.deadline.timestamp() + budget.POWER_OFF_S
            usd += budget.cost_usd(price_of(self._ledger, unit) or 0.0, until - since.timestamp())
        return usd

    def allow(self, settings: Settings, region: str, observe: Observer) -> Settings:
        """For the next machine: the same, or with a deadline that what is left pays for. Raises UsageError where it
        pays for none, and where the first one could cost more than there is."""
        spent_usd = self.spent_usd()
        if settings.budget is None or not spent_usd:
            check_budget(settings, region)
            return settings
        types = (settings.instance_type, *settings.fallback_types)
        dearest = max(known_price(settings, each, region) for each in types)
        left_usd = settings.budget - spent_usd
        life_s = budget.lease(0.0, left_usd, dearest, deadline_s=settings.deadline_s, least_s=LEAST_S)
        if life_s is None:
            raise UsageError(
                f"{usd_text(spent_usd)} of the budget of ${settings.budget:g} are spent: the rest pays for no machine",
                next_step="submit again with a larger budget",
            )
        if life_s < settings.deadline_s - 1:
            words = f"{usd_text(left_usd)} of the budget are left: the next machine's deadline is in"
            observe(Note(f"{words} {duration_text(life_s)}", "warning"))
        return replace(settings, deadline_s=life_s)
