"""What is said before a machine is launched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.core.events import Event, Note
from cloudrun.core.settings import Settings
from cloudrun.units.beforehand import check_budget, say_beforehand
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


@pytest.mark.parametrize(
    ("settings", "message", "step"),
    [
        (Settings(budget=0.1), "could cost \\$0.40", "--deadline 58m"),
        (Settings(budget=0.1, fallback_types=("c5.4xlarge",), deadline_s=1800), "a c5.4xlarge", "--deadline"),
        (Settings(budget=0.0001), "could cost", "a larger budget"),
        (Settings(budget=5, instance_type="q9.huge"), "nobody here knows", "leave out budget"),
    ],
    ids=str,
)
def test_a_machine_that_could_cost_more_than_the_budget_is_refused(settings: Settings, message: str, step: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_budget(settings, "us-east-1")
    assert step in caught.value.next_step


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(budget=0.41),
        Settings(budget=0.1, deadline_s=58 * 60),
        Settings(budget=0.1, spot=True, max_price=0.02),
        Settings(instance_type="q9.huge"),
    ],
    ids=str,
)
def test_a_machine_within_the_budget_or_without_one_is_let_through(settings: Settings) -> None:
    check_budget(settings, "us-east-1")
