"""Which run is ahead of which: the one order of all rankings, and which way a score is better, told by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Preferred:
    """What the settings say that ranks, whether smaller of it is better (None: they do not say), and `where` it stands.

    `minimize` is about that `metric` alone: without one it says nothing of a ranking. It was about the first score of
    the runs that were submitted with it then, and they say so themselves.
    """

    metric: str | None = None
    minimize: bool | None = None
    where: str = ""


NOTHING_PREFERRED = Preferred()


def chosen(
    metric: str | None, minimize: bool | None, preferred: Preferred, has: Callable[[str], bool]
) -> tuple[str | None, bool | None]:
    """The metric to rank some runs by and whether smaller is better: what a command says (None: nothing), else the
    settings' for runs that have it (`has`), else None, as the runs themselves say. The settings' metric has the
    settings' direction whoever names it."""
    if metric is None and preferred.metric is not None and has(preferred.metric):
        metric = preferred.metric
    if minimize is None and metric is not None and metric == preferred.metric:
        minimize = preferred.minimize
    return metric, minimize


def direction_text(metric: str, minimize: bool) -> str:
    """Which way is better, where a score's name does not say it; else ""."""
    if minimize == better_is_smaller(metric):
        return ""
    return "smaller is better" if minimize else "larger is better"


def rank_key(score: float, run_id: str, *, minimize: bool) -> tuple[bool, float, str]:
    """What runs with a score are sorted by, the best first: the better score, among equals the older run (ids sort by
    when they were made); NaN and infinities last, whichever way is better, the older first too.

    `ledger.results` says the same in SQL, and the report's `rankRuns` in a browser.
    """
    if not math.isfinite(score):
        return True, 0.0, run_id
    return False, score if minimize else -score, run_id


def per_usd(score: float, cost_usd: float, *, minimize: bool) -> float:
    """The score per dollar where more of it is better, else the score times the dollars; for a score below zero the
    other way round. So the cheaper run is ahead at the same score, and the one with the better score at the same price.
    """
    return score / cost_usd if (score <= 0 if minimize else score >= 0) else score * cost_usd
