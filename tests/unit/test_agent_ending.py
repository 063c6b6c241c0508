"""Wishes for a job's end, and documents that must not be lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudrun.agent import durable, ending
from cloudrun.core.rundir import RunDir, read_object


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_the_first_reason_stays_and_the_last_grace_is_told(run: RunDir) -> None:
    ending.wish(run, 30.0, "deadline")
    ending.wish(run, 1.0, "cancelled")
    assert ending.read(run) == (1.0, "deadline")


@pytest.mark.parametrize("spoilt", ["{}", '{"grace_s": "x", "reason": 7}', '{"grace_s": null, "reason": "no reason"}'])
def test_a_wish_without_sense_is_a_cancellation_at_once(run: RunDir, spoilt: str) -> None:
    run.cancel.write_text(spoilt)
    assert ending.read(run) == (0.0, "cancelled")


def test_no_wish_is_none(run: RunDir) -> None:
    assert ending.read(run) is None
    run.cancel.write_text("[]")
    assert ending.read(run) is None


def test_an_earlier_time_to_kill_wins_and_a_later_one_does_not(run: RunDir) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as job:
        assert job.stdout is not None
        job.stdout.readline()
        end = ending.Ending(run, job.pid)
        ending.wish(run, 1000.0, "deadline")
        end.hear()
        assert job.poll() is None
        for grace_s in (0.0, 2000.0):
            ending.wish(run, grace_s, "cancelled")
            end.hear()
        assert job.wait(120) == -9
        assert end.reason == "deadline"
        assert not end.given_up()


def test_a_document_is_written_where_a_job_has_put_a_folder(run: RunDir) -> None:
    (run.status / "inside").mkdir(parents=True)
    durable.write_at_last(run.status, {"state": "exited"})
    assert read_object(run.status) == {"state": "exited"}


def test_where_the_folder_is_gone_there_is_nothing_to_write(tmp_path: Path) -> None:
    durable.write_at_last(tmp_path / "gone" / "status.json", {"state": "exited"})
    assert list(tmp_path.iterdir()) == []


def test_room_that_is_kept_for_a_document_reads_as_none(run: RunDir) -> None:
    durable.reserve(run.ended)
    assert read_object(run.ended) is None
    before = run.ended.stat().st_size
    assert durable._overwrite(run.ended, {"pid": 1})
    assert read_object(run.ended) == {"pid": 1}
    assert run.ended.stat().st_size == before


def test_what_is_there_already_is_not_blanked_to_keep_room(run: RunDir) -> None:
    run.ended.write_text(json.dumps({"pid": 1, "at": time.time()}))
    durable.reserve(run.ended)
    assert (read_object(run.ended) or {})["pid"] == 1
