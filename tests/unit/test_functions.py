"""Functions on their way to a unit: what they need there, what comes of them, and what their key is."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cloudrun import called, functions
from cloudrun.core.errors import JobFailed, LedgerError, UsageError
from cloudrun.core.records import Artifact, RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger, Run


def imports_inside(x: float) -> float:
    import joblib.memory  # noqa: F401

    return helper(x)


def helper(x: float) -> float:
    import yaml  # noqa: F401

    return x


def needs_of(function: Callable[..., Any], root: Path, *arguments: Any) -> functions.Needs:
    return functions.needs(functions.pickled(function, arguments, {}, root), function, root)


def test_what_a_function_and_those_that_it_calls_import_is_needed(tmp_path: Path) -> None:
    for function in (imports_inside, functools.partial(imports_inside, 1.0)):
        assert {name.partition(".")[0] for name in needs_of(function, tmp_path).third_party} == {"joblib", "yaml"}


def test_so_is_what_its_arguments_are_made_of_and_nothing_of_the_standard_library(tmp_path: Path) -> None:
    import numpy as np

    wanted = needs_of(lambda x, y: x, tmp_path, np.arange(3), Path("x"))
    assert {name.partition(".")[0] for name in wanted.third_party} == {"numpy"}
    assert wanted.local_files == ()


@pytest.fixture
def local_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine_of_needs.py").write_text("import other_of_needs, yaml\ndef f(): return 7\n")
    (tmp_path / "lib" / "other_of_needs.py").write_text("import joblib\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    import mine_of_needs

    yield mine_of_needs
    del sys.modules["mine_of_needs"], sys.modules["other_of_needs"]


def test_a_module_of_the_project_travels_by_name_with_what_it_imports(tmp_path: Path, local_module: Any) -> None:
    root = tmp_path.resolve()
    wanted = needs_of(local_module.f, root)
    assert wanted.local_files == ("lib/mine_of_needs.py", "lib/other_of_needs.py")
    assert wanted.third_party == ("joblib", "yaml")
    assert "lib" in wanted.search_path
    assert len(functions.pickled(local_module.f, (), {}, root)) < 200, "by name"


def test_a_module_that_is_neither_there_nor_installed_travels_by_value(tmp_path: Path, local_module: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    content = functions.pickled(local_module.f, (), {}, elsewhere)
    unknown = "import sys, cloudpickle; print(cloudpickle.loads(sys.stdin.buffer.read())[0]())"
    done = subprocess.run([sys.executable, "-c", unknown], input=content, capture_output=True, check=False)
    cloudpickle.unregister_pickle_by_value(local_module)
    assert done.stdout == b"7\n", done.stderr


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"helper and what it is called with cannot be pickled: .*lock"):
        functions.pickled(helper, (threading.Lock(),), {}, tmp_path)


# -- there and back ----------------------------------------------------------------------------------------------------


class Awkward(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


def raises(kind: str) -> None:
    raise Awkward(1, 2) if kind == "awkward" else ValueError(kind)


def back(tmp_path: Path, function: Callable[..., Any], *arguments: Any) -> tuple[int, Run]:
    """As a unit does it, in a process of its own; and the run that comes of it."""
    folder = tmp_path / "call"
    folder.mkdir()
    (folder / "call").write_bytes(functions.pickled(function, arguments, {}, tmp_path))
    done = subprocess.run(
        [sys.executable, called.__file__, str(folder)], cwd="/", capture_output=True, text=True, check=False
    )
    assert [path.name for path in sorted(folder.iterdir())] == ["call", "outcome"], done.stderr
    ledger = Ledger(tmp_path)
    entry = ledger.artifacts.add(folder / "outcome")
    artifact = Artifact(".cloudrun/calls/k-1/c-1/outcome", entry.size, entry.sha256)
    return done.returncode, Run.of(a_record(artifact), ledger.artifacts)


def a_record(*artifacts: Artifact) -> RunRecord:
    return RunRecord("r-1", "f", "called.py", RunState.SUCCEEDED, datetime.now(UTC), artifacts=artifacts)


def test_what_a_function_returns_comes_back(tmp_path: Path) -> None:
    code, run = back(tmp_path, lambda x: {"twice": 2 * x}, 21)
    assert (code, functions.outcome(run)) == (0, {"twice": 42})


def test_what_it_raises_is_raised_with_the_traceback_as_it_was_there(tmp_path: Path) -> None:
    code, run = back(tmp_path, raises, "no such luck")
    with pytest.raises(ValueError, match="no such luck") as raised:
        functions.outcome(run)
    assert code == 1
    cause = raised.value.__cause__
    assert isinstance(cause, functions.RemoteTraceback)
    assert "in raises" in str(cause)
    assert "called.py" not in str(cause)


def test_an_exception_that_cannot_be_made_again_is_told_in_words(tmp_path: Path) -> None:
    _, run = back(tmp_path, raises, "awkward")
    with pytest.raises(RuntimeError, match="Awkward: 1"):
        functions.outcome(run)


def test_so_is_a_result_that_cannot_be_pickled(tmp_path: Path) -> None:
    code, run = back(tmp_path, threading.Lock)
    with pytest.raises(TypeError, match="cannot pickle"):
        functions.outcome(run)
    assert code == 1


def test_nothing_damaged_is_unpickled(tmp_path: Path) -> None:
    _, run = back(tmp_path, helper, 1)
    path = run.store.path(run.artifacts[0].sha256)
    path.chmod(0o600)
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(LedgerError, match="damaged"):
        functions.outcome(run)


def test_a_run_without_an_outcome_is_a_job_that_failed(tmp_path: Path) -> None:
    run = Run.of(a_record(), Ledger(tmp_path).artifacts)
    with pytest.raises(JobFailed, match="f did not come to its end") as failed:
        functions.outcome(run)
    assert failed.value.run is run


def test_a_key_is_the_callers_and_the_functions_name_and_the_environment() -> None:
    key = functions.call_key({"a": 1}, helper, "e1")
    assert key == functions.call_key({"a": 1}, helper, "e1")
    others = [({"a": 2}, helper, "e1"), ({"a": 1}, raises, "e1"), ({"a": 1}, helper, "e2")]
    assert key not in {functions.call_key(*other) for other in others}
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        functions.call_key({1, 2}, helper, "e1")
