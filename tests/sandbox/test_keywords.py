"""Settings that are said of one run of a block."""

from __future__ import annotations

import pytest

from cloudrun import process_unit
from cloudrun.core.errors import UsageError
from cloudrun.core.states import EndReason
from tests.sandbox.conftest import Project


def test_one_run_of_a_block_may_have_its_own_data_and_limits(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    outside = project.root.parent / "numbers.txt"
    outside.write_text("42")
    project.write("reads.py", "print('accuracy:', open('data/numbers.txt').read())\n")
    project.write("sleeps.py", "import os, time\nassert not os.path.exists('data')\ntime.sleep(120)\n")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        with pytest.raises(UsageError, match="deadline is a setting of the machine") as refused:
            unit.send_run("reads.py", deadline="2h")
        assert "process_unit(deadline=" in refused.value.next_step
        with pytest.raises(UsageError, match="no keyword dota"):
            unit.send_run("reads.py", dota=str(outside))
        assert unit.send_run("reads.py", data=outside).scores == {"accuracy": 42.0}
        ended = unit.send_run("sleeps.py", wall_time=0.5, check=False)
        assert ended.end_reason is EndReason.WALL_TIME
    assert len(project.ledger.runs()) == 2, "what was refused is no run"
