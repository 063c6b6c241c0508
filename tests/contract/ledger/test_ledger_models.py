"""Models: the digest first, then the passport, and only then is anything unpickled."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.linear_model import LinearRegression

from cloudrun.core.errors import LedgerError, NotFound, PassportMismatch, UsageError
from cloudrun.core.records import Passport
from cloudrun.ledger import Ledger, Run

HERE = Passport(
    python=".".join(map(str, sys.version_info[:3])),
    packages={"numpy": np.__version__, "scikit-learn": sklearn.__version__},
    platform="Linux-x86_64",
)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def run_with(ledger: Ledger, make: SimpleNamespace) -> object:
    """A function that gives a finished run with those files and that passport."""
    make.launched(ledger, "i-1")

    def finished(files: dict[str, bytes], passport: Passport | None = HERE) -> Run:
        make.finished(ledger, make.run(), files=files, passport=passport, logs={"stdout.log": b""})
        return ledger.get("run-1")

    return finished


def dumped(model: object, path: Path, compress: int = 0) -> bytes:
    joblib.dump(model, path, compress=compress)
    return path.read_bytes()


@pytest.mark.parametrize("compress", [0, 3])
def test_a_scikit_learn_model_comes_back_and_predicts(run_with, tmp_path: Path, compress: int) -> None:  # type: ignore[no-untyped-def]
    model = LinearRegression().fit(np.array([[0.0], [1.0]]), np.array([1.0, 3.0]))
    run = run_with({"out/model.joblib": dumped(model, tmp_path / "m", compress), "notes.txt": b""})
    assert run.model().predict([[2.0]]) == pytest.approx([5.0])
    assert run.model("model.joblib").predict([[2.0]]) == pytest.approx([5.0])


def test_a_plain_pickle_is_a_model_too(run_with) -> None:  # type: ignore[no-untyped-def]
    assert run_with({"model.pkl": pickle.dumps({"w": [1, 2]})}).model() == {"w": [1, 2]}


def test_no_model_and_several_models_are_said(run_with, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = dumped([1], tmp_path / "m")
    run = run_with({"a.joblib": model, "b/c.pickle": dumped([2], tmp_path / "n"), "x.txt": b""})
    with pytest.raises(UsageError, match=r"several models: a.joblib, b/c.pickle") as caught:
        run.model()
    assert "name one" in caught.value.next_step
    assert run.model("c.pickle") == [2]
    with pytest.raises(NotFound, match=r"no artifact 'd.joblib'"):
        run.model("d.joblib")


def test_a_run_without_a_model_says_how_to_make_one(run_with) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotFound, match="made no model") as caught:
        run_with({"x.txt": b""}).model()
    assert "joblib.dump" in caught.value.next_step


@pytest.mark.parametrize(
    ("passport", "why"),
    [
        (None, "no passport"),
        (Passport("3.8.1", {}, "Linux"), r"made with python 3\.8\.1 \(here 3\."),
        (Passport(HERE.python, {"numpy": "1.26.4"}, "Linux"), r"numpy 1\.26\.4 \(here 2\."),
        (Passport(HERE.python, {"scikit-learn": "0.24.2"}, "Linux"), r"scikit-learn 0\.24\.2 \(here 1\."),
    ],
)
def test_other_versions_are_refused_before_anything_is_unpickled(
    run_with,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    passport: Passport | None,
    why: str,
) -> None:
    exploded = tmp_path / "exploded"
    run = run_with({"model.pkl": pickle.dumps(Bomb(exploded))}, passport)
    with pytest.raises(PassportMismatch, match=why) as caught:
        run.model()
    assert "allow_version_mismatch=True" in caught.value.next_step
    assert "--allow-version-mismatch" in caught.value.next_step
    assert not exploded.exists()
    run.model(allow_version_mismatch=True)
    assert exploded.exists()


def test_a_damaged_model_is_refused_before_anything_is_unpickled(run_with, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    exploded = tmp_path / "exploded"
    run = run_with({"model.pkl": b"a model"})
    stored = run.path("model.pkl")
    stored.chmod(0o644)
    stored.write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(LedgerError, match="damaged"):
        run.model(allow_version_mismatch=True)
    assert not exploded.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"cno_such_module\nThing\n."])
def test_what_does_not_unpickle_is_one_clear_error(run_with, content: bytes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LedgerError, match="does not load: ") as caught:
        run_with({"model.pkl": content}).model()
    assert caught.value.next_step
