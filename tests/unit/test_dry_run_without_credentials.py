"""`submit --dry-run` for AWS by somebody who has no credentials: what can be said without them is said first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cloudrun.ledger import Ledger
from tests.command import CliHere


@pytest.fixture
def cli(tmp_path: Path) -> CliHere:
    (tmp_path / "train.py").write_text("print(1)")
    (tmp_path / "cloudrun.toml").write_text('provider = "aws"\n')
    made = CliHere(tmp_path)
    made.environ = {name: value for name, value in made.environ.items() if not name.startswith("AWS_")}
    made.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    return made


@pytest.mark.parametrize(
    ("more", "first"),
    [([], "would run      python train.py"), (["--set", "a=1,2"], "would run      2 cells: 2 to run")],
)
def test_what_would_be_shipped_and_built_is_said_then_what_to_type(cli: CliHere, more: list[str], first: str) -> None:
    done = cli("submit", "train.py", "--dry-run", *more)
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith(first)
    for said in (
        "would launch   one machine of m7i.large\n",
        "only AWS can say",
        "would ship     2 files",
        "would build",
    ):
        assert said in done.stdout
    assert "no AWS credentials were found" in done.stderr
    assert "next: run `aws configure`" in done.stderr
    ledger = Ledger(cli.folder)
    assert (ledger.launches(), ledger.runs()) == ([], [])
    ledger.close()


@pytest.mark.parametrize("more", [[], ["--set", "a=1,2"]])
def test_for_programs_it_is_one_document_with_the_reason(cli: CliHere, more: list[str]) -> None:
    done = cli("submit", "train.py", "--dry-run", "--json", "--instance-type", "m7g.large", *more)
    document = json.loads(done.stdout)
    assert done.returncode == 4
    assert document["problem"].startswith("no AWS credentials")
    assert (document["launch"]["image"], document["launch"]["types"]) == (None, [])
    assert [each["path"] for each in document["ship"]["largest"]] == ["cloudrun.toml", "train.py"]
    assert document["environment"]["python"]
