"""`compare`: what differs between runs, and nothing else."""

from __future__ import annotations

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import Environment
from cloudrun.ledger import Ledger
from cloudrun.plan.fingerprint import code_digest
from tests.cli.conftest import Made, document

OLD = {"train.py": b"import helper\nprint(helper.x)\n", "helper.py": b"x = 1\n"}
NEW = {"train.py": b"import helper\nprint(helper.x)\n", "helper.py": b"x = 2\n"}


@pytest.fixture
def two(ledger: Ledger, ended: Made) -> tuple[str, str]:
    """Runs with other parameters, scores, code and environments."""
    for files in (OLD, NEW):
        ledger.keep_code(code_digest(files), files)
    for name, numpy in (("e1", "2.1.0"), ("e2", "2.2.0")):
        ledger.keep_environment(Environment("3.11", "x86_64", (f"numpy=={numpy}", "joblib==1.5.0"), "x.txt", name))
    one = ended("one", {"f1": 0.5, "loss": 0.25}, params={"a": 1, "b": "x"}, code=code_digest(OLD), environment="e1")
    two = ended("two", {"f1": 0.75, "loss": 0.25}, params={"a": 1, "c": None}, code=code_digest(NEW), environment="e2")
    return one, two


def test_only_what_differs_is_shown(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "one", "two"]) == 0
    table, _, code = capsys.readouterr().out.partition("\n\n")
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in table.splitlines()[1:]}
    assert rows[("param", "b")] == ["x", "-"]
    assert rows[("param", "c")] == ["-", "null"]
    assert rows[("score", "f1")] == ["0.5", "0.75"]
    assert rows[("package", "numpy")] == ["2.1.0", "2.2.0"]
    assert not {("param", "a"), ("score", "loss"), ("package", "joblib"), ("time", "run")} & rows.keys()
    assert f"--- {two[0]}/helper.py\n+++ {two[1]}/helper.py\n" in code
    assert "-x = 1\n+x = 2\n" in code
    assert "train.py" not in code.partition("\n")[2]


def test_all_of_it_is_shown_when_asked(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *two, "--all"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    for expected in (["param", "a"], ["score", "loss"], ["package", "joblib"], ["time", "run"]):
        assert expected in rows


def test_programs_get_the_values(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", *two, "--json")
    assert found["runs"] == list(two)
    assert found["differences"]["params"] == {"b": ["x", None], "c": [None, None]}
    assert found["differences"]["scores"] == {"f1": [0.5, 0.75]}
    [code] = found["code"]
    assert (code["run_id"], code["beside"]) == (two[1], two[0])
    assert "+x = 2" in code["diff"]


def test_code_that_was_not_kept_is_said_to_differ(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = ended("one", code="a" * 64), ended("two", code="b" * 64)
    assert run(["compare", one, two]) == 0
    assert f"the text was not kept: {'a' * 16} and {'b' * 16} differ" in capsys.readouterr().out


def test_runs_of_two_scripts_have_their_scripts_compared(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"a.py": b"print(1)\n"}, {"b.py": b"print(2)\n"}
    for each in files:
        ledger.keep_code(code_digest(each), each)
    one, two = (ended(f"n{at}", script=next(iter(each)), code=code_digest(each)) for at, each in enumerate(files))
    assert run(["compare", one, two]) == 0
    assert f"--- {one}/a.py\n+++ {two}/b.py\n" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(ledger: Ledger, ended: Made) -> None:
    ended("digits")
    for words in (["digits"], ["digits", "digits"], []):
        with pytest.raises(UsageError, match=r"compared") as caught:
            run(["compare", *words])
        assert "cloudrun compare RUN ANOTHER" in caught.value.next_step
    with pytest.raises(NotFound, match="near: digits"):
        run(["compare", "digits", "digit"])
