"""What a user should know before a machine is launched, and what nothing can be done about by then."""

from __future__ import annotations

from datetime import datetime

from cloudrun import prices
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.plan import budget
from cloudrun.plan.quantities import duration_text
from cloudrun.wiring import Cloud


def say_beforehand(cloud: Cloud, settings: Settings, now: datetime, observe: Observer) -> None:
    """Notes of the place, and credentials that end before a machine does: nobody could end it, move its deadline or let
    it upload then."""
    for note in cloud.notes:
        observe(Note(note))
    expiry = cloud.credentials_expire_at()
    if expiry is None:
        return
    left_s = (expiry - now).total_seconds()
    if left_s < settings.deadline_s:
        uploads = ", and what it may upload ends with them" if settings.bucket else ""
        observe(
            Note(
                f"the AWS credentials expire in {duration_text(max(0.0, left_s))} (at {expiry:%H:%M} UTC), before the"
                f" machine's deadline in {duration_text(settings.deadline_s)}{uploads}: log in anew first, or set an"
                " earlier --deadline",
                "warning",
            )
        )


def say_what_differs(cloud: Cloud, settings: Settings, image: Image, observe: Observer) -> None:
    """What was asked for and will not be so there."""
    if words := cloud.differs(settings, image):
        observe(Note(words, "warning"))


def check_budget(settings: Settings, region: str) -> None:
    """Raises UsageError where one machine could cost more, until its deadline, than the settings allow."""
    if settings.budget is None:
        return
    for instance_type in (settings.instance_type, *settings.fallback_types):
        usd = known_price(settings, instance_type, region)
        most = budget.least_usd(usd, settings.deadline_s)
        if most > settings.budget:
            until = budget.lease(0.0, settings.budget, usd, deadline_s=settings.deadline_s, least_s=60.0)
            step = f"--deadline {int(until // 60)}m, or a larger budget" if until else "a larger budget"
            raise UsageError(
                f"a {instance_type} could cost ${most:.4f} until its deadline in {duration_text(settings.deadline_s)},"
                f" and the budget is ${settings.budget:g}",
                next_step=f"{step} (cloudrun config show budget --origin)",
            )


def known_price(settings: Settings, instance_type: str, region: str) -> float:
    """US dollars an hour at most, as these settings would have it. Raises UsageError where nobody knows."""
    listed = prices.usd_per_hour(instance_type, region)
    usd = settings.max_price if settings.spot and settings.max_price else listed.usd_per_hour if listed else None
    if usd is None:
        raise UsageError(
            f"nobody here knows what a {instance_type} costs in {region}, so no budget can be kept",
            next_step="use a common type such as m7i.large, or leave out budget and set an early --deadline",
        )
    return usd
