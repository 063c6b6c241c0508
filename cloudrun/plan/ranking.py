"""Which way a score is better, told by its name."""

from __future__ import annotations

import re

# A metric is an error, and smaller is better, if one of these is a whole word of its name: `val_loss`, `log_loss`,
# `rmse`, `trainLoss`, `mean_absolute_error`, `loss/val`. `--minimize` says it for any other.
SMALLER_IS_BETTER = frozenset(
    {
        "loss", "logloss",
        "error", "errors", "err",
        "mae", "mse", "rmse", "mape", "smape", "msle", "rmsle",
        "wer", "cer",
        "nll", "perplexity", "deviance", "brier", "regret",
    }
)  # fmt: skip
# scikit-learn turns errors round so that bigger is better again: `neg_log_loss`, `neg_mean_squared_error`
NEGATED = frozenset({"neg", "negative"})

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def better_is_smaller(name: str) -> bool:
    """Whether the metric of that name is to be minimised."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & SMALLER_IS_BETTER) and not words & NEGATED


def per_usd(score: float, cost_usd: float, *, minimize: bool) -> float:
    """The score per dollar where more of it is better, else the score times the dollars; for a score below zero the
    other way round. So the cheaper run is ahead at the same score, and the one with the better score at the same price.
    """
    return score / cost_usd if (score <= 0 if minimize else score >= 0) else score * cost_usd
