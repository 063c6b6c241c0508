"""Scores out of what jobs write and print."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.scores import MAX_SCORES, nearly_score, scores_from

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats() | st.integers(-(10**15), 10**15)
SCORES = st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=5)


def same(left: dict[str, float], right: dict[str, float]) -> bool:
    """Equal, in the same order, with NaN equal to itself."""
    return repr(left) == repr(right)


@given(scores=SCORES, noise=st.text(max_size=50), indent=st.sampled_from([None, 2]))
def test_scores_json_comes_before_anything_printed(scores: dict[str, float], noise: str, indent: int | None) -> None:
    assert same(scores_from(noise + '\n{"printed": 1}', json.dumps(scores, indent=indent)), scores)


@given(scores=SCORES, before=st.text(max_size=50), after=st.text(st.characters(exclude_characters="{}")))
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_printed_object_is_found_whatever_is_printed_around_it(
    scores: dict[str, float], before: str, after: str, indent: int | None, ascii_only: bool
) -> None:
    printed = json.dumps(scores, indent=indent, ensure_ascii=ascii_only)
    assert same(scores_from(f"{before}\n{printed}\n{after}", None), scores)


@given(stdout=st.text(), scores_json=st.none() | st.text())
def test_no_text_at_all_is_an_error(stdout: str, scores_json: str | None) -> None:
    for value in scores_from(stdout, scores_json).values():
        assert type(value) in (int, float)


@given(scores=st.dictionaries(st.from_regex(r"[A-Za-z_][\w ]{0,20}\w", fullmatch=True), NUMBERS, min_size=1))
def test_name_and_number_lines_are_scores_where_no_object_is(scores: dict[str, float]) -> None:
    lines = "\n".join(f"{name}: {value}" for name, value in scores.items())
    assert same(scores_from(f"training\n{lines}\ndone", None), scores)


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ("", {}),
        ("no scores: at all\n", {}),
        ('{"accuracy": 0.97}\n', {"accuracy": 0.97}),
        ('{"a": 1}\n{"a": 2}\n', {"a": 2}),
        ('{"a": 1}\r\n', {"a": 1}),
        ('100%|####|\r{"a": 1}  \n', {"a": 1}),
        ('{"a": 1}\n{"event": "saved"}\n', {"a": 1}),  # the last object that has a score
        ('{"a": 1}\n{"a": 2', {"a": 1}),  # the rest is not printed yet
        ('{"a": 1} is what came out\n', {}),
        ('[\n  {\n    "a": 1\n  }\n]\n', {}),
        ('{"b": true, "n": null, "t": "0.9", "l": [1], "o": {"x": 1}, "a": 1}', {"a": 1}),
        ('{"a": NaN, "b": Infinity, "c": -Infinity, "d": 1e999}', "nan inf -inf inf"),
        ('{"big": 1' + "0" * 5000 + "}", {"big": math.inf}),
        ('{"exact": 9007199254740991, "near": 9007199254740993}', {"exact": 2**53 - 1, "near": 2.0**53}),
        ("whole: 426\nsmall: -3\nnot: 426.0\n", {"whole": 426, "small": -3, "not": 426.0}),
        ('{"z": 1, "a": 2}', {"z": 1, "a": 2}),
        ("{'a': 1}\naccuracy: 0.5\n", {"accuracy": 0.5}),
        ("loss: 3\nauc: 0.5\nloss: 1e-3\n", {"loss": 0.001, "auc": 0.5}),
        ("  f1 (macro) :  -.5\nprecision@10: +2.\n", {"f1 (macro)": -0.5, "precision@10": 2.0}),
        ("score: nan\nother: -Infinity\n", "nan -inf"),
        ("12:30\nhttp://host:80\nINFO:root:a: 1\na: 1 2\nb: 0x10\nc: 1_000\nd: ٣\n: 4\n", {}),
    ],
)
def test_what_is_printed_is_read_as_documented(stdout: str, expected: dict[str, float] | str) -> None:
    scores = scores_from(stdout, None)
    if isinstance(expected, str):
        assert " ".join(map(str, scores.values())) == expected
    else:
        assert same(scores, expected)


@pytest.mark.parametrize(
    ("line", "is_meant"),
    [
        ("acc = 0.5", True),
        ("val acc=.5 %", True),
        ("accuracy: 97%", True),
        ("accuracy: 97.5 %", True),
        ("accuracy: 0.97", False),  # it is one
        ("model = LogisticRegression(C=1)", False),
        ("a == 0.5", False),
        ("= 0.5", False),
        ("x" * 200 + " = 0.5", False),
        ("", False),
    ],
)
def test_a_line_that_was_meant_as_a_score_is_known(line: str, is_meant: bool) -> None:
    assert nearly_score(f"begin\n{line}\nend\n") == (line if is_meant else "")


@pytest.mark.parametrize("useless", ["", "{", "[1, 2]", "3", "null", '{"a": "b"}', "\x00", "[" * 100_000, "\ufeff"])
def test_a_scores_file_without_scores_leaves_it_to_what_was_printed(useless: str) -> None:
    assert scores_from("auc: 0.5", useless) == {"auc": 0.5}


def test_a_byte_order_mark_is_no_part_of_the_scores() -> None:
    assert scores_from("", '\ufeff{"auc": 0.5}') == {"auc": 0.5}


def test_a_flood_of_names_is_cut_and_the_last_value_of_the_first_ones_kept() -> None:
    lines = [f"step {number}: {number}" for number in range(5 * MAX_SCORES)]
    scores = scores_from("\n".join([*lines, "step 0: 7"]), None)
    assert len(scores) == MAX_SCORES
    assert scores["step 0"] == 7.0
    flood = {f"s{number}": number for number in range(5 * MAX_SCORES)}
    assert list(scores_from("", json.dumps(flood))) == list(flood)[:MAX_SCORES]


@pytest.mark.parametrize(
    "hostile",
    ["{\n", '{"a":\n', "{" * 80 + "\n", '{"a": [', "\r", ":", "a:", '{"a": 1} x\n', '{"' + "a" * 1000 + "\n", "[{"],
)
def test_hostile_output_ends_without_a_score(hostile: str) -> None:
    """A quadratic search would take minutes for this."""
    assert scores_from(hostile * (300_000 // len(hostile)), None) == {}
