"""Which differences in versions matter to a model."""

from __future__ import annotations

import pytest

from cloudrun.core.records import Passport
from cloudrun.ledger.models import differences, is_model

MADE = Passport("3.11.2", {"numpy": "2.1.0", "scikit-learn": "1.6.1", "joblib": "1.4.2"}, "Linux-x86_64")


@pytest.mark.parametrize(
    ("python", "here", "expected"),
    [
        ("3.11.9", {"numpy": "2.1.3", "scikit-learn": "1.6.0", "joblib": "1.5.0"}, []),
        ("3.12.2", {"numpy": "2.1.0", "scikit-learn": "1.6.1"}, ["python 3.11.2 (here 3.12.2)"]),
        ("3.11.2", {"numpy": "2.10.0", "scikit-learn": "1.6.1"}, ["numpy 2.1.0 (here 2.10.0)"]),
        (
            "3.11.2",
            {"numpy": "1.1.0"},
            ["scikit-learn 1.6.1 (here not installed)", "numpy 2.1.0 (here 1.1.0)"],
        ),
    ],
)
def test_python_numpy_and_scikit_learn_are_compared_by_minor_version(
    python: str, here: dict[str, str], expected: list[str]
) -> None:
    assert list(differences(MADE, python, here.get)) == expected


def test_a_package_the_model_was_not_made_with_is_not_compared() -> None:
    made = Passport("3.11.2", {"numpy": ""}, "Linux")
    assert list(differences(made, "3.11.2", {"numpy": "1.0.0"}.get)) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [("model.joblib", True), ("a/b.PKL", True), ("m.pickle", True), ("pkl", False), ("a.pkl.txt", False)],
)
def test_models_are_told_by_their_suffix(path: str, expected: bool) -> None:
    assert is_model(path) is expected
