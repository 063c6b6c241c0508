"""Digests: equal for the same thing, different for anything else, and never by accident of order."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.errors import UsageError
from cloudrun.plan.fingerprint import cell_key, code_digest, environment_fingerprint, environment_text, params_digest

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_an_environment_is_its_text() -> None:
    text = environment_text("3.11", "arm64", ["scipy==1.17.1", "numpy==2.4.6"])
    assert text == "cloudrun environment 1\npython 3.11\narchitecture arm64\nnumpy==2.4.6\nscipy==1.17.1\n"
    fingerprint = environment_fingerprint("3.11", "arm64", ["numpy==2.4.6", "scipy==1.17.1"])
    assert fingerprint == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_another_python_architecture_or_version_is_another_environment() -> None:
    fingerprints = {
        environment_fingerprint(python, architecture, [f"numpy=={version}"])
        for python in ("3.11", "3.12")
        for architecture in ("x86_64", "arm64")
        for version in ("2.4.6", "2.4.5")
    }
    assert len(fingerprints) == 8


def test_code_is_its_paths_and_contents_in_any_order() -> None:
    files = {"a.py": b"1", "b.py": b"2"}
    assert code_digest(files) == code_digest(dict(reversed(files.items())))
    different = [{"a.py": b"2", "b.py": b"1"}, {"a.py": b"1"}, {"a.py": b"1", "c.py": b"2"}, {"a.py\nb.py": b"1"}, {}]
    assert len({code_digest(each) for each in [files, *different]}) == 6


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_parameters_have_one_digest_whatever_their_order(params: dict[str, object]) -> None:
    assert params_digest(params) == params_digest(dict(reversed(params.items())))


def test_parameters_of_different_types_differ() -> None:
    values = [1, 1.0, True, "1", None, [1], {"a": 1}, float("nan"), float("inf"), -0.0, 0.0, 0.1, "0.1"]
    assert len({params_digest({"x": value}) for value in values}) == len(values)
    assert params_digest({"x": (1, 2)}) == params_digest({"x": [1, 2]})
    assert params_digest({"x": float("nan")}) == params_digest({"x": float("nan")})


@pytest.mark.parametrize("value", [object(), {1: "a"}, {"a": [{2: 3}]}, b"bytes", {1, 2}])
def test_what_json_cannot_say_is_refused_by_name(value: object) -> None:
    with pytest.raises(UsageError, match="parameter 'alpha'"):
        params_digest({"alpha": value})


def test_a_parameter_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UsageError, match="loop"):
        params_digest({"loop": loop})


def test_a_cell_is_its_code_parameters_data_environment_and_arguments() -> None:
    ours = {
        "code_digest": "a" * 64,
        "params": {"alpha": 0.1, "seed": 7},
        "data_digest": "",
        "environment_digest": "e" * 32,
        "arguments": ("--fast", "x"),
    }
    others: list[dict[str, object]] = [
        {"code_digest": "b" * 64},
        {"params": {"alpha": 0.1}},
        {"params": {"alpha": 0.1, "seed": 7.0}},
        {"data_digest": "d" * 64},
        {"environment_digest": "f" * 32},
        {"arguments": ("x", "--fast")},
        {"arguments": ("--fast x",)},
        {"arguments": ("--fast", "x\n")},
        {"arguments": ()},
        {"cwd": "jobs"},
        {"cwd": ".."},
        {"code_digest": "a" * 64 + "\ndata "},
    ]
    assert cell_key(**ours) == cell_key(**ours, cwd=".")  # type: ignore[arg-type]
    keys = {cell_key(**{**ours, **other}) for other in [{}, *others]}  # type: ignore[arg-type]
    assert len(keys) == 1 + len(others)
    assert {len(key) for key in keys} == {64}
    assert cell_key(**{**ours, "params": {"seed": 7, "alpha": 0.1}, "arguments": ["--fast", "x"]}) in keys  # type: ignore[arg-type]
