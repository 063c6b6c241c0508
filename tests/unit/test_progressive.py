"""The progressive job: scores, coefficients and models are those of plain SGDClassifiers over all columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import progressive
import progressive_data
import pytest
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid

from tests.bench import notebook

JOBS = Path(progressive.__file__).parent
FUSED = ("--l1_ratio", "0.15,0.85", "--alpha", "1e-4,1e-2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(here: Path) -> Path:
    """1,050 rows, of which some have a zero, and two categories of which new values keep coming."""
    y, x = progressive_data.draw(1050, 7)
    x[::10, 1] = 0.0
    colours = [f"c{int(abs(a) * 2)}" for a in x[:, 2]]
    shapes = [f"s{number // 150}" for number in range(1050)]
    lines = [
        f"{target},{x1!r},{x2!r},{x3!r},{colour},{shape}"
        for target, (x1, x2, x3), colour, shape in zip(y.tolist(), x.tolist(), colours, shapes, strict=True)
    ]
    path = here / "data.csv"
    path.write_text("\n".join(["y,x1,x2,x3,colour,shape", *lines, ""]))
    return path


def run(data: Path, *words: str) -> dict[str, float]:
    return progressive.run(progressive.parse(["--data", str(data), "--batch", "100", "--read_ahead", "2", *words]))


MIXED = ("colour", "shape", "x1", "x2")


@pytest.mark.parametrize(
    ("penalty", "n_features"),
    [("elasticnet", 2**18), ("l1", 2**18), ("l2", 2**18), ("elasticnet", 64), ("elasticnet", 5)],
)
@pytest.mark.parametrize(
    ("features", "categories", "degree"),
    [(("x1", "x2", "x3"), (), 1), (("x1", "x2", "x3"), (), 2), (MIXED, MIXED[:2], 2), (MIXED, MIXED[:2], 3)],
)
def test_scores_and_coefficients_are_those_of_partial_fit_over_all_columns(
    data: Path, features: Sequence[str], categories: Sequence[str], degree: int, penalty: str, n_features: int
) -> None:
    ours = run(
        data, "--features", ",".join(features), "--categorical", ",".join(categories), "--degree", str(degree),
        "--penalty", penalty, "--n_features", str(n_features), "--alpha", "0.003", "--l1_ratio", "0.5",
    )  # fmt: skip
    theirs, classifier = notebook.cell(
        data, features, n_features, degree,
        categories=categories, batch=100, penalty=penalty, alpha=0.003, l1_ratio=0.5,
    )  # fmt: skip
    saved = joblib.load("model.joblib")["classifier"]
    exact = n_features == 2**18 or degree == 1  # three terms in one column may be added up in another order
    tolerance = 0.0 if exact else 1e-6
    np.testing.assert_allclose(saved.coef_.toarray(), classifier.coef_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(saved.intercept_, classifier.intercept_, rtol=tolerance)
    assert saved.t_ == classifier.t_
    assert ours == pytest.approx(theirs, rel=1e-12 if exact else 1e-6)


def test_squared_errors_are_scores_too(data: Path) -> None:
    ours = run(data, "--loss", "squared_error")
    theirs, _ = notebook.cell(data, ["x1", "x2", "x3"], 2**20, 2, batch=100, loss="squared_error")
    assert list(ours) == ["squared_error", "r2", "benchmark_squared_error"]
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("words", [(), ("--features", ",".join(MIXED), "--categorical", "colour,shape")])
def test_fused_classifiers_are_to_the_last_bit_those_of_a_run_each(data: Path, words: tuple[str, ...]) -> None:
    summary = run(data, *words, *FUSED)
    table = json.loads(Path("cells.json").read_text())
    assert [(each["params"]["l1_ratio"], each["params"]["alpha"]) for each in table] == [
        (0.15, 1e-4), (0.15, 1e-2), (0.85, 1e-4), (0.85, 1e-2),
    ]  # fmt: skip
    for each in table:
        params = each["params"]
        alone = run(data, *words, "--l1_ratio", str(params["l1_ratio"]), "--alpha", str(params["alpha"]))
        assert each["scores"] == alone
        one, other = (joblib.load(path)["classifier"] for path in (each["model"], "model.joblib"))
        np.testing.assert_array_equal(one.coef_.toarray(), other.coef_.toarray())
        np.testing.assert_array_equal(one.intercept_, other.intercept_)
    best = min(table, key=lambda each: each["scores"]["log_loss"])
    assert summary == {
        **best["scores"], "best_l1_ratio": best["params"]["l1_ratio"], "best_alpha": best["params"]["alpha"],
    }  # fmt: skip
    assert next(iter(json.loads(Path("scores.json").read_text()))) == "log_loss"


def test_blocks_and_a_short_last_minibatch_change_nothing(data: Path) -> None:
    once, many = run(data, "--read_ahead", "1"), run(data, "--read_ahead", "1000")
    assert once == many  # 1,050 rows are ten minibatches of 100 and one of 50
    assert progressive.tail_mean([9.0] * 7 + [1.0, 2.0, 3.0, 6.0]) == 3.0


def test_a_stream_of_one_minibatch_was_predicted_by_nobody(data: Path) -> None:
    scores = run(data, "--batch", "5000")
    assert scores == {"log_loss": pytest.approx(np.log(2)), "r2": 0.0, "benchmark_log_loss": pytest.approx(np.log(2))}


def test_one_class_only_is_no_error(here: Path) -> None:
    (here / "d.csv").write_text("y,x1\n" + "1,0.5\n" * 500)
    for loss in progressive.LOSSES:
        scores = run(here / "d.csv", "--features", "x1", "--loss", loss)
        assert all(np.isfinite(value) for value in scores.values())


def test_a_model_takes_rows_as_they_are_and_loads_without_the_job(data: Path) -> None:
    run(data, "--features", ",".join(MIXED), "--categorical", "colour,shape", "--degree", "3")
    _, classifier = notebook.cell(data, MIXED, 2**20, 3, categories=MIXED[:2], batch=100)
    rows = [row for batch in notebook.minibatches(data, 40) for row in batch][::50]
    wanted = notebook.terms(MIXED, MIXED[:2], 3)
    plain = notebook.FeatureHasher(2**20).transform([notebook.products(row, wanted, MIXED[:2]) for row in rows])
    given = [{"colour": r["colour"], "shape": r["shape"], "x1": float(r["x1"]), "x2": float(r["x2"])} for r in rows]
    program = (
        "import json, sys, joblib\n"
        "model = joblib.load('model.joblib')\n"
        "print(json.dumps(model.predict_proba(json.load(sys.stdin)).tolist()))\n"
        "assert not [name for name in sys.modules if name.startswith('progressive')]"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(given), capture_output=True, text=True, check=True
    ).stdout
    np.testing.assert_allclose(json.loads(told), classifier.predict_proba(plain), rtol=1e-9)
    model = joblib.load("model.joblib")
    assert model.predict_proba([{"colour": "never seen", "x1": 1.0}]).shape == (1, 2)
    assert issparse(model["classifier"].coef_)


def test_a_models_size_does_not_depend_on_the_number_of_columns(data: Path) -> None:
    sizes = []
    for n_features in (2**10, 2**22):
        run(data, "--n_features", str(n_features))
        sizes.append(Path("model.joblib").stat().st_size)
    assert max(sizes) < 10_000
    assert abs(sizes[1] - sizes[0]) < 1000


def test_the_grid_files_hold_the_same_144_cells() -> None:
    def cells(name: str) -> list[dict[str, Any]]:
        written = tomllib.loads((JOBS / name).read_text())
        return list(
            ParameterGrid({key: value if isinstance(value, list) else [value] for key, value in written.items()})
        )

    def asked(params: dict[str, Any]) -> list[tuple[Any, ...]]:
        words = [str(word) for name, value in params.items() for word in (f"--{name}", value)]
        read = progressive.parse(["--data", __file__, *words])
        space = (tuple(read.features), read.n_features, read.degree)
        return [(*space, l1_ratio, alpha) for l1_ratio in read.l1_ratio for alpha in read.alpha]

    alone = [cell for params in cells("progressive.toml") for cell in asked(params)]
    fused = [cell for params in cells("progressive_fused.toml") for cell in asked(params)]
    assert len(cells("progressive_fused.toml")) == 12
    assert len(set(alone)) == 144
    assert sorted(alone) == sorted(fused)


def test_lists_may_come_as_json(data: Path) -> None:
    asked = progressive.parse(["--data", str(data), "--features", '["x2", "x1"]', "--alpha", "[0.1, 1e-3]"])
    assert (asked.features, asked.alpha) == (["x1", "x2"], [0.1, 1e-3])


# -- as a script


def script(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(JOBS / "progressive.py"), *words],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def test_the_script_prints_and_saves_its_scores(data: Path) -> None:
    done = script("--data", str(data), "--batch", "100")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(Path("scores.json").read_text())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--data", "nowhere.csv"], 2, "nowhere.csv"),
        (["--data", "."], 2, "no file"),
        (["--features", "x1,x9"], 2, "'x9' is not among the columns"),
        (["--features", "x1,x1"], 2, "twice"),
        (["--features", "y"], 2, "not the target"),
        (["--features", ""], 2, "should name columns"),
        (["--categorical", "z"], 2, "z"),
        (["--n_features", "0"], 2, "0 is not between"),
        (["--degree", "two"], 2, "two"),
        (["--alpha", "0"], 2, "0 is not between"),
        (["--alpha", "nan"], 2, "nan is not between"),
        (["--alpha", "0.1,0.10"], 2, "twice"),
        (["--l1_ratio", "1.5"], 2, "1.5 is not between"),
        (["--penalty", "none"], 2, "none"),
        (["--features", "x1,colour"], 1, "row 1: colour is"),
    ],
)
def test_a_mistake_is_said_in_a_line_and_not_in_a_traceback(
    data: Path,
    words: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["progressive.py", "--data", str(data), *words])
    with pytest.raises(SystemExit) as ended:
        progressive.main()
    told = capsys.readouterr()
    if isinstance(ended.value.code, str):  # the interpreter prints it and exits with 1
        assert code == 1
        last = ended.value.code
    else:
        assert ended.value.code == code
        last = told.err.splitlines()[-1]
    assert says in last
    assert told.out == ""
    assert not Path("scores.json").exists()


@pytest.mark.parametrize(("degree", "says"), [("1", "training with"), ("2", r"x1\^2 is too large")])
def test_numbers_that_grow_without_end_are_said_in_a_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, degree: str, says: str
) -> None:
    (here / "d.csv").write_text("y,x1\n" + "1,1e308\n0,1e308\n" * 100)
    monkeypatch.setattr(sys, "argv", ["progressive.py", "--data", "d.csv", "--features", "x1", "--degree", degree])
    with pytest.raises(SystemExit, match=rf"progressive\.py: {says}"):
        progressive.main()


# -- the rows


def test_drawn_rows_are_the_same_for_a_seed_and_follow_the_model(here: Path) -> None:
    progressive_data.write(here / "a" / "one.csv", 50, seed=3)
    progressive_data.write(here / "two.csv", 50, seed=3)
    progressive_data.write(here / "three.csv", 50, seed=4)
    one, two, three = (path.read_text() for path in (here / "a" / "one.csv", here / "two.csv", here / "three.csv"))
    assert one == two != three
    written = np.loadtxt(one.splitlines(), delimiter=",", skiprows=1)
    y, x = progressive_data.draw(50, 3)
    np.testing.assert_array_equal(written, np.column_stack((y, x)))
    y, x = progressive_data.draw(100_000, 0)
    x1, x2, x3 = x.T
    terms = np.column_stack((x, x1 * x2, x1 * x3, x2 * x3, x**2))
    fitted = LogisticRegression(C=np.inf).fit(terms, y)
    np.testing.assert_allclose(fitted.intercept_, 0.9, atol=0.05)
    np.testing.assert_allclose(fitted.coef_[0], np.linspace(0.9, 0.1, 9), atol=0.05)
