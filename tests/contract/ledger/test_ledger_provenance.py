"""What runs were made of, as the ledger keeps it."""

from __future__ import annotations

from dataclasses import replace

from cloudrun.core.records import Environment, System, Wheel
from cloudrun.ledger import Ledger

ENVIRONMENT = Environment(
    "3.11",
    "arm64",
    ("joblib==1.5.0", "numpy==2.2.0"),
    "requirements.txt",
    "e1",
    System(("libgomp1",), "/home/me/extra.yml", "d" * 64),
    (Wheel("/home/me/wheels/mine-1.0-py3-none-any.whl", "a" * 64),),
)


def test_an_environment_comes_back_as_it_was_without_its_secrets(ledger: Ledger) -> None:
    ledger.keep_environment(replace(ENVIRONMENT, logins="machine pypi.example login me password hunter2"))
    assert ledger.environment("e1") == ENVIRONMENT
    assert all(b"hunter2" not in path.read_bytes() for path in ledger.home.rglob("*") if path.is_file())


def test_an_environment_that_was_not_kept_is_none(ledger: Ledger) -> None:
    assert ledger.environment("e2") is None
