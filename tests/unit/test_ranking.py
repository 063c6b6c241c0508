"""Which way a score is better, told by its name."""

from __future__ import annotations

import pytest

from cloudrun.plan.ranking import SMALLER_IS_BETTER, better_is_smaller


@pytest.mark.parametrize("name", sorted(SMALLER_IS_BETTER))
def test_each_listed_name_is_minimised_alone_as_a_suffix_and_in_capitals(name: str) -> None:
    for spelling in (name, f"val_{name}", f"test/{name}", name.upper(), f"mean {name}", f"train{name.title()}"):
        assert better_is_smaller(spelling), spelling


@pytest.mark.parametrize(
    "name", ["log_loss", "mean_squared_error", "max_error", "meanAbsoluteError", "loss/val", "RMSE_test", "MSELoss"]
)
def test_names_that_hold_a_listed_word_are_minimised(name: str) -> None:
    assert better_is_smaller(name)


@pytest.mark.parametrize(
    "name",
    ["accuracy", "auc", "r2", "f1", "glossary", "terror", "lossless", "errorless", "score", "", "…", "emphasis"],
)
def test_other_names_are_maximised(name: str) -> None:
    assert not better_is_smaller(name)


@pytest.mark.parametrize("name", ["neg_log_loss", "neg_mean_squared_error", "negative_error"])
def test_what_scikit_learn_turned_round_is_maximised(name: str) -> None:
    assert not better_is_smaller(name)
