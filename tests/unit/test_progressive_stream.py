"""The progressive job's features: FeatureHasher's columns, PolynomialFeatures' terms, and what a CSV may hold."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progressive_stream import BadData, Block, HashedSpace, NoSuchColumn, blocks, term_name, terms
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import PolynomialFeatures

from tests.bench import notebook

NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3)) | st.sampled_from([0.0, -0.0, 1.0])
WORDS = st.sampled_from(["red", "blue", "", "x1", "a b", "é", "=", "^2"])
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, WORDS, WORDS), min_size=1, max_size=12)


def block(rows: Sequence[tuple[float, float, str, str]]) -> Block:
    x1, x2, colour, shape = zip(*rows, strict=True)
    numbers = {"x1": np.array(x1), "x2": np.array(x2)}
    return Block(np.zeros(len(rows)), numbers, {"colour": np.array(colour), "shape": np.array(shape)})


def hashed_plainly(rows: Sequence[tuple[float, float, str, str]], degree: int, n_features: int) -> Any:
    names = ["colour", "shape", "x1", "x2"]
    wanted = notebook.terms(names, names[:2], degree)
    texts = [dict(zip(names, (colour, shape, repr(x1), repr(x2)), strict=True)) for x1, x2, colour, shape in rows]
    products = [notebook.products(row, wanted, names[:2]) for row in texts]
    return FeatureHasher(n_features).transform(products)


def assert_same(space: HashedSpace, ours: Any, theirs: Any) -> None:
    """To the last bit, and in the same order."""
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(space.columns[ours.indices], theirs.indices)
    np.testing.assert_array_equal(ours.data, theirs.data)


def space(degree: int, n_features: int) -> HashedSpace:
    return HashedSpace(["colour", "shape", "x1", "x2"], ["colour", "shape"], degree, n_features)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 3))
def test_names_are_hashed_to_the_columns_and_signs_of_feature_hasher(rows: Any, degree: int) -> None:
    ours = space(degree, 2**20)
    assert_same(ours, ours.rows(block(rows)), hashed_plainly(rows, degree, 2**20))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(1, 7))
def test_names_that_share_a_column_are_added_up_in_it(rows: Any, degree: int, n_features: int) -> None:
    ours = space(degree, n_features)
    made, plain = ours.rows(block(rows)), hashed_plainly(rows, degree, n_features)
    full = np.zeros(plain.shape)
    full[:, ours.columns] = made.toarray()
    largest = max(1.0, *(abs(value) ** degree for row in rows for value in row[:2]))
    np.testing.assert_allclose(full, plain.toarray(), rtol=0, atol=1e-12 * largest)  # three or more add up in any order


@settings(max_examples=30, deadline=None)
@given(ROWS, ROWS)
def test_a_column_keeps_its_place_when_later_rows_bring_others(first: Any, second: Any) -> None:
    ours = space(2, 2**16)
    before = ours.rows(block(first))
    after = ours.rows(block(second))
    assert after.shape[1] >= before.shape[1] == len({*before.indices.tolist()})
    assert_same(ours, before, hashed_plainly(first, 2, 2**16))
    assert_same(ours, after, hashed_plainly(second, 2, 2**16))


def test_a_rows_values_are_in_the_order_of_their_hashed_columns_whatever_their_places() -> None:
    ours = space(2, 2**16)
    ours.rows(block([(1.0, 2.0, "red", "round")]))
    rows = ours.rows(block([(3.0, 4.0, "blue", "square")]))
    columns = ours.columns[rows.indices]
    assert (np.diff(columns) > 0).all()
    assert not (np.diff(rows.indices) > 0).all(), "places that are in order too would make this say nothing"


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_terms_of_numbers_are_those_of_polynomial_features_by_name_and_in_order(degree: int) -> None:
    names = ["x1", "x2", "x3"]
    theirs = PolynomialFeatures(degree, include_bias=False).fit(np.zeros((1, 3))).get_feature_names_out(names)
    assert [term_name(term) for term in terms(names, [], degree)] == theirs.tolist()


def test_a_dummy_is_multiplied_neither_with_itself_nor_with_another_of_its_variable() -> None:
    made = terms(["colour", "shape", "x1"], ["colour", "shape"], 3)
    assert ("colour", "colour") not in made
    assert ("colour", "colour", "x1") not in made
    assert {("colour", "shape"), ("colour", "x1", "x1"), ("colour", "shape", "x1")} <= set(made)
    ours = HashedSpace(["colour", "x1"], ["colour"], 2, 2**20)
    colours = np.array(["red", "blue"])
    ours.rows(Block(np.zeros(2), {"x1": np.array([2.0, 3.0])}, {"colour": colours}))
    names = {term_name(factors) for factors in ours.seen}
    assert names == {"colour=red", "colour=blue", "x1", "x1^2", "colour=red x1", "colour=blue x1"}


# -- the stream


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def read(path: Path, *, rows: int = 3, categories: Sequence[str] = ()) -> list[Block]:
    return list(blocks(path, "y", ["x1", "x2"], categories, rows))


def test_rows_come_in_blocks_of_which_the_last_may_be_short(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "y,x1,x2\n" + "".join(f"{i % 2},{i}.5,-{i}e-3\n" for i in range(7)))
    found = read(path)
    assert [len(each.target) for each in found] == [3, 3, 1]
    assert np.concatenate([each.target for each in found]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert np.concatenate([each.numbers["x2"] for each in found]).tolist() == [-i / 1000 for i in range(7)]


@pytest.mark.parametrize(
    "text",
    [
        "y,x1,x2\r\n1,2,3\r\n0,4,5\r\n",
        "\ufeffy,x1,x2\n1,2,3\n0,4,5",
        "\n y , x1,x2\n\n1, 2 ,3\n\n  \n0,4,5\n\n",
        'x2,"note, quoted",x1,y\n3,"a, b",2,1\n5,"# ""c""",4,0\n',
        'y,"x1",x2\n1,"2","3"\n0,4,5\n',
    ],
    ids=["CRLF", "a byte order mark and no last newline", "blank lines and spaces", "other columns", "quoted numbers"],
)
def test_a_csv_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    (only,) = read(write(tmp_path / "d.csv", text))
    assert only.target.tolist() == [1, 0]
    assert only.numbers["x1"].tolist() == [2, 4]
    assert only.numbers["x2"].tolist() == [3, 5]


