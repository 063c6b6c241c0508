"""What a user should know before a machine is launched, and what nothing can be done about by then."""

from __future__ import annotations

from datetime import datetime

from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
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
