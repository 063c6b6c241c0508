"""`process_pool`: futures that are runs, grids that share machines with them, and an end that leaves no machine."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Executor, Future, as_completed, wait

import pytest

from cloudrun import process_pool
from cloudrun.core.errors import Cancelled, JobFailed, UsageError
from cloudrun.core.states import RunState
from cloudrun.functions.calls import RunFuture
from cloudrun.sandbox import client
from tests.sandbox.conftest import Aws, Project, Start, wait_for

SCRIPT = """import json, os, sys
params = json.loads(os.environ["CLOUDRUN_PARAMS"])
if params["a"] < 0:
    sys.exit("a is negative")
print(json.dumps({"twice": 2 * params["a"]}))
"""


class Negative(ValueError):
    pass


def root_of(x: float, scale: float = 1.0) -> float:
    print("asked for", x)
    if x < 0:
        raise Negative(x)
    return scale * math.sqrt(x)


def sleeps(seconds: float) -> None:
    import time

    time.sleep(seconds)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[process_pool, Project]]:
    """One pool for most of these tests: it serves several grids and submissions, as a user's does."""
    client.ensure()
    project = Project(tmp_path_factory.mktemp("project"))
    project.write("train.py", SCRIPT)
    with process_pool(units=2, project=project.root, keep_going=True) as pool:
        yield pool, project
    assert project.ledger.units() == []
    assert list((project.root / ".cloudrun" / "calls").glob("*")) == [], "nothing of what travelled is left"


def test_futures_are_futures_and_know_their_runs(shared: tuple[process_pool, Project]) -> None:
    pool, _ = shared
    assert isinstance(pool, Executor)
    futures = [pool.submit(root_of, x, scale=2.0) for x in (4.0, 9.0)]
    assert {future.result() for future in as_completed(futures, timeout=200)} == {4.0, 6.0}
    bad = pool.submit(root_of, -1.0)
    done, _ = wait([bad], return_when=FIRST_EXCEPTION, timeout=200)
    assert done == {bad}
    with pytest.raises(Negative) as raised:
        bad.result()
    assert "in root_of\n    raise Negative(x)" in "".join(raised.value.__notes__)
    run = futures[0].run
    assert run is not None
    assert (run.name, run.state, run.log()) == ("root_of", "succeeded", "asked for 4.0\n")
    assert bad.run is not None
    assert bad.run.state == "failed"
    assert "Negative" in bad.run.log("stderr")


def test_map_is_in_order_also_in_chunks_and_gives_up_in_time(shared: tuple[process_pool, Project]) -> None:
    pool, project = shared
    before = len(project.ledger.runs())
    assert list(pool.map(root_of, [1.0, 4.0, 9.0, 16.0, 25.0], chunksize=3)) == [1, 2, 3, 4, 5]
    assert len(project.ledger.runs()) == before + 2
    assert list(pool.map(root_of, [1.0, 4.0], [3.0, 5.0])) == [3.0, 10.0]
    with pytest.raises(TimeoutError):
        list(pool.map(sleeps, [2.0], timeout=0.01))


def test_what_runs_is_not_cancelled_and_what_waits_is(shared: tuple[process_pool, Project]) -> None:
    pool, project = shared
    before = len(project.ledger.runs())
    results = pool.map(sleeps, [0.1, *[1.0] * 30])
    next(results)
    results.close()
    assert pool.submit(root_of, 1.0).result(120) == 1.0, "the rest of them is not waited for"
    assert len(project.ledger.runs()) < before + 30
    futures = [pool.submit(sleeps, 2.0) for _ in range(8)]
    wait_for(lambda: any(future.running() for future in futures), "one to run")
    cancelled = [future for future in futures if future.cancel()]
    assert 0 < len(cancelled) < 8
    done, pending = wait(futures, timeout=200)
    assert not pending
    assert {future for future in done if future.cancelled()} == set(cancelled)


def test_callbacks_may_submit_and_fail(shared: tuple[process_pool, Project]) -> None:
    pool, _ = shared
    following: Future[RunFuture] = Future()

    def ends_the_program(_: Future[float]) -> None:
        raise SystemExit(3)

    def goes_on(future: Future[float]) -> None:
        following.set_result(pool.submit(root_of, future.result()))

    for callback in (ends_the_program, goes_on):
        pool.submit(root_of, 16.0).add_done_callback(callback)
    assert following.result(120).result(120) == 2.0
    assert pool.submit(root_of, 1.0).result(120) == 1.0


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_no_part_in_it(shared: tuple[process_pool, Project]) -> None:
    pool, _ = shared
    hears, tells = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            pool.submit(root_of, 1.0)
        except RuntimeError as error:
            tells.send(str(error))
        pool.shutdown()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(150)
    assert hears.poll()
    assert "forked" in hears.recv()
    assert process.exitcode == 0
    assert pool.submit(root_of, 1.0).result(120) == 1.0


