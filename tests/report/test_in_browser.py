"""The report as its reader has it: in a real browser, by mouse and keyboard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudrun.core.records import Artifact, AttemptRecord, Passport, Place, RunRecord, Timings, UnitRecord
from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.report import Data, render
from tests.browser import Browser

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>\x1b[31m\u202e\x00"
)
ROWS = ".scroller tbody tr[data-at]"
ALPHAS = (0.0001, 0.001, 0.01, 0.1)


def a_run(number: int, score: float | None = None, **changes: object) -> RunRecord:
    ended_at = NOON + timedelta(seconds=10 * number + 9)
    run = RunRecord(
        f"r-{number:05d}",
        f"cell-{number:05d}",
        "train.py",
        RunState.SUCCEEDED,
        NOON,
        params={"alpha": ALPHAS[number % 4], "kind": ("ridge", "lasso")[number // 4 % 2]},
        ended_at=ended_at,
        metric="accuracy",
        scores={} if score is None else {"accuracy": score, "log_loss": 1 - score},
        timings=Timings(ship_s=0.5, run_s=8.0, pull_s=0.5, total_s=9.0),
        instance_id="i-1",
        cost_usd=0.001,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def a_report(runs: list[RunRecord], **more: object) -> Data:
    """On one unit, one after the other."""
    later = NOON + timedelta(days=3)
    place = Place("sandbox", "eu-west-1")
    unit = UnitRecord("i-1", "l-1", place, UnitState.READY, "m7i.large", "u", None, 22, "k", later, "keep", "c", NOON)
    tries = [
        AttemptRecord(run.run_id, 1, "i-1", run.state, run.ended_at - timedelta(seconds=9), run.ended_at)
        for run in runs
        if run.ended_at
    ]
    minimize = {"accuracy": False, "log_loss": True}
    data = Data("demo", NOON + timedelta(days=2), runs, tries, [unit], "accuracy", minimize)
    return replace(data, **more)  # type: ignore[arg-type]


def show(tab: Browser, folder: Path, data: Data) -> None:
    page = folder / "report.html"
    page.write_text(render(data), encoding="utf-8", newline="\n")
    tab.problems.clear()
    tab.requests.clear()
    tab.resize(1280, 900)
    tab.prefer("light")
    tab.open(page)


@pytest.fixture
def page(tab: Browser, tmp_path: Path) -> Iterator[Browser]:
    """Sixteen runs: the higher the number, the better; one has failed, one has no score. Nothing may complain."""
    runs = [a_run(number, number / 20) for number in range(14)]
    failed = a_run(14, state=RunState.FAILED, end_reason=EndReason.EXITED, exit_code=1, detail="ValueError: no")
    tails = {"r-00013": {"stdout": "epoch 1\nepoch 2", "stderr": ""}}
    show(tab, tmp_path, a_report([*runs, failed, a_run(15)], tails=tails))
    yield tab
    assert tab.problems == []
    assert [url for url in tab.requests if not url.endswith("/report.html")] == []


def test_the_best_run_is_first_and_those_without_a_rank_are_last(page: Browser) -> None:
    names = tab_names(page)
    assert names[:2] == ["cell-00013", "cell-00012"]
    assert names[-2:] == ["cell-00014", "cell-00015"]
    assert page.texts(".champion .score") == ["0.650"]
    assert page.texts(".champion dd") == ["0.001", "lasso"]


def test_equals_are_listed_as_results_lists_them_the_older_first_and_what_is_no_number_behind(
    tab: Browser, tmp_path: Path
) -> None:
    equals = [a_run(number, 0.5) for number in (2, 1, 0)]  # all of the same moment: only their ids say which was first
    odd = [a_run(number, math.nan) for number in (4, 3)]
    show(tab, tmp_path, a_report([a_run(5), *odd, *equals]))
    assert tab_names(tab) == [f"cell-0000{number}" for number in (0, 1, 2, 3, 4, 5)]


def tab_names(tab: Browser) -> list[str]:
    return tab.texts(f"{ROWS} td.run")


def test_a_click_on_a_column_sorts_by_it_and_another_turns_it_round(page: Browser) -> None:
    page.click('th[data-key="p:alpha"] button')
    assert page.texts('th[aria-sort="ascending"]')[0].startswith("▲")
    alphas = [float(text) for text in page.texts(f"{ROWS} td:nth-child(6)")]
    assert alphas == sorted(alphas)
    assert len(set(alphas)) == 4
    page.click('th[data-key="p:alpha"] button')
    assert [float(text) for text in page.texts(f"{ROWS} td:nth-child(6)")] == sorted(alphas, reverse=True)
    assert page.count('th[aria-sort="descending"]') == 1


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("cell-00013", ["cell-00013"]),
        ("state=failed", ["cell-00014"]),
        ("ValueError", ["cell-00014"]),
        ("alpha>=0.01 kind=lasso -failed accuracy>0.3", ["cell-00007"]),
        ("alpha!=0.1 accuracy>=0.6", ["cell-00013", "cell-00012"]),
        ('"epoch', []),
    ],
)
def test_typing_leaves_the_runs_that_fit(page: Browser, typed: str, left: list[str]) -> None:
    page.click("#filter")
    page.type(typed)
    page.wait(f"document.querySelector('.count').innerText === '{len(left)} of 16 runs'")
    page.settle()
    assert tab_names(page) == left
    assert page.texts(".scroller .none") == ([] if left else ["No run fits the filter."])


def test_another_metric_ranks_its_own_way(page: Browser) -> None:
    page.evaluate(
        """(() => { const select = document.querySelector('#metric'); select.value = 'log_loss';
        select.dispatchEvent(new Event('change', {bubbles: true})); })()"""
    )
    page.settle()
    assert tab_names(page)[0] == "cell-00013"
    assert page.texts(".champion h2") == ["Best log_loss"]
    assert page.texts(".way") == ["smaller is better"]
    assert page.texts(".champion .score") == ["0.350"]


def test_a_run_has_a_page_with_its_log_its_neighbours_and_a_way_back(page: Browser) -> None:
    page.click(f'{ROWS}[data-at="0"] a')
    assert page.texts("h1") == ["cell-00013"]
    assert page.texts("pre") == ["epoch 1\nepoch 2"]
    assert page.texts(".run .figures dd")[:2] == ["0.6500", "1 of 14"]
    assert page.count(".phases span") == 3
    assert page.count("a[rel=prev]") == 0
    page.click("a[rel=next]")
    assert page.texts("h1") == ["cell-00012"]
    assert page.texts(".run .note") == ["Nothing it printed is home."]
    page.press("Escape")
    page.settle()
    assert tab_names(page)[0] == "cell-00013"


def test_a_failed_runs_page_says_why(page: Browser) -> None:
    page.evaluate("location.hash = '#/run/r-00014'")
    page.wait("document.querySelector('.cause')")
    assert page.texts(".cause") == ["exited, exit code 1: ValueError: no"]


def test_the_keyboard_goes_from_row_to_row_and_opens_one(page: Browser) -> None:
    page.evaluate("document.querySelector('.scroller').focus()")
    for _ in range(3):
        page.press("ArrowDown")
    assert page.evaluate("document.activeElement.innerText") == "cell-00011"
    page.press("Enter")
    page.wait("document.querySelector('h1').innerText === 'cell-00011'")


def test_a_slash_goes_to_the_filter(page: Browser) -> None:
    page.send("Input.dispatchKeyEvent", type="keyDown", key="/", text="/")
    page.send("Input.dispatchKeyEvent", type="keyUp", key="/")
    page.type("failed")
    page.wait("document.querySelector('#filter').value === 'failed'")


def test_dragging_along_an_axis_keeps_a_part_of_the_runs_until_all_are_asked_for(page: Browser) -> None:
    page.wait("document.querySelector('.parallel canvas')")
    left, top = page.evaluate(
        """(() => { const canvas = document.querySelector('.parallel canvas');
        canvas.scrollIntoView({block: 'center'}); const box = canvas.getBoundingClientRect();
        return [box.left + OVERVIEW.parallel.axes[2].x, box.top]; })()"""
    )
    page.drag((left, top + 36), (left, top + 36 + 268 * 0.3))
    page.wait("document.querySelector('.count').innerText.includes(' of 16 runs')")
    kept = tab_names(page)
    assert kept == [f"cell-{number:05d}" for number in range(13, 13 - len(kept), -1)]
    assert 0 < len(kept) < 8
    page.click(".heading .quiet")
    assert page.texts(".count") == ["16 runs"]


def test_the_progress_can_be_seen_over_dollars(page: Browser) -> None:
    page.click(".progress .choice button:nth-child(2)")
    assert page.texts('.progress [aria-pressed="true"]') == ["dollars"]
    assert "rose 13 times, last after $0.014" in page.texts(".progress .note")[0]


def test_the_timeline_says_how_much_of_the_rented_time_was_worked(page: Browser) -> None:
    page.wait("document.querySelector('.timeline canvas')")
    assert page.texts(".legend b")[0] == "< 1 %"  # 144 seconds of two days
    assert "1 unit rented for 2 d" in page.texts(".timeline + .note")[0]


@pytest.mark.parametrize("width", [1280, 700, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_is_too_narrow(page: Browser, width: int, scheme: str) -> None:
    page.resize(width, 800)
    page.prefer(scheme)
    for where in ("#/", "#/run/r-00013"):
        page.evaluate(f"location.hash = {where!r}")
        page.settle()
        page.settle()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where


def test_it_can_be_printed_and_is_the_same_afterwards(page: Browser) -> None:
    rows = page.count(ROWS)
    assert page.pdf().startswith(b"%PDF")
    page.settle()
    assert page.count(ROWS) == rows
    assert page.evaluate("document.documentElement.dataset.print === undefined")


def test_what_a_hostile_job_wrote_is_text_wherever_it_is_shown(tab: Browser, tmp_path: Path) -> None:
    hostile = a_run(
        1,
        name=HOSTILE,
        scores={HOSTILE: 2.0, "accuracy": 0.5, "__proto__": 1.0},
        params={HOSTILE: HOSTILE, "constructor": "x", "__proto__": "y"},
        detail=HOSTILE,
        script=HOSTILE,
        artifacts=(Artifact(HOSTILE, 1, "0" * 64),),
        passport=Passport(HOSTILE, {HOSTILE: HOSTILE}, HOSTILE),
    )
    failed = replace(hostile, run_id="r-2", name=f"2{HOSTILE}", state=RunState.FAILED, end_reason=EndReason.EXITED)
    runs = [hostile, failed, a_run(3, 0.25)]
    tails = {run.run_id: {"stdout": HOSTILE} for run in runs}
    show(tab, tmp_path, a_report(runs, title=HOSTILE, tails=tails))
    seen = "<img src=x onerror=\"document.title='owned'\"></script>"
    assert tab.texts("h1")[0].startswith(seen)
    assert tab.texts(f"{ROWS} td.run")[0].startswith(seen)
    assert tab.texts(f"{ROWS} td.run")[0].endswith("\\x1b[31m\\u202e\\x00")
    for run in (hostile, failed):
        tab.evaluate(f"location.hash = '#/run/{run.run_id}'")
        tab.wait(f"document.querySelector('.run .sub code').innerText === '{run.run_id}'")
        assert tab.texts("pre")[0].startswith(seen)
        name = tab.texts("h1")[0].removeprefix("2")
        assert tab.texts(".cards dt").count(name) == 3  # a parameter's, a score's and a package's name
        assert tab.count("img") == 0
    assert tab.texts(".cause")[0].startswith(f"exited, exit code 1: {seen}") or seen in tab.texts(".cause")[0]
    assert tab.evaluate("document.title") != "owned"
    assert tab.problems == []


def test_runs_that_have_the_same_name_are_told_apart_by_their_ids(tab: Browser, tmp_path: Path) -> None:
    runs = [a_run(number, number / 10, name="cell") for number in (1, 2)]
    show(tab, tmp_path, a_report([*runs, a_run(3, 0.3), a_run(4, 0.4, name="")]))
    assert tab_names(tab) == ["r-00004", "cell-00003", "r-00002", "r-00001"]
    assert tab.evaluate(f"document.querySelector('{ROWS}:last-child td.run bdi').title") == "cell"
    assert tab.problems == []


def test_a_policy_keeps_even_a_mistake_of_ours_from_running_what_a_job_wrote(page: Browser) -> None:
    blocked = page.evaluate(
        """(() => { try { document.body.innerHTML = '<img src=x onerror=1>'; return 'set'; }
        catch (error) { return error.name; } })()"""
    )
    assert blocked == "TypeError"
    page.evaluate(
        """new Promise(done => { const image = document.createElement('img');
        image.onerror = done; image.src = 'https://example.invalid/'; document.body.append(image); })"""
    )
    assert any("Content Security Policy" in problem and "img" in problem for problem in page.problems)
    page.problems.clear()
    page.requests.clear()  # it was refused before it left


def test_runs_without_scores_parameters_units_or_an_end_make_a_page_too(tab: Browser, tmp_path: Path) -> None:
    bare = RunRecord("r-1", "bare", "train.py", RunState.QUEUED, NOON)
    show(tab, tmp_path, Data("demo", NOON, [bare]))
    assert tab.texts(f"{ROWS} td.run") == ["bare"]
    tab.click(f"{ROWS} a")
    assert tab.texts("h1") == ["bare"]
    assert tab.problems == []


def test_scores_that_are_no_numbers_and_runs_far_worse_than_the_rest_do_no_harm(tab: Browser, tmp_path: Path) -> None:
    scores = [*(0.5 + number / 1000 for number in range(30)), -1e12, float("nan"), float("inf")]
    show(tab, tmp_path, a_report([a_run(number, score) for number, score in enumerate(scores)]))
    assert tab.texts(f"{ROWS} td.run")[0] == "cell-00029"
    assert tab.texts(".panels + .note")[0].endswith("1 run is worse than these charts show.")
    tab.evaluate("document.querySelector('.scroller').scrollTop = 1e9")
    tab.settle()
    assert {"NaN", "Infinity"} <= set(tab.texts(f"{ROWS} td.metric"))
    assert tab.problems == []


def test_days_without_a_run_do_not_press_the_rest_together(tab: Browser, tmp_path: Path) -> None:
    days = [a_run(number, 0.5 + number / 10) for number in range(4)]
    days = [
        replace(run, created_at=NOON + timedelta(days=at), ended_at=NOON + timedelta(days=at, seconds=60))
        for at, run in enumerate(days)
    ]
    show(tab, tmp_path, a_report(days))
    told = tab.texts(".progress .note")[0]
    assert "last after 4 min." in told
    assert told.endswith("Stretches without any run are left out.")


def test_twenty_thousand_runs_are_a_few_dozen_rows_and_all_can_be_reached(tab: Browser, tmp_path: Path) -> None:
    runs = [a_run(number, (number * 7919 % 20_000) / 20_000) for number in range(20_000)]
    show(tab, tmp_path, a_report(runs))
    assert tab.count(f"{ROWS}") < 80
    assert tab.count("*") < 2_000
    tab.evaluate("document.querySelector('.scroller').focus()")
    tab.press("End")
    tab.settle()
    assert tab.texts(f"{ROWS} td:first-child")[-1] == "20000"
    assert int(tab.evaluate("document.activeElement.closest('tr').dataset.at")) == 19_999
    assert tab.count(f"{ROWS}") < 80
    tab.click("#filter")
    tab.type("alpha=0.1 accuracy<0.5")
    tab.wait("document.querySelector('.count').innerText === '2,500 of 20,000 runs'")
    assert tab.count(f"{ROWS}") < 80
    assert tab.problems == []
