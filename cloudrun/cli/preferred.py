"""What the settings say that ranks, for commands that nobody has told: `metric` and `minimize` of cloudrun.toml."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from cloudrun import config
from cloudrun.cli.printing import printable
from cloudrun.core.errors import ConfigError
from cloudrun.core.settings import Settings
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred


def preferred() -> Preferred:
    """As the settings are where one stands. Where they cannot be read nothing is preferred, and stderr says why: what
    is in the ledger can be looked at all the same."""
    try:
        settings, origins = config.load_with_origins(Path.cwd(), {})
    except ConfigError as error:
        print(f"  the settings are not looked at: {printable(error)}", file=sys.stderr)
        return NOTHING_PREFERRED
    return preferred_by(settings, origins)


def preferred_by(settings: Settings, origins: Mapping[str, config.Given]) -> Preferred:
    """What these settings say; `minimize` where anybody has set it: false turns a loss round."""
    where = origins["metric"].where if "metric" in origins else ""
    return Preferred(settings.metric, settings.minimize if "minimize" in origins else None, where)
