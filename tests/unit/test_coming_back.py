"""Runs whose client, connection, machine or ledger fails at a bad moment: who has them then, and what is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun import attaching, datasets, launching, pulling, reaper, watching, wiring
from cloudrun.attempt import Attempt
from cloudrun.clients import this_client
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    Interrupted,
    LaunchError,
    LedgerError,
    UsageError,
    exit_code_of,
)
from cloudrun.core.events import nobody
from cloudrun.core.records import Artifact, Instance, JobStatus, RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.leases import Attended, lease
from cloudrun.ledger import Ledger
from cloudrun.machine import Machine
from cloudrun.plan import reaping
from cloudrun.prepared import submitted_settings
from cloudrun.project import shipment
from cloudrun.ssh.agent import Outputs
from tests.unit.test_ending import Ec2, Hands, Network, cloud_of, launch_one, open_unit

RUN = "r-1"


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


class Agent:
    """Of a unit with one job. `cuts` is how many requests are cut off; `status` is the job's."""

    def __init__(self, status: JobStatus | None = None, cuts: int = 0, cut_home: int = 0) -> None:
        self.now = status
        self.cuts = cuts
        self.cut_home = cut_home
        self.cancelled = 0

    def status(self, place: str) -> JobStatus | None:
        return self.now

    def cancel(self, place: str, grace_s: float, reason: str) -> JobStatus:
        if self.cuts:
            self.cuts -= 1
            raise ConnectionLost("cut")
        self.cancelled += 1
        self.now = (
            self.now if self.now and self.now.state == "exited" else JobStatus("exited", signal=15, reason=reason)
        )
        return self.now

    def outputs(self, place: str) -> Outputs:
        return Outputs((), (), (), "", {}, "", "")

    def fetch(self, *_: object) -> None: ...

    def fetch_logs(self, *_: object) -> None: ...

    def home(self, place: str) -> None:
        if self.cut_home:
            self.cut_home -= 1
            raise ConnectionLost("cut")