def test_a_key_is_called_once(shared: tuple[process_pool, Project]) -> None:
    pool, _ = shared
    first = pool.submit_keyed({"x": 4}, root_of, 4.0)
    assert pool.submit_keyed({"x": 4}, root_of, 4.0) is first, "under way"
    assert first.result(120) == 2.0
    run = first.run
    del first
    again = pool.submit(root_of, 4.0, key={"x": 4})
    assert again.done(), "from the ledger, as another process finds it"
    assert again.result() == 2.0
    assert again.run == run
    assert pool.submit_keyed({"x": 5}, root_of, 9.0).result(120) == 3.0
    assert pool.submit(sorted, ["b", "A"], key=str.lower).result(120) == ["A", "b"], "a parameter of its own"


def test_grids_and_functions_share_the_machines(
    shared: tuple[process_pool, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, project = shared
    monkeypatch.chdir(project.root)
    one = pool.grid("train.py", {"a": [1, 2, -1]})
    two = pool.grid("train.py", [{"a": 5}, {"a": 6}], name="other")
    future = pool.submit(root_of, 49.0)
    runs = {run.params["a"]: run for run in one}
    assert {a: run.state for a, run in runs.items()} == {1: "succeeded", 2: "succeeded", -1: "failed"}
    assert runs[2].scores == {"twice": 4.0}
    assert sorted(run.scores["twice"] for run in two) == [10.0, 12.0]
    assert future.result(120) == 7.0
    again = list(pool.grid("train.py", {"a": [1, 2]}))
    assert [run.run_id for run in again] == [runs[1].run_id, runs[2].run_id], "from the ledger"
    assert len(list(pool.grid("train.py", {"a": [1]}, again=True))) == 1
    units = {run.instance_id for run in project.ledger.runs()}
    assert len(units) <= 2, "the same ones for all of it"


def test_a_loop_that_is_left_early_leaves_the_rest_to_the_next_time(
    shared: tuple[process_pool, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, project = shared
    monkeypatch.chdir(project.root)
    project.write("slow.py", "import time; time.sleep(0.5)")
    cells = {"a": list(range(20))}
    for _ in pool.grid("slow.py", cells):
        break
    (grid,) = [grid for grid in project.ledger.grids() if grid.script == "slow.py"]
    wait_for(lambda: project.ledger.grid(grid.grid_id).state == "stopped", "what runs to end")
    assert 0 < project.ledger.counts(grid.grid_id)[RunState.QUEUED] < 20
    assert sorted(run.params["a"] for run in pool.grid("slow.py", cells)) == cells["a"]
    assert project.ledger.grid(grid.grid_id).state == "done"


def test_a_grid_can_be_cancelled_from_elsewhere_and_the_pool_goes_on(
    shared: tuple[process_pool, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, project = shared
    monkeypatch.chdir(project.root)
    project.write("long.py", "import time; time.sleep(600)")
    cells = pool.grid("long.py", {"a": list(range(6))})
    (grid,) = [grid for grid in project.ledger.grids() if grid.script == "long.py"]
    wait_for(lambda: project.ledger.counts(grid.grid_id)[RunState.RUNNING] > 0, "a cell to run")
    done = project.cloudrun("cancel", grid.grid_id, "--grace", "1s")
    assert done.returncode == 0, done.stderr
    with pytest.raises(Cancelled, match="was cancelled"):
        list(cells)
    assert project.ledger.counts(grid.grid_id)[RunState.CANCELLED] == 6
    assert pool.submit(root_of, 4.0).result(120) == 2.0


def test_what_cannot_be_run_is_refused_and_breaks_nothing(
    shared: tuple[process_pool, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, project = shared
    monkeypatch.chdir(project.root)
    with pytest.raises(UsageError, match="cannot be pickled"):
        pool.submit(root_of, threading.Lock())
    with pytest.raises(UsageError, match="empty"):
        pool.grid("train.py", {"a": []})
    with pytest.raises(UsageError, match="no script"):
        pool.grid("trian.py", {"a": [1]})
    assert pool.submit(root_of, 1.0).result(120) == 1.0


def test_a_job_that_dies_is_a_job_that_failed(shared: tuple[process_pool, Project]) -> None:
    pool, _ = shared
    future = pool.submit(os._exit, 3)
    with pytest.raises(JobFailed, match="_exit did not come to its end") as failed:
        future.result(120)
    assert failed.value.run == future.run
    with pytest.raises(JobFailed, match="its exit code was 0"):
        pool.submit(os._exit, 0).result(120)


@pytest.mark.slow
def test_machines_end_when_nothing_is_left_for_them_and_come_again(
    project: Project, nothing_left: Callable[[Project], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    project.write("fails.py", "raise SystemExit('no')")
    pool = process_pool(project=project.root, idle="0.5s", slots=1)
    first = pool.submit(root_of, 4.0)
    assert first.result(120) == 2.0
    wait_for(lambda: project.ledger.units() == [], "the machine to go")
    busy, waits = pool.submit(sleeps, 1.0), pool.submit(root_of, 9.0)
    assert waits.cancel()
    cells = pool.grid("fails.py", {"a": [1, 2, 3, 4, 5, 6, 7, 8]})
    assert [str(next(cells).state) for _ in range(3)] == ["failed"] * 3
    with pytest.raises(JobFailed, match=r"cells are left: . of . cells failed with the same error"):
        next(cells)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(root_of, 4.0)
    pool.shutdown()
    assert busy.exception() is None
    assert waits.cancelled()
    nothing_left(project)


@pytest.mark.slow
def test_a_pool_that_is_forgotten_ends_when_its_work_is_done(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    pool = process_pool(project=project.root)
    future = pool.submit(root_of, 4.0)
    forgotten = weakref.ref(pool)
    del pool
    gc.collect()
    assert forgotten() is None
    assert future.result(120) == 2.0
    wait_for(lambda: project.ledger.units() == [], "the machine to go")
    nothing_left(project)


@pytest.mark.slow
def test_an_exception_in_the_block_ends_all_of_it(project: Project, nothing_left: Callable[[Project], None]) -> None:
    pool = process_pool(project=project.root, units=2, slots=1)

    def block() -> None:
        with pool:
            futures.extend(pool.submit(sleeps, 600) for _ in range(5))
            run = futures[0]
            wait_for(lambda: run.run is not None and run.run.state == "running", "the function to run", 120)
            raise KeyError("mine")

    futures: list[RunFuture] = []
    with pytest.raises(KeyError, match="mine"):
        block()
    assert all(future.exception(0) is not None for future in futures)
    assert {str(run.state) for run in project.ledger.runs()} == {"cancelled"}
    with pytest.raises((BrokenExecutor, RuntimeError)):
        pool.submit(sleeps, 1)
    nothing_left(project)


MAIN = """import time
from cloudrun import process_pool
def sleeps():
    print("asleep", flush=True)
    time.sleep(600)
def plus(x):
    return x + 1
if __name__ == "__main__":
    with process_pool(slots=2) as pool:
        print(pool.submit(plus, 1).result(), flush=True)
        pool.submit(sleeps).result()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_no_machine(
    number: signal.Signals, code: int, project: Project, start: Start, nothing_left: Callable[[Project], None]
) -> None:
    project.write("main.py", MAIN)
    process = start("main.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    wait_for(lambda: any(run.name == "sleeps" and run.state == "running" for run in project.ledger.runs()), "it")
    process.send_signal(number)
    _, words = process.communicate(timeout=200)
    if number is signal.SIGKILL:
        assert project.ledger.units() != []
        done = project.cloudrun("reap")
        assert done.returncode == 0, done.stderr
    else:
        assert process.returncode in (code, -number), words
        assert [str(run.state) for run in project.ledger.runs() if run.name == "sleeps"] == ["cancelled"]
    nothing_left(project)


@pytest.mark.slow
def test_functions_that_no_file_has_and_a_pool_that_nobody_shuts(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    text = "from cloudrun import process_pool; pool = process_pool(); f = pool.submit(lambda: 6 * 7); "
    done = project.python("-c", text + "f.add_done_callback(lambda f: print(f.result()))")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    nothing_left(project)


GRID = """from cloudrun import process_pool
with process_pool(slots=2) as pool:
    for run in pool.grid("waits.py", {"a": [1, 2, 3, 4, 5, 6]}):
        print(run.params["a"], run.state, flush=True)
"""


@pytest.mark.slow
def test_the_same_grid_after_a_kill_goes_on_where_it_was_on_the_machine_that_was_left(
    project: Project, start: Start, nothing_left: Callable[[Project], None]
) -> None:
    project.write("waits.py", "import time; time.sleep(1.5)")
    project.write("main.py", GRID)
    process = start("main.py")
    assert process.stdout is not None
    assert process.stdout.readline().endswith("succeeded\n")
    process.kill()
    process.communicate()
    done = project.python("main.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(["1", "2", "3", "4", "5", "6"] + ["succeeded"] * 6)
    runs = project.ledger.runs()
    assert [str(run.state) for run in runs] == ["succeeded"] * 6
    assert max(run.attempts for run in runs) <= 2
    assert len({run.instance_id for run in runs}) == 1, "its machine was taken over"
    assert [str(grid.state) for grid in project.ledger.grids()] == ["done"]
    nothing_left(project)


def test_a_call_whose_machine_goes_is_made_again_on_another(
    project: Project, aws: Aws, nothing_left: Callable[[Project], None]
) -> None:
    with process_pool(project=project.root) as pool:
        future = pool.submit(sleeps, 8.0)
        wait_for(lambda: future.run is not None and future.run.state == "running", "the function to run", 120)
        assert future.run is not None
        first = future.run.instance_id
        aws("ec2", "terminate-instances", "--instance-ids", first)
        assert future.result(180) is None
        assert future.run.attempts == 2
        assert future.run.instance_id != first
    nothing_left(project)


def test_a_budget_that_pays_for_no_machine_is_refused_before_anything_is_launched(project: Project) -> None:
    with pytest.raises(UsageError, match="budget does not pay"), process_pool(project=project.root, budget=0.000001):
        raise AssertionError("there is no such pool")
    assert project.ledger.units() == []
