"""What the settings say that ranks, for commands that nobody has told: `metric` and `minimize` of cloudrun.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from cloudrun import config
from cloudrun.cli.printing import printable
from cloudrun.core.errors import ConfigError
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred


def preferred() -> Preferred:
    """As the settings are where one stands. Where they cannot be read nothing is preferred, and stderr says why: what
    is in the ledger can be looked at all the same."""
    try:
        settings, origins = config.load_with_origins(Path.cwd(), {})
    except ConfigError as error:
        print(f"  the settings are not looked at: {printable(error)}", file=sys.stderr)
        return NOTHING_PREFERRED
    where = origins["metric"].where if "metric" in origins else ""
    return Preferred(settings.metric, settings.minimize or None, where)
