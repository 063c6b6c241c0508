"""A block whose run could not be carried out still has its machine."""

from __future__ import annotations

import time

import pytest

from cloudrun import process_unit
from cloudrun.core.errors import TransferError
from cloudrun.core.events import Event, PhaseStarted
from tests.sandbox.conftest import Project


@pytest.mark.slow
def test_a_machine_is_not_idle_because_a_run_of_its_block_could_not_be_shipped(project: Project) -> None:
    script = project.write("train.py", "import pathlib\nprint('accuracy:', pathlib.Path('numbers.txt').read_text())\n")
    numbers = project.write("numbers.txt", "1")

    def spoil(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "ship":
            numbers.write_text("2")

    events = [spoil]
    with process_unit(project=project.root, idle="10s", observe=lambda event: events[0](event)) as unit:
        with pytest.raises(TransferError):
            unit.send_run(script)
        events[0] = lambda _: None
        time.sleep(18)  # somebody thinks about it, for longer than a machine without a client would wait
        assert unit.send_run(script).scores == {"accuracy": 2.0}
    assert [run.state.value for run in project.ledger.runs()] == ["succeeded", "failed"]
