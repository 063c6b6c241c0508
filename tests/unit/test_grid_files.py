"""Grid files: the same grid in three languages, and every mistake said with its file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.cli.gridding import grid_of
from cloudrun.core.errors import UsageError
from cloudrun.plan.grid import make_grid
from cloudrun.plan.grid_files import KINDS, read_grid

JOBS = Path(__file__).parents[2] / "jobs"
NAMES = st.from_regex(r"[a-zA-Z_][\w.]{0,8}", fullmatch=True) | st.sampled_from(
    ["on", "1", "null", "grid", 'a"b', "a:b"]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
LISTS = st.lists(VALUES, min_size=1, max_size=4, unique_by=json.dumps)
TABLES = st.dictionaries(NAMES, LISTS | SCALARS, min_size=1, max_size=4)


def toml(table: dict[str, Any]) -> str:
    return "\n".join(f"{_toml_value(name)} = {_toml_value(value)}" for name, value in table.items())


class _Quoting(yaml.SafeDumper):
    """Quotes every text: PyYAML takes some for plain words that are numbers in YAML 1.2, such as 0E0."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Quoting, sort_keys=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's strings are TOML's but for half surrogate pairs and DEL; its 1e+16 is as well
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- the same in every language


@given(TABLES)
def test_a_table_is_what_was_written(table: dict[str, Any]) -> None:
    written = {
        "json": json.dumps(table, indent=1),
        "yaml": _yaml(table),
        "toml": toml(table),
    }
    for kind, text in written.items():
        assert read_grid(text, kind, "grid") == make_grid(table), text


@given(st.lists(TABLES, min_size=1, max_size=3))
def test_a_list_of_tables_is_what_was_written(tables: list[dict[str, Any]]) -> None:
    written = {
        "json": json.dumps(tables),
        "yaml": _yaml(tables),
        "toml": "\n".join(f"[[grid]]\n{toml(table)}" for table in tables),
    }
    for kind, text in written.items():
        assert read_grid(text, kind, "grid") == make_grid(tables), text


def test_what_stands_above_the_first_table_is_in_all_of_them() -> None:
    text = 'seed = [1, 2]\nkernel = "none"\n[[grid]]\nkernel = "linear"\n[[grid]]\ngamma = 1\n'
    assert read_grid(text, "toml", "g") == make_grid(
        [{"seed": [1, 2], "kernel": "linear"}, {"seed": [1, 2], "kernel": "none", "gamma": 1}]
    )


def test_distributions_are_written_in_every_language() -> None:
    grid = make_grid({"alpha": {"loguniform": [0.0001, 1]}})
    assert read_grid("alpha = { loguniform = [1e-4, 1] }", "toml", "g") == grid
    assert read_grid("[alpha]\nloguniform = [1e-4, 1]", "toml", "g") == grid
    assert read_grid("alpha:\n  loguniform: [1e-4, 1]", "yaml", "g") == grid
    assert read_grid('{"alpha": {"loguniform": [1e-4, 1]}}', "json", "g") == grid


def test_yaml_means_what_it_says_today() -> None:
    text = "[1e-4, 1.5, .5, 1E3, 0, -7, true, False, ~, no, on, 1:30, 010, 2026-01-31, 0x1f, 1_000, 'true', 1.2.3]"
    cells = read_grid(f"a: {text}", "yaml", "g").tables[0]["a"]
    assert cells == (
        *(1e-4, 1.5, 0.5, 1000.0, 0, -7, True, False, None),
        *("no", "on", "1:30", "010", "2026-01-31", "0x1f", "1_000", "true", "1.2.3"),
    )


def test_yaml_may_take_from_another_table() -> None:
    text = "- &base\n  a: [1, 2]\n  b: x\n- <<: *base\n  b: y\n"
    assert read_grid(text, "yaml", "g") == make_grid([{"a": [1, 2], "b": "x"}, {"a": [1, 2], "b": "y"}])