def begun(ledger: Ledger, clock: Hands, instance_id: str = "i-l-1", state: RunState = RunState.RUNNING) -> RunRecord:
    ledger.add_run(RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt(RUN, instance_id, clock.now())
    if state is not RunState.SHIPPING:
        ledger.move_run(RUN, RunState.RUNNING)
    return ledger.run(RUN)


def saved(ledger: Ledger, tmp_path: Path) -> Artifact:
    (tmp_path / "checkpoint").write_text("step 3")
    entry = ledger.artifacts.add(tmp_path / "checkpoint")
    return Artifact("checkpoint", entry.size, entry.sha256)


def an_attempt(ledger: Ledger, clock: Hands, ec2: Ec2, agent: Agent) -> Attempt:
    unit = open_unit(ledger, clock, ec2)
    unit._connection.agent = cast("Any", agent)
    unit._connection.session = cast("Any", SimpleNamespace(is_alive=True, close=lambda: None))
    unit.reconnect = lambda stop=None: None  # type: ignore[method-assign]
    unit.run_ids.append(RUN)
    begun(ledger, clock)
    attempt = Attempt(unit, ledger.run(RUN), 1)
    attempt.started = True
    return attempt


# -- a client that follows its run -----------------------------------------------------------------------------------


def test_a_cut_while_an_interrupted_run_comes_home_costs_nothing(ledger: Ledger, clock: Hands) -> None:
    agent = Agent(cuts=2)
    attempt = an_attempt(ledger, clock, Ec2(), agent)
    attempt.rescue(KeyboardInterrupt())
    assert agent.cancelled == 1
    assert (ledger.run(RUN).state, ledger.run(RUN).artifacts) == (RunState.CANCELLED, ())


def test_a_network_that_stays_away_ends_no_job(ledger: Ledger, clock: Hands) -> None:
    """EC2 says that the machine runs, or says nothing: the job does not depend on this computer."""
    ec2 = Ec2()
    agent = Agent(JobStatus("running"))
    attempt = an_attempt(ledger, clock, ec2, agent)
    error = ConnectionLost("no route to host")
    attempt.rescue(error)
    attempt.unit.close()
    assert (ledger.run(RUN).state, agent.cancelled) == (RunState.RUNNING, 0)
    assert ec2.states == {"i-l-1": "running"}
    unit = ledger.unit("i-l-1")
    assert (unit.client_id, unit.on_exit) == ("", "keep"), "anybody may come for it, and the reaper does not"
    assert f"cloudrun attach {RUN}" in error.next_step
    assert exit_code_of(error, 1) == 8, "it bills on"


def test_a_lost_connection_to_a_machine_that_is_gone_ends_the_run(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2()
    attempt = an_attempt(ledger, clock, ec2, Agent(cuts=100))
    ec2.states["i-l-1"] = "terminated"
    attempt.rescue(ConnectionLost("reset by peer"))
    assert (ledger.run(RUN).state, ledger.run(RUN).end_reason) == (RunState.LOST, EndReason.UNIT_LOST)


def test_outputs_that_the_ledger_cannot_take_wait_whatever_state_it_knows(tmp_path: Path, clock: Hands) -> None:
    class Locked(Ledger):
        locked = False

        def move_run(self, *words: Any, **keywords: Any) -> None:
            if self.locked:
                raise LedgerError("the ledger is locked")
            super().move_run(*words, **keywords)

        def finish_run(self, *words: Any, **keywords: Any) -> RunRecord:
            if self.locked:
                raise LedgerError("the ledger is locked")
            return super().finish_run(*words, **keywords)

    ledger, ec2 = Locked(tmp_path), Ec2()
    attempt = an_attempt(ledger, clock, ec2, Agent(JobStatus("exited", exit_code=0)))
    ledger.locked = True
    error = KeyboardInterrupt()
    attempt.rescue(error)
    attempt.unit.close()
    assert ec2.states == {"i-l-1": "running"}
    assert exit_code_of(error, 130) == 8
    ledger.locked = False
    assert ledger.run(RUN).state is RunState.RUNNING


def test_a_run_that_was_let_go_is_not_told_to_be_another_clients(ledger: Ledger, clock: Hands) -> None:
    attempt = an_attempt(ledger, clock, Ec2(), Agent(JobStatus("running")))
    attempt.unit._let_go = True
    ledger.update_unit("i-l-1", client_id="", on_exit="keep")
    error = KeyboardInterrupt()
    attempt.rescue(error)
    assert error.__notes__ == [f"{RUN} goes on; cloudrun attach {RUN} comes back to it, cloudrun cancel ends it"]


def test_a_new_connection_does_not_move_a_deadline_back(ledger: Ledger, clock: Hands) -> None:
    unit = open_unit(ledger, clock, Ec2())
    later = unit.record.deadline + timedelta(hours=2)
    ledger.update_unit("i-l-1", deadline=later)  # by `cloudrun extend`, in another process
    assert unit._orders().deadline == later.timestamp()


# -- machines that are taken back ------------------------------------------------------------------------------------


def interrupted_once(
    ledger: Ledger, clock: Hands, unit: Any, *_: object, run_id: str | None = None, **__: object
) -> Any:
    if run_id is None:
        begun(ledger, clock)
        ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=())
        error = Interrupted("taken back")
        error.run_id = RUN
        raise error
    ledger.begin_attempt(run_id, unit.instance_id, clock.now())
    return ledger.get(run_id)


def machine_of(ledger: Ledger, clock: Hands, ec2: Ec2) -> Machine:
    return Machine(
        lambda: open_unit(ledger, clock, ec2), lambda: cast("Any", pytest.fail("another machine was launched"))
    )


def test_a_signal_while_a_lost_machine_is_closed_is_not_forgotten(
    ledger: Ledger, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()
    machine = machine_of(ledger, clock, ec2)
    monkeypatch.setattr("cloudrun.machine.runs.execute", lambda *words, **keywords: interrupted_once(
        ledger, clock, *words, **{name: value for name, value in keywords.items() if name != "check"}))  # fmt: skip
    with machine:
        close = machine.unit.close

        def signalled() -> None:
            machine.unit.cancel()
            close()

        machine.unit.close = signalled  # type: ignore[method-assign]
        with pytest.raises(Cancelled):
            machine.carry_through(cast("Any", None))
    assert ledger.run(RUN).state is RunState.LOST


def test_a_block_that_fails_while_another_machine_comes_starts_nothing_on_it(
    ledger: Ledger, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()
    on_its_way, failed = threading.Event(), threading.Event()

    def again() -> Any:
        on_its_way.set()
        failed.wait(30)
        first.cancelled.clear()  # it stands for another machine, which nobody has told to stop
        return first

    machine = Machine(lambda: open_unit(ledger, clock, ec2), again)
    monkeypatch.setattr("cloudrun.machine.runs.execute", lambda *words, **keywords: interrupted_once(
        ledger, clock, *words, **{name: value for name, value in keywords.items() if name != "check"}))  # fmt: skip
    raised: list[BaseException] = []

    def carry() -> None:
        try:
            machine.carry_through(cast("Any", None))
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    with machine:
        first = machine.unit
        thread = threading.Thread(target=carry)
        thread.start()
        assert on_its_way.wait(30)
        machine.cancel()
        failed.set()
        thread.join(30)
    assert [type(error) for error in raised] == [Cancelled]
    assert ledger.run(RUN).state is RunState.LOST


def test_a_queued_run_that_is_cancelled_keeps_what_it_had_saved(ledger: Ledger, clock: Hands, tmp_path: Path) -> None:
    launch_one(ledger, clock, Ec2())
    begun(ledger, clock)
    artifact = saved(ledger, tmp_path)
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=(artifact,))
    run = attaching.cancel(ledger, RUN, grace_s=1, observe=nobody)
    assert (run.state, run.record.artifacts) == (RunState.CANCELLED, (artifact,))


def test_a_taken_back_machine_nobody_has_watched_is_no_lost_run(
    ledger: Ledger, clock: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bucket, or with one that the machine had no time to fill."""
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    artifact = saved(ledger, tmp_path)
    begun(ledger, clock)
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=(artifact,))
    ledger.begin_attempt(RUN, unit.instance_id, clock.now(), store="s3://bucket/cloudrun/x/r-1.2/")
    ledger.move_run(RUN, RunState.RUNNING)
    ledger.update_unit(unit.instance_id, client_id="", on_exit="keep")
    taken = Instance(
        unit.instance_id, "terminated", "m7i.large", None, None, state_reason="Server.SpotInstanceTermination: x"
    )
    ec2.describe = lambda ids: dict.fromkeys(ids, taken)  # type: ignore[method-assign]
    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud_of(ec2))
    monkeypatch.setattr(pulling, "pull_stored", lambda *_: False)
    (seen,) = watching.look(ledger)
    assert (seen.word, seen.next_step) == ("gone", f"cloudrun attach {RUN}")
    assert pulling.pull(ledger, RUN, observe=nobody).state is RunState.QUEUED
    assert [each.outputs for each in ledger.attempts(RUN)] == [(artifact,), (artifact,)]


# -- clients that come back ------------------------------------------------------------------------------------------


@pytest.fixture
def let_go(ledger: Ledger, clock: Hands, monkeypatch: pytest.MonkeyPatch) -> tuple[Ec2, Agent]:
    """A detached run on a machine that nobody holds."""
    ec2, agent = Ec2(), Agent(JobStatus("exited", exit_code=0))
    launch_one(ledger, clock, ec2)
    begun(ledger, clock)
    ledger.update_unit("i-l-1", client_id="", on_exit="keep")

    @contextmanager
    def log_in(*_: object, **__: object) -> Iterator[Any]:
        yield agent

    network = Network()
    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud_of(ec2, network))
    monkeypatch.setattr(pulling, "log_in", log_in)
    monkeypatch.setattr(reaper, "log_in", log_in)
    return ec2, agent


def test_a_cut_after_the_last_word_is_no_failure(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ec2, agent = let_go
    agent.cut_home = 1
    assert pulling.pull(ledger, RUN, observe=nobody).state is RunState.SUCCEEDED
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_pull_that_is_interrupted_as_it_ends_the_machine_leaves_that_to_the_reaper(
    ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2, _ = let_go

    def interrupted(*_: object, **__: object) -> None:
        ledger.move_unit("i-l-1", UnitState.TERMINATING)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launching, "terminate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pulling.pull(ledger, RUN, observe=nobody)
    assert ledger.run(RUN).state is RunState.SUCCEEDED
    ec2.owned = lambda ledger_id, *, launch_id=None: [ec2._instance("i-l-1")]  # type: ignore[method-assign]
    reaper.reap_place(cloud_of(ec2), ledger, clock, nobody, dry_run=False)
    assert ec2.states == {"i-l-1": "terminated"}


def test_what_somebody_began_to_end_is_ended(ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent]) -> None:
    ledger.move_unit("i-l-1", UnitState.TERMINATING)
    why = reaping.doomed(ledger.unit("i-l-1"), None, let_go[0]._instance("i-l-1"), frozenset(), clock.now())
    assert why is not None


def test_one_unit_is_in_the_hands_of_one_client(ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent]) -> None:
    unit = ledger.unit("i-l-1")
    with lease(ledger, unit, clock) as held:
        with pytest.raises(Attended), lease(ledger, unit, clock):
            pass
        with pytest.raises(Attended):
            pulling.pull(ledger, RUN, observe=nobody)
        # On another computer five silent minutes count as death.
        assert any(thread.name == "cloudrun-heartbeat" for thread in threading.enumerate())
        assert held.holds()
        ledger.update_unit("i-l-1", client_id="c-other")  # it slept, and was taken for dead
        held.leave()
        assert not held.holds()
    assert ledger.unit("i-l-1").client_id == "c-other"


def test_the_reaper_leaves_a_unit_that_somebody_has_just_come_for(
    ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent]
) -> None:
    ec2, agent = let_go
    agent.now = JobStatus("running")
    ledger.update_unit("i-l-1", client_id="c-dead", on_exit="terminate")
    seen = ledger.unit("i-l-1")
    client = this_client(clock.now())
    ledger.register_client(client)
    ledger.take_unit("i-l-1", client.client_id, of="c-dead", on_exit="terminate")
    assert reaper._end_unit(cloud_of(ec2), ledger, clock, nobody, seen) == ""
    assert (agent.cancelled, ec2.states) == (0, {"i-l-1": "running"})


def test_a_machine_whose_outputs_find_no_room_is_as_it_was_after_a_reap(
    ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise LedgerError("no space left on device")

    ledger.update_unit("i-l-1", client_id="c-dead", on_exit="terminate")
    monkeypatch.setattr(reaper, "pull_run", full)
    before = ledger.unit("i-l-1")
    assert "no space" in reaper._end_unit(cloud_of(let_go[0]), ledger, clock, nobody, before)
    assert ledger.unit("i-l-1") == before
    assert let_go[0].states == {"i-l-1": "running"}


def test_a_run_that_never_started_is_neither_pulled_nor_kept(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ec2, agent = let_go
    agent.now = None
    with pytest.raises(CloudrunError, match="never started") as refused:
        pulling.pull(ledger, RUN, observe=nobody)
    assert f"cloudrun cancel {RUN}" in refused.value.next_step
    assert attaching.cancel(ledger, RUN, grace_s=0, observe=nobody).state is RunState.CANCELLED
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_run_without_a_machine_is_told_to_be_attached(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=())
    for act in (
        lambda: pulling.pull(ledger, RUN, observe=nobody),
        lambda: attaching.extend(ledger, RUN, 60, observe=nobody),
    ):
        with pytest.raises(UsageError) as refused:
            act()
        assert refused.value.next_step == f"cloudrun attach {RUN}"


def test_a_machine_that_does_not_run_is_not_told_to_boot(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    let_go[0].states["i-l-1"] = "stopped"
    with pytest.raises(ConnectionLost, match="i-l-1 is stopped"):
        attaching.extend(ledger, RUN, 60, observe=nobody)
    with pytest.raises(ConnectionLost, match="i-l-1 is stopped") as refused:
        pulling.pull(ledger, RUN, observe=nobody)
    assert not isinstance(refused.value, LaunchError)
    assert ledger.run(RUN).state is RunState.RUNNING


def test_a_thousand_runs_are_one_question_for_each_place(
    ledger: Ledger, clock: Hands, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2, _ = let_go
    for number in range(40):
        run_id = f"r-many-{number}"
        ledger.add_run(RunRecord(run_id, "many", "many.py", RunState.QUEUED, clock.now() + timedelta(seconds=number)))
        ledger.begin_attempt(run_id, "i-l-1", clock.now())
    asked: list[str] = []
    describe = ec2.describe
    ec2.describe = lambda ids: asked.append("describe") or describe(ids)  # type: ignore[method-assign,func-returns-value]

    @contextmanager
    def connected(*_: object, **__: object) -> Iterator[Any]:
        asked.append("connect")
        yield SimpleNamespace(agent=let_go[1])

    monkeypatch.setattr(watching, "_connected", connected)
    seen = watching.look(ledger)
    assert [each.run.run_id for each in seen] == [RUN, *(f"r-many-{number}" for number in range(40))]
    assert {each.word for each in seen} == {"done"}
    assert asked == ["describe", "connect"]


def test_what_was_allowed_when_a_run_was_submitted_is_allowed_when_it_comes_home(ledger: Ledger, clock: Hands) -> None:
    launch_one(ledger, clock, Ec2())
    settings = Settings(output_max_bytes=50_000_000_000, output_max_files=7, data=("s3://bucket/key",))
    submission = {"root": "/elsewhere", "settings": {**asdict(settings), "of a newer cloudrun": 1}}
    run = RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now(), submission=submission)
    ledger.begin_run(run, "i-l-1", clock.now())
    run = ledger.run(RUN)
    assert submitted_settings(run) == settings
    home = pulling.homecoming(ledger, run, ledger.attempts(RUN)[0], "", nobody, clock)
    assert (home.max_bytes, home.max_files) == (50_000_000_000, 7)


# -- data ------------------------------------------------------------------------------------------------------------


def goods(root: Path, *data: str, refuse_bytes: int = 1_000_000) -> Any:
    return shipment(root / "train.py", warn_bytes=refuse_bytes, refuse_bytes=refuse_bytes, data=data)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "big" / "deep").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "cloudrun.toml").touch()
    (root / "train.py").write_text("print(1)")
    (root / "big" / "a.csv").write_text("1,2,3\n" * 1000)
    (root / "big" / "deep" / "b.csv").write_text("4")
    monkeypatch.chdir(root)
    return root


def test_data_inside_the_project_may_be_larger_than_what_is_shipped(root: Path) -> None:
    with pytest.raises(UsageError, match="to ship"):
        goods(root, refuse_bytes=1000)
    small = goods(root, "big", refuse_bytes=1000)
    assert [entry.path for entry in small.entries] == ["cloudrun.toml", "train.py"]


@pytest.mark.parametrize("said", ["../big", "../sub/../big", "{root}/big", "{link}/big"])
def test_data_is_where_it_is_however_it_is_said(root: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root / "sub")
    source = said.format(root=root, link=root.parent / "link")
    (data,) = datasets.resolve([source], goods(root, source), cast("Any", None))
    assert data.link == "big"
    assert [entry.path for entry in data.entries] == ["a.csv", "deep/b.csv"]


def test_links_in_a_data_folder_are_what_they_lead_to(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "c.csv").write_text("7")
    (root / "big" / "far").symlink_to(root.parent / "elsewhere")
    (root / "big" / "one.csv").symlink_to(root.parent / "elsewhere" / "c.csv")
    (data,) = datasets.resolve(["big"], goods(root, "big"), cast("Any", None))
    assert [entry.path for entry in data.entries] == ["a.csv", "deep/b.csv", "far/c.csv", "one.csv"]


@pytest.mark.parametrize(
    ("link", "leads_to", "words"), [("nowhere", "absent", "leads nowhere"), ("ring", "..", "above it")]
)
def test_a_link_that_is_no_data_is_said(root: Path, link: str, leads_to: str, words: str) -> None:
    (root / "big" / "deep" / link).symlink_to(leads_to)
    with pytest.raises(UsageError, match=words):
        datasets.resolve(["big"], goods(root, "big"), cast("Any", None))


def test_data_that_cannot_be_read_is_the_users_to_mend(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = root / "big" / "loop"
    loop.symlink_to("loop")
    with pytest.raises(UsageError):
        datasets.resolve(["big"], goods(root, "big"), cast("Any", None))
    with pytest.raises(UsageError, match="there is no"):
        datasets.resolve(["big/" + "x" * 300], goods(root, "big"), cast("Any", None))


def test_a_script_is_not_data(root: Path) -> None:
    with pytest.raises(UsageError, match="the script is in"):
        datasets.resolve(["train.py"], goods(root), cast("Any", None))
