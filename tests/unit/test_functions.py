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

from cloudrun.core.errors import JobFailed, LedgerError, UsageError
from cloudrun.core.records import Artifact, RunRecord
from cloudrun.core.states import RunState
from cloudrun.functions import called, packing
from cloudrun.functions.needs import Needs, imported_by, needs
from cloudrun.functions.pickling import pickled
from cloudrun.ledger import Ledger, Run


def imports_inside(x: float) -> float:
    import joblib.memory  # noqa: F401

    return helper(x)


def helper(x: float) -> float:
    import yaml  # noqa: F401

    return x


def needs_of(function: Callable[..., Any], root: Path, *arguments: Any) -> Needs:
    _, modules = pickled((function, arguments), "it", root)
    return needs(modules | imported_by(function), root, {})


def tops(wanted: Needs) -> set[str]:
    return {name.partition(".")[0] for name in wanted.third_party}


def test_what_a_function_and_those_that_it_calls_import_is_needed(tmp_path: Path) -> None:
    for function in (imports_inside, functools.partial(imports_inside, 1.0)):
        assert tops(needs_of(function, tmp_path)) == {"joblib", "yaml"}


def test_so_is_what_its_arguments_are_made_of_and_nothing_of_the_standard_library(tmp_path: Path) -> None:
    import numpy as np

    wanted = needs_of(lambda x, y: x, tmp_path, np.arange(3), Path("x"))
    assert tops(wanted) == {"numpy"}
    assert wanted.local_files == ()


def test_what_a_text_names_is_not_needed(tmp_path: Path) -> None:
    import yaml  # noqa: F401

    assert needs_of(lambda x: x, tmp_path, "yaml").third_party == ()


@pytest.fixture
def local_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine_of_needs.py").write_text(
        "import other_of_needs, yaml\ndef f(): return other_of_needs.g()\n"
    )
    (tmp_path / "lib" / "other_of_needs.py").write_text("import joblib\ndef g(): return 7\n")
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
    assert len(pickled(local_module.f, "it", root)[0]) < 200, "by name"


def test_modules_that_are_neither_there_nor_installed_travel_by_value(tmp_path: Path, local_module: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    content, _ = pickled(local_module.f, "it", elsewhere)
    unknown = "import sys, cloudpickle; print(cloudpickle.loads(sys.stdin.buffer.read())())"
    done = subprocess.run([sys.executable, "-c", unknown], input=content, capture_output=True, check=False)
    assert done.stdout == b"7\n", done.stderr
    assert not cloudpickle.list_registry_pickle_by_value(), "whoever else pickles here does it as before"


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"what f is called with cannot be pickled: .*lock"):
        pickled([threading.Lock()], "what f is called with", tmp_path)


# -- there and back ----------------------------------------------------------------------------------------------------


