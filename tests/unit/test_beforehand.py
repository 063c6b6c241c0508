"""What is said before a machine is launched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.events import Event, Note
from cloudrun.core.settings import Settings
from cloudrun.units.beforehand import say_beforehand
from cloudrun.wiring import Cloud

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def said(expires: datetime | None, **settings: Any) -> list[Event]:
    told: list[Event] = []
    cloud = cast("Cloud", SimpleNamespace(credentials_expire_at=lambda: expires, notes=()))
    say_beforehand(cloud, Settings(**settings), NOW, told.append)
    return told


@pytest.mark.parametrize("expires", [None, NOW + timedelta(hours=5)])
def test_credentials_that_last_longer_than_the_machine_are_no_news(expires: datetime | None) -> None:
    assert said(expires) == []


def test_credentials_that_end_before_the_machine_are_told_of() -> None:
    (note,) = said(NOW + timedelta(minutes=50))
    assert isinstance(note, Note)
    assert note.level == "warning"
    assert "expire in 50 min (at 12:50 UTC), before the machine's deadline in 4 h" in note.text
    assert "upload" not in note.text
    (note,) = said(NOW - timedelta(minutes=1), bucket="results")
    assert isinstance(note, Note)
    assert "upload" in note.text
