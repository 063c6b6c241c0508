"""`results` over a real ledger."""

from __future__ import annotations

import csv
import io
import math
import re
from datetime import timedelta

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import CloudrunError, NotFound, UsageError
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger
from tests.cli.conftest import NOON, Made, document


def test_an_empty_ledger_says_what_to_type(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["results"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "next: cloudrun submit" in captured.err
    assert document(capsys, "results", "--json") == {"schema_version": 1, "rankings": [], "runs": []}
    assert run(["results", "--where", "anything<1", "--sort", "anything"]) == 0, (
        "there is nothing yet to be wrong about"
    )


def test_results_rank_best_first_and_the_rest_below(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    good, best = ended("good", {"accuracy": 0.91}), ended("best", {"accuracy": 0.975, "loss": 0.1})
    not_a_number = ended("odd", {"accuracy": math.nan})
    failed = ended("broken", reason=EndReason.EXITED)
    listed = document(capsys, "results", "--json")["runs"]
    assert [each["run_id"] for each in listed] == [best, good, not_a_number, failed]
    assert listed[2]["scores"] == {"accuracy": "NaN"}

    assert run(["results"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["rank", "run", "name", "state", "accuracy", "when"]
    assert table[1] == ["1", best, "best", "succeeded", "0.975", "2026-11-21", "12:01Z"]
    assert table[3][4] == "NaN"
    assert table[4] == ["-", failed, "broken", "failed", "-", "2026-11-21", "12:03Z"]


def test_results_by_another_score_smallest_first(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    high, low, none = ended("a", {"f1": 1, "x": 3.0}), ended("b", {"f1": 1, "x": 2.0}), ended("c", {"f1": 1})
    for arguments, expected in (
        (["--metric", "x", "--minimize"], [low, high, none]),
        (["--metric", "x", "--maximize"], [high, low, none]),
        (["--metric", "x", "--minimize", "--limit", "1"], [low]),
    ):
        listed = document(capsys, "results", "--json", *arguments)["runs"]
        assert [each["run_id"] for each in listed] == expected


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """What a command prints, as words."""
    assert run(["results", *arguments]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_each_parameter_has_a_column_and_filters_and_sorts(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, alpha in enumerate([0.1, 10, 1]):
        ended(f"n{number}", {"accuracy": 0.5 + number / 10}, params={"alpha": alpha, "kind": "l1"})
    ended("plain", reason=EndReason.EXITED)
    assert table(capsys)[0] == ["rank", "run", "name", "state", "accuracy", "alpha", "kind", "when"]
    assert [row[2] for row in table(capsys, "--sort", "alpha")[1:]] == ["n0", "n2", "n1", "plain"]
    assert [row[0] for row in table(capsys, "--sort", "alpha")[1:]] == ["3", "1", "2", "-"], "ranks stay what they are"
    assert [row[2] for row in table(capsys, "--sort", "alpha", "--reverse")[1:]] == ["n1", "n2", "n0", "plain"]
    assert [row[0] for row in table(capsys, "--reverse")[1:]] == ["3", "2", "1", "-"]
    assert [row[2] for row in table(capsys, "--where", "alpha<5 and state=succeeded")[1:]] == ["n2", "n0"]
    assert table(capsys, "--columns", "rank, alpha,scores.accuracy,run_s", "--limit", "2") == [
        ["rank", "alpha", "accuracy", "run_s"],
        ["1", "1", "0.7", "2.25"],
        ["2", "10", "0.6", "2.25"],
    ]


def test_results_are_ranked_per_dollar_where_the_price_is_known(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    dear, cheap, unknown = (ended(name, {"accuracy": score}) for name, score in (("a", 0.9), ("b", 0.8), ("c", 1.0)))
    ledger.set_cost(dear, 0.10)
    ledger.set_cost(cheap, 0.01)
    listed = document(capsys, "results", "--json", "--sort", "score_per_usd")["runs"]
    assert [each["run_id"] for each in listed] == [cheap, dear, unknown]
    printed = table(capsys, "--sort", "score_per_usd")
    assert printed[0][:7] == ["rank", "run", "name", "state", "accuracy", "score_per_usd", "cost_usd"]
    assert [row[0] for row in printed[1:]] == ["1", "2", "-"]
    assert printed[1][5:7] == ["80", "$0.01"]


def test_results_as_comma_separated_values_are_all_runs_with_all_digits(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        ended(f"n{number}", {"accuracy": 1 / (3 + number)}, params={"text": 'a,"b"', "layers": [1, 2], "deep": True})
    assert run(["results", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 25
    assert float(rows[0]["accuracy"]) == 1 / 3
    assert (rows[0]["text"], rows[0]["layers"], rows[0]["deep"], rows[0]["cost_usd"]) == ('a,"b"', "[1, 2]", "true", "")
    assert run(["results", "--csv", "--limit", "2", "--columns", "name"]) == 0
    assert capsys.readouterr().out == "name\nn0\nn1\n"


def test_the_columns_do_not_depend_on_how_many_runs_are_listed(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("best", {"accuracy": 0.9}, params={"alpha": 1})
    ended("worst", {"accuracy": 0.1, "loss": 2.0}, params={"beta": 2})
    headers = []
    for limit in ("0", "1"):
        assert run(["results", "--csv", "--limit", limit]) == 0
        headers.append(capsys.readouterr().out.splitlines()[0])
    assert headers[0] == headers[1]
    assert {"loss", "beta"} <= set(headers[1].split(","))


def test_only_the_cells_of_a_grid_are_listed(ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]) -> None:
    good, better, other = (ended(f"n{number}", {"accuracy": number / 10}) for number in (1, 2, 3))
    ledger.begin_grid(GridRecord("g-1", "sweep", "train.py", GridState.OPEN, NOON, "same", 2))
    assert run(["results", "--grid", "sweep"]) == 0
    assert "grid sweep has no cells yet" in capsys.readouterr().err
    ledger.add_cells("g-1", [(0, good), (1, better)])
    assert [each["run_id"] for each in document(capsys, "results", "--json", "--grid", "g-1")["runs"]] == [better, good]
    assert document(capsys, "show", other, "--json")["grid_id"] is None
    with pytest.raises(NotFound, match="no grid 'swep'"):
        run(["results", "--grid", "swep"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--where", "alpha ~ 1"], "character 7: after alpha comes one of"),
        (["--sort", "alhpa"], "no run here has 'alhpa'; did you mean alpha[?]"),
        (["--where", "alhpa<1 and accuracy>0"], "character 1: no run here has 'alhpa'; did you mean alpha[?]"),
        (
            ["--where", "alpha<1 and scores.acuracy>0"],
            "character 13: no run here has the score 'acuracy'; .* accuracy[?]",
        ),
        (["--columns", "rank,Alpha"], "no run here has 'Alpha'; did you mean alpha[?]"),
        (["--columns", "rank,cost_us"], "did you mean cost_usd[?]"),
        (["--metric", "acuracy"], "no run here has the score 'acuracy'; did you mean accuracy[?]"),
        (["--script", "trian.py"], "no run here is of the script 'trian.py'; did you mean train.py[?]"),
        (["--sort", "timings.x"], "no run has the timing 'x'"),
        (["--columns", "alpha,,run_id"], "a name missing"),
        (["--csv", "--json"], "two forms"),
        (["--limit", "-1"], "less than zero"),
    ],
)
def test_what_results_cannot_show_is_said(ledger: Ledger, ended: Made, arguments: list[str], problem: str) -> None:
    ended("a", {"accuracy": 1.0}, params={"alpha": 1})
    with pytest.raises(UsageError, match=problem) as caught:
        run(["results", *arguments])
    assert caught.value.next_step


def test_scripts_are_never_mixed_in_one_ranking(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    worse, better = ended("a", {"accuracy": 0.5}), ended("b", {"accuracy": 0.6})
    other = ended("c", {"f1": 0.9, "accuracy": 0.99}, script="jobs/other.py")
    assert run(["results"]) == 0
    said = capsys.readouterr()
    blocks = [block.splitlines() for block in said.out.strip().split("\n\n")]
    assert [block[0] for block in blocks] == [
        "jobs/other.py: 1 run by f1, larger is better",
        "train.py: 2 runs by accuracy, larger is better",
    ]
    assert [line.split()[:2] for line in blocks[0][2:]] == [["1", other]]
    assert [line.split()[:2] for line in blocks[1][2:]] == [["1", better], ["2", worse]]
    assert "other scores: accuracy (--metric accuracy)" in said.err

    listed = document(capsys, "results", "--json")
    assert [(each["rank"], each["run_id"]) for each in listed["runs"]] == [(1, other), (1, better), (2, worse)]
    assert [(each["script"], each["metric"]) for each in listed["rankings"]] == [
        ("jobs/other.py", "f1"),
        ("train.py", "accuracy"),
    ]
    assert [each["run_id"] for each in document(capsys, "results", "--script", "other.py", "--json")["runs"]] == [other]
    assert [each["run_id"] for each in document(capsys, "results", "--metric", "f1", "--json")["runs"]] == [other]
    assert run(["results", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["script"], row["rank"]) for row in rows] == [
        ("jobs/other.py", "1"),
        ("train.py", "1"),
        ("train.py", "2"),
    ]


def test_functions_are_one_kind_however_many_pools_they_were_of(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ended("area", {"s": 1.0}, script=".cloudrun/calls/c-1/called.py")
    two = ended("area", {"s": 2.0}, script=".cloudrun/calls/c-2/called.py")
    assert run(["results"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == [["1", two], ["2", one]]
    assert len(document(capsys, "results", "--script", "functions", "--json")["runs"]) == 2


def test_scores_have_enough_digits_to_tell_neighbours_apart(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for score in (0.97111111, 0.97111112, 0.5, 1 / 3):
        ended("a", {"accuracy": score})
    assert [row[4] for row in table(capsys)[1:]] == ["0.97111112", "0.97111111", "0.5", "0.33333333"]
    assert document(capsys, "results", "--json")["runs"][3]["scores"]["accuracy"] == 1 / 3


def test_what_the_table_has_no_room_for_or_leaves_out_is_said(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        ended(f"n{number}", {"accuracy": number / 100})
    assert run(["results"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 21
    assert "20 of 25 runs; --limit 0 lists all" in said.err
    assert len(document(capsys, "results", "--json")["runs"]) == 25, "a program gets all"


def test_a_spreadsheet_computes_nothing_of_a_csv_file(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = {
        "a": '=HYPERLINK("http://x")',
        "b": "+1",
        "c": "-2+3",
        "d": "@SUM(1)",
        "e": "\t=1",
        "number": -2.5,
        "fine": "x=1",
    }
    ended("=name", {"accuracy": -1.0, "@score": 2.0}, params=evil)
    assert run(["results", "--csv"]) == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row[name] for name in "abcde"] == [f"'{evil[name]}" for name in "abcde"]
    assert (row["name"], row["number"], row["accuracy"], row["fine"]) == ("'=name", "-2.5", "-1.0", "x=1")
    assert "'@score" in row


def test_a_filter_that_makes_no_sense_is_shown_with_a_mark(ledger: Ledger, ended: Made) -> None:
    ended("a", {"accuracy": 1.0}, params={"größe": 1})
    with pytest.raises(UsageError) as caught:
        run(["results", "--where", "größe<1 and alpha ~ 1"])
    assert str(caught.value).splitlines()[1:] == ["größe<1 and alpha ~ 1", " " * 18 + "^"]


def test_what_can_be_sorted_by_is_listed(ledger: Ledger, ended: Made) -> None:
    ended("a", {"accuracy": 1.0}, params={"alpha": 1})
    with pytest.raises(UsageError) as caught:
        run(["results", "--sort", "nothing"])
    for name in ("accuracy", "alpha", "run_s", "cost_usd", "score_per_usd", "created_at"):
        assert name in caught.value.next_step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_narrow_terminal_gets_whole_cells(
    ledger: Ledger, ended: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    for number in range(3):
        params = {f"parameter_{each}": 10**each + number for each in range(5)}
        ended("a-rather-long-name", {"accuracy": number / 3}, params={**params, "alike": "the same"})
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    assert run(["results"]) == 0
    printed = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, printed)) <= width
    assert "…" not in "".join(printed)
    assert printed[0].split()[:3] == ["rank", "run", "name"][: 3 if width == 200 else 2] + ["accuracy"] * (width < 200)
    assert ("no room for" in capsys.readouterr().err) == (width < 200)


def test_a_terminal_too_narrow_for_any_table_gets_lines(
    ledger: Ledger, ended: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = ended("a", {"accuracy": 0.5})
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    assert run(["results"]) == 0
    assert f"run       {run_id}" in screen.getvalue().splitlines()


def test_names_with_control_characters_are_harmless_in_a_table(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"evil\x1b[2J\nname": 1.0}, params={"text": "[bold]x[/bold]\x07"})
    assert run(["results"]) == 0
    printed = capsys.readouterr().out
    assert "evil\\x1b[2J\\nname" in printed
    assert "[bold]x[/bold]\\x07" in printed
    assert "\x1b" not in printed


def test_nothing_is_cut_off_where_there_is_no_terminal(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("n" * 300, {"accuracy": 1.0})
    assert run(["results"]) == 0
    assert "n" * 300 in capsys.readouterr().out


def test_runs_of_several_codes_say_which_and_those_of_one_do_not(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"accuracy": 0.92}, code="aaaaaaaaaaaa")
    assert run(["results"]) == 0
    assert "code" not in capsys.readouterr().out
    ended("a", {"accuracy": 0.91}, code="bbbbbbbbbbbb")
    assert run(["results"]) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[header.index("code")] for row in rows] == ["aaaaaaa", "bbbbbbb"]
    assert run(["results", "--columns", "code_digest"]) == 0
    assert capsys.readouterr().out.split() == ["code", "aaaaaaa", "bbbbbbb"]


def test_runs_of_the_same_minute_are_told_apart_by_the_second(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    for second in (5, 42):
        at = NOON + timedelta(seconds=second)
        ledger.add_run(RunRecord(f"r-{second}", "train", "train.py", RunState.QUEUED, at))
    assert run(["results", "--columns", "created_at"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["2026-11-21 12:00:42Z", "2026-11-21 12:00:05Z"]


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["results", "--sort", "acuracy"], ("acuracy", "accuracy")),
        (["results", "--columns", "stae"], ("stae", "state")),
        (["results", "--metric", "acuracy"], ("acuracy", "accuracy")),
        (["results", "--script", "tran.py"], ("tran.py", "train.py")),
        (["results", "--grid", "swep"], ("swep", "sweep")),
        (["show", "frist"], ("frist", "first")),
        (["get", "first", "modle.joblib"], ("modle.joblib", "model.joblib")),
        (["ssh", "i-2"], ("i-2", "i-1")),
        (["config", "show", "regoin"], ("regoin", "region")),
    ],
    ids=lambda value: " ".join(value),
)
def test_whatever_is_mistyped_is_put_right(
    words: list[str], instead: tuple[str, str], ledger: Ledger, ended: Made
) -> None:
    ended("first", {"accuracy": 0.9}, files={"model.joblib": "x"})
    ledger.begin_grid(GridRecord("g-1", "sweep", "train.py", GridState.OPEN, NOON, "same", 1))
    with pytest.raises(CloudrunError) as caught:
        run(words)
    assert caught.value.instead == instead