def test_a_set_in_place_of_what_the_file_says_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"alpha": [1, 2]}, {"alpha": 5, "beta": 1}]')
    grid = grid_of(["alpha=3", "seed=7"], file)
    assert list(grid.cells()) == [{"alpha": 3, "seed": 7}, {"alpha": 3, "beta": 1, "seed": 7}]
    assert capsys.readouterr().err == f"  --set alpha is in place of what {file} says of it\n"


def test_the_grids_of_the_progressive_job_have_144_cells_and_12() -> None:
    alone = grid_of(file=JOBS / "progressive.toml")
    fused = grid_of(file=JOBS / "progressive_fused.toml")
    assert (len(alone), len(fused)) == (144, 12)
    assert {cell["features"] for cell in alone.cells()} == {"x1,x2", "x1,x2,x3"}
    assert {(cell["l1_ratio"], cell["alpha"]) for cell in fused.cells()} == {("0.15,0.5,0.85", "1e-4,1e-3,1e-2,1e-1")}


# -- mistakes


@pytest.mark.parametrize(
    ("kind", "text", "line"),
    [
        ("toml", "a = [1, 2]\nb = [1,,2]\n", 2),
        ("toml", "a = [1, 2]\na = 3\n", 2),
        ("toml", "a = [1\n\n", 2),
        ("toml", "a = 1\n\nb = []\n", 3),
        ("toml", "a = 1\nb = [1, nan]", 2),
        ("toml", "a = 1\nb = 2026-01-31", 2),
        ("toml", "a = 1\n\n[sizes]\nsmall = 1\nlarge = 2\n", 3),
        ("toml", "[[grid]]\na = [1]\n[[grid]]\nb = 1\na = [2, 2]\n", 5),
        ("toml", "seed = []\n[[grid]]\na = [1]\n[[grid]]\nb = 1\n", 1),
        ("toml", 'a = """\nb = [1]\n"""\nb = { uniform = [1, 0] }', 4),
        ("toml", "", 1),
        ("toml", "# nothing\n", 1),
        ("toml", "[[grid]]\n", 1),
        ("yaml", "a: [1, 2]\nb: [1,\n", 3),
        ("yaml", "a: 1\nb: 2\na: 3\n", 3),
        ("yaml", "a: 1\n\tb: 2\n", 2),
        ("yaml", "a: 1\nb: [.nan]\n", 2),
        ("yaml", "a: 1\nb: !!python/name:os.system x\n", 2),
        ("yaml", "a: 1\nb: *nowhere\n", 2),
        ("yaml", "a: 1\n? [b]\n: 1\n", 2),
        ("yaml", "a: 1\n1: 2\n", 2),
        ("yaml", "a: 1\n---\nb: 1\n", 2),
        ("yaml", "a: 1\nb: \x07\n", 2),
        ("yaml", "- a: [1]\n- b: 1\n  a: []\n", 3),
        ("yaml", "a: 1\nb: &loop [*loop]\n", 2),
        ("yaml", "a: 1\nb: {c: 1, d: 2}\n", 2),
        ("yaml", "", 1),
        ("yaml", "text", 1),
        ("yaml", "-\n- a: 1\n", 1),
        ("json", '{"a": [1, 2],\n "b": [1,,2]}', 2),
        ("json", '{"a": 1,\n\n"a": 2}', 3),
        ("json", '{"a": 1,\n "b": [NaN]}', 2),
        ("json", '{"a": {"choice": ["b:", "\\"b\\":"]},\n "b":\n []}', 2),
        ("json", '[{"a": 1},\n {"b": 1,\n "a": {"uniform": 3}}]', 3),
        ("json", '{"a": 1,\n "a b": 1}', 2),
        ("json", "", 1),
        ("json", "{}", 1),
        ("json", "[]", 1),
        ("json", "[{}]", 1),
        ("json", "[1]", 1),
        ("json", "3", 1),
    ],
)
def test_a_mistake_is_said_with_file_and_line(kind: str, text: str, line: int) -> None:
    with pytest.raises(UsageError) as refused:
        read_grid(text, kind, "my grid")
    assert str(refused.value).startswith(f"my grid:{line}: ")
    assert refused.value.next_step


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        "a: 9" + "9" * 5_000,
        "a = 9" + "9" * 5_000,
        '{"a": 9' + "9" * 5_000 + "}",
        "a = 0x" + "f" * 5_000,
        "a: !!int x",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!binary é",
        "a: !!set {x}",
        "a: \x00",
        '{"a": "\\ud800"}',
        '{"a": "\\u0000"}',
        '"" = 1',
    ],
    ids=lambda text: repr(text)[:20],
)
def test_hostile_texts_are_refused_in_words(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^grid"):
        read_grid(text, kind, "grid")


@given(st.text() | st.text("abc:=,[]{}&*!?|>-#'\"\n\t 01.e+"), st.sampled_from(sorted(set(KINDS.values()))))
def test_any_text_is_a_grid_or_refused_in_words(text: str, kind: str) -> None:
    try:
        grid = read_grid(text, kind, "grid")
    except UsageError as error:
        assert str(error).startswith("grid")  # noqa: PT017 - either outcome is fine, silence is not
        assert error.next_step  # noqa: PT017
        return
    assert any(grid.tables)


def test_yaml_is_imported_for_yaml_only() -> None:
    code = (
        "import sys; from cloudrun.plan.grid_files import read_grid; read_grid('a = 1', 'toml', 'g'); "
        "print('yaml' in sys.modules); read_grid('a: 1', 'yaml', 'g'); print('yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "True"]


# -- the options of a command line


def test_assignments_beside_a_file_are_in_each_of_its_tables(tmp_path: Path) -> None:
    file = tmp_path / "grid.JSON"
    file.write_text('[{"a": [1, 2]}, {"b": 1}]', encoding="utf-8-sig")
    cells = list(grid_of(["seed=7", "b=3,4"], file).cells())
    assert cells == [{"a": a, "seed": 7, "b": b} for a in (1, 2) for b in (3, 4)] + [
        {"b": b, "seed": 7} for b in (3, 4)
    ]


def test_assignments_can_make_two_cells_one(tmp_path: Path) -> None:
    file = tmp_path / "grid.yml"
    file.write_text("- a: 1\n  b: 1\n- a: 1\n  b: 2\n")
    assert len(grid_of(file=file)) == 2
    with pytest.raises(UsageError, match="cells 1 and 2 of this grid are the same: a=1 b=3"):
        grid_of(["b=3"], file)


def test_a_sample_is_drawn_with_its_seed() -> None:
    sets = ["a=" + ",".join(map(str, range(1000))), "b=1,2"]
    assert list(grid_of(sets, sample=5, seed=3).cells()) == list(grid_of(sets, sample=5, seed=3).cells())
    assert list(grid_of(sets, sample=5).cells()) == list(grid_of(sets, sample=5, seed=0).cells())
    assert len(grid_of(sets, sample=5)) == 5


def test_nothing_said_is_a_plain_run() -> None:
    assert list(grid_of().cells()) == [{}]
    assert list(grid_of(["alpha=0.1"]).cells()) == [{"alpha": 0.1}]


def test_too_many_cells_need_a_yes() -> None:
    sets = [f"{name}=" + ",".join(map(str, range(100))) for name in "abcd"]
    with pytest.raises(UsageError, match="100,000,000 cells"):
        grid_of(sets)
    assert len(grid_of(sets, yes=True)) == 10**8
    assert len(grid_of(sets, sample=10)) == 10


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"a = 1\nb = '\xe9'\n")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "grid.txt").write_text("a = 1")
    for name, says in [
        ("missing.toml", "No such file"),
        ("folder.json", "directory"),
        ("grid.txt", "does not say what it is written in"),
        ("latin.toml", r"latin\.toml:2: this is not UTF-8"),
    ]:
        with pytest.raises(UsageError, match=says) as refused:
            grid_of(file=tmp_path / name)
        assert refused.value.next_step


def test_a_seed_without_a_sample_is_refused() -> None:
    with pytest.raises(UsageError, match="--sample"):
        grid_of(["a=1"], seed=3)
