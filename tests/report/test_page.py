"""The file itself: what it holds, and that nothing in it can become anything else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from cloudrun.core.records import Artifact, Passport, RunRecord
from cloudrun.core.states import RunState
from cloudrun.report import Data, render
from cloudrun.report.columns import document

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOSTILE = "</script><script>alert(1)</script><!-- \x1b[2J \u202e \x00 \u2028 ]]> & ' \" `${1}` \ud800"
Change = Callable[[RunRecord], RunRecord]


def a_run(number: int = 0, **changes: Any) -> RunRecord:
    run = RunRecord(f"r-{number}", f"cell-{number}", "train.py", RunState.SUCCEEDED, NOON, ended_at=NOON)
    return replace(run, **changes)


def a_report(*runs: RunRecord, **more: Any) -> Data:
    return Data("demo", NOON, runs, **more)


class Elements(HTMLParser):
    """Every element's name and attributes, and the texts of scripts, styles and comments."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and self.texts[-1][1] == "":
            self.texts[-1] = (self.texts[-1][0], data)


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return dict(json.loads(text))


def texts_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in texts_in(each)]
    return [text for each in value for text in texts_in(each)] if isinstance(value, list) else []


CHANGES: list[Change] = [
    lambda run: replace(run, name=HOSTILE),
    lambda run: replace(run, params={HOSTILE: HOSTILE, "list": [HOSTILE]}),
    lambda run: replace(run, scores={HOSTILE: 1.0}, metric=HOSTILE),
    lambda run: replace(run, detail=HOSTILE),
    lambda run: replace(run, script=HOSTILE, arguments=(HOSTILE,)),
    lambda run: replace(run, artifacts=(Artifact(HOSTILE, 1, "0" * 64),)),
    lambda run: replace(run, passport=Passport(HOSTILE, {HOSTILE: HOSTILE}, HOSTILE)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_job_wrote_is_data_and_adds_no_element(change: Change) -> None:
    harmless, hostile = render(a_report(a_run())), render(a_report(change(a_run())))
    assert [name for name, _ in Elements(hostile).elements] == [name for name, _ in Elements(harmless).elements]
    assert "alert(1)" in hostile  # it is there: as text


def test_a_hostile_log_and_a_hostile_title_add_no_element() -> None:
    page = render(Data(HOSTILE, NOON, [a_run()], tails={"r-0": {"stdout": HOSTILE}}, metric=None))
    assert [name for name, _ in Elements(page).elements] == [
        name for name, _ in Elements(render(a_report(a_run()))).elements
    ]
    assert "<title>&lt;/script&gt;" in page


@pytest.mark.parametrize("change", CHANGES)
def test_no_text_of_the_data_holds_what_cannot_be_seen(change: Change) -> None:
    page = render(a_report(change(a_run()), tails={"r-0": {"stdout": HOSTILE}}))
    assert all(text.replace("\n", "").isprintable() for text in texts_in(data_of(page)))
    page.encode()  # no half of a surrogate pair either


def test_only_the_scripts_and_styles_that_are_inlined_may_run_and_nothing_may_be_loaded() -> None:
    page = Elements(render(a_report(a_run())))
    (policy,) = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(each.split(" ", 1) for each in (policy or "").split("; "))
    hashed = {
        kind: {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for tag, text in page.texts
            if tag == kind and not text.startswith("{")
        }
        for kind in ("script", "style")
    }
    assert directives["default-src"] == "'none'"
    assert set(directives["script-src"].split()) == hashed["script"]
    assert set(directives["style-src"].split()) == hashed["style"]
    assert not {"img-src", "connect-src", "font-src", "frame-src"} & set(directives)


def test_there_is_no_inline_handler_no_inline_style_and_no_address_of_another_file() -> None:
    for name, attrs in Elements(render(a_report(a_run()))).elements:
        assert not [each for each in attrs if each.startswith("on") or each in ("style", "src", "action")], name
        assert attrs.get("href", "#").startswith("#") if attrs.get("href") else True


def test_the_licence_of_the_library_travels_with_it() -> None:
    page = render(a_report(a_run()))
    assert "Copyright (c) 2022 Leon Sorokin" in page
    assert "Permission is hereby granted" in page


def test_scores_that_are_no_numbers_are_words() -> None:
    scores = {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.1}
    values = {each["name"]: each["values"] for each in document(a_report(a_run(scores=scores), a_run(1)))["scores"]}
    assert values == {"a": ["NaN", None], "b": ["Infinity", None], "c": ["-Infinity", None], "d": [0.1, None]}


def test_a_parameter_is_a_column_of_numbers_only_where_all_that_have_it_have_numbers() -> None:
    given = [{"n": 1, "mixed": 1, "big": 2**60, "flag": True}, {"n": 0.5, "mixed": "two"}, {}]
    params = {
        each["name"]: each for each in document(a_report(*(a_run(i, params=p) for i, p in enumerate(given))))["params"]
    }
    assert params["n"]["values"] == [1, 0.5, None]
    assert params["mixed"]["pool"] == {"words": ["1", "two"], "at": [0, 1, -1]}
    assert params["big"]["pool"]["words"] == [str(2**60)]  # more than a browser's numbers can hold
    assert params["flag"]["pool"]["words"] == ["true"]


def test_long_texts_and_many_files_are_cut_and_counted() -> None:
    run = a_run(detail="x" * 10_000, artifacts=tuple(Artifact(f"out/{n}", 1, "0" * 64) for n in range(50)))
    made = document(a_report(run))["runs"]
    assert len(made["detail"]["words"][0]) == 2_000
    assert (len(made["files"][0]), made["file_count"]) == (20, [50])