def test_categories_are_texts_quoted_or_not(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", 'y,x1,x2,c\n1,2,3,red\n0,4,5,"a, b"\n0,4,5,\n0,4,5,7\n')
    found = read(path, rows=2, categories=["c"])
    assert list(itertools.chain(*(each.categories["c"].tolist() for each in found))) == ["red", "a, b", "", "7"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("y,x1,x2\n", "has no rows"),
        ("y,x1,x2\n1,2,3\n0,abc,5\n", "row 2: x1 is 'abc'"),
        ("y,x1,x2\n1,2,3\n0,,5\n", "row 2: x1 is ''"),
        ("y,x1,x2\n1,2,3\n1,2,3\n1,2,3\n\n0,4,nan\n", "row 4: x2 is 'nan'"),
        ("y,x1,x2\n1,2,inf\n", "row 1: x2 is 'inf'"),
        ("y,x1,x2\n2,2,3\n", "row 1: y is 2"),
        ("y,x1,x2\nyes,2,3\n", "row 1: y is 'yes'"),
        ("y,x1,x2\n1,2,3\n1,2\n", "row 2: 2 values in 3 columns"),
        ("y,x1,x2\n1,2,3,4\n", "row 1: 4 values in 3 columns"),
        ("y,x1,x2\n1,2,3\n# 1,2,3\n", "row 2: y is '# 1'"),
    ],
)
def test_what_a_csv_may_not_hold_is_said_with_its_row(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadData) as raised:
        read(write(tmp_path / "d.csv", text))
    assert says in str(raised.value)
    assert "d.csv" in str(raised.value)


def test_a_number_that_is_a_text_leads_to_categorical(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="--categorical"):
        read(write(tmp_path / "d.csv", "y,x1,x2\n1,red,3\n"))


@pytest.mark.parametrize(("header", "says"), [("y,x1", "'x2' is not among"), ("y,x1,x2,x1", "'x1' is twice among")])
def test_a_column_that_is_not_there_or_twice_is_named_with_those_there_are(
    tmp_path: Path, header: str, says: str
) -> None:
    with pytest.raises(NoSuchColumn, match=says) as raised:
        read(write(tmp_path / "d.csv", f"{header}\n"))
    assert header.replace(",", ", ") in str(raised.value)


def test_bytes_that_are_no_text_and_cells_without_end_are_bad_data(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"y,x1,x2\n1,\xff\xfe,3\n")
    with pytest.raises(BadData, match="UTF-8"):
        read(tmp_path / "d.csv")
    too_long = csv.field_size_limit() + 1
    write(tmp_path / "e.csv", f"y,x1,x2,c\n1,2,3,{'c' * too_long}\n")
    with pytest.raises(BadData, match="field larger"):
        read(tmp_path / "e.csv", categories=["c"])
