"""Whether the provider took a machine back, told from what EC2 says of it."""

from __future__ import annotations

from cloudrun.core.records import Instance

# The codes of StateReason and of the state transition ("Instance lifecycle", Amazon EC2 User Guide).
CODES = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


def was_interrupted(instance: Instance) -> bool:
    return instance.state_reason.startswith(CODES)