class Awkward(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


def raises(kind: str) -> None:
    raise Awkward(1, 2) if kind == "awkward" else ValueError(kind)


def back(tmp_path: Path, function: Callable[..., Any], *calls: Any, version: str = cloudpickle.__version__) -> Run:
    """As a unit does it, in a process of its own; the run that comes of it."""
    folder = tmp_path / "call"
    folder.mkdir()
    (folder / "f.function").write_bytes(pickled(function, "it", tmp_path)[0])
    (folder / "c.calls").write_bytes(pickled([((each,), {}) for each in calls], "them", tmp_path)[0])
    done = subprocess.run(
        [sys.executable, called.__file__, folder / "f.function", folder / "c.calls", version],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert [path.name for path in sorted(folder.iterdir())] == ["c.calls", "c.outcome", "f.function"], done.stderr
    ledger = Ledger(tmp_path)
    entry = ledger.artifacts.add(folder / "c.outcome")
    artifact = Artifact(".cloudrun/calls/k-1/c.outcome", entry.size, entry.sha256)
    return Run.of(a_record(artifact, exit_code=done.returncode), ledger.artifacts)


def a_record(*artifacts: Artifact, exit_code: int | None = None) -> RunRecord:
    return RunRecord(
        "r-1",
        "f",
        "called.py",
        RunState.SUCCEEDED,
        datetime.now(UTC),
        artifacts=artifacts,
        exit_code=exit_code,
        instance_id="i-7",
    )


def test_what_each_call_returns_comes_back(tmp_path: Path) -> None:
    run = back(tmp_path, lambda x: {"twice": 2 * x}, 21, 4)
    assert (run.exit_code, packing.outcome(run)) == (0, [{"twice": 42}, {"twice": 8}])


def test_what_one_raises_is_raised_with_the_traceback_as_it_was_there(tmp_path: Path) -> None:
    run = back(tmp_path, raises, "no such luck")
    with pytest.raises(ValueError, match="no such luck") as raised:
        packing.outcome(run)
    assert run.exit_code == 1
    (note,) = raised.value.__notes__
    assert note.startswith("on i-7:\nTraceback")
    assert "in raises\n    raise Awkward(1, 2) if kind" in note, "with the source, which is here"
    assert "called.py" not in note


def test_an_exception_that_cannot_be_made_again_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^tests\.unit\.test_functions\.Awkward: 1$") as raised:
        packing.outcome(back(tmp_path, raises, "awkward"))
    cause = raised.value.__cause__
    assert isinstance(cause, packing.OnUnit)
    assert str(cause).startswith("on i-7:\nTraceback")
    assert "in raises\n    raise Awkward(1, 2) if kind" in str(cause)


def test_one_whose_class_is_only_there_is_told_in_words_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    gone = cloudpickle.dumps(Path("x")).replace(b"pathlib", b"pathlax")
    (tmp_path / "c.outcome").write_bytes(cloudpickle.dumps(("raised", gone, "lax.Error: no", "Traceback: there")))
    entry = ledger.artifacts.add(tmp_path / "c.outcome")
    run = Run.of(a_record(Artifact(".cloudrun/calls/k-1/c.outcome", entry.size, entry.sha256)), ledger.artifacts)
    with pytest.raises(RuntimeError, match=r"^lax\.Error: no$") as raised:
        packing.outcome(run)
    assert "Traceback: there" in str(raised.value.__cause__)


def test_so_is_a_result_that_cannot_be_pickled(tmp_path: Path) -> None:
    run = back(tmp_path, lambda _: threading.Lock(), 0)
    with pytest.raises(TypeError, match="cannot pickle"):
        packing.outcome(run)
    assert run.exit_code == 1


def test_an_environment_with_another_pickler_uses_the_one_that_came_along(tmp_path: Path) -> None:
    lib = tmp_path / "lib" / "cloudpickle"
    lib.mkdir(parents=True)
    for source in Path(cloudpickle.__file__).parent.glob("*.py"):
        (lib / source.name).write_text(source.read_text().replace(cloudpickle.__version__, "3.999"))
    (tmp_path / "called.py").write_text(Path(called.__file__).read_text())
    (tmp_path / "f.function").write_bytes(pickled(lambda: sys.modules["cloudpickle"].__version__, "it", tmp_path)[0])
    (tmp_path / "c.calls").write_bytes(pickled([((), {})], "them", tmp_path)[0])
    subprocess.run(
        [sys.executable, "called.py", "f.function", "c.calls", "3.999"], cwd=tmp_path, check=True, capture_output=True
    )
    assert cloudpickle.loads((tmp_path / "c.outcome").read_bytes()) == ("returned", ["3.999"])


def test_nothing_damaged_is_unpickled(tmp_path: Path) -> None:
    run = back(tmp_path, helper, 1)
    path = run.store.path(run.artifacts[0].sha256)
    path.chmod(0o600)
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(LedgerError, match="damaged"):
        packing.outcome(run)


def test_a_run_without_an_outcome_is_a_job_that_failed(tmp_path: Path) -> None:
    run = Run.of(a_record(), Ledger(tmp_path).artifacts)
    with pytest.raises(JobFailed, match="f did not come to its end") as failed:
        packing.outcome(run)
    assert failed.value.run is run


def test_a_key_is_the_callers_and_the_functions_name_and_the_environment() -> None:
    key = packing.call_key({"a": 1}, "mine.helper", "e1")
    assert key == packing.call_key({"a": 1}, "mine.helper", "e1")
    others = [({"a": 2}, "mine.helper", "e1"), ({"a": 1}, "mine.raises", "e1"), ({"a": 1}, "mine.helper", "e2")]
    assert key not in {packing.call_key(*other) for other in others}
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        packing.call_key({1, 2}, "mine.helper", "e1")
