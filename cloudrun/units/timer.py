"""The machine's own timer, which powers it off at its deadline whatever becomes of the client: set, and read back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cloudrun.core.errors import CloudrunError
from cloudrun.core.records import UnitRecord
from cloudrun.plan.userdata import held_deadline, move_deadline_script

if TYPE_CHECKING:
    from cloudrun.ssh.session import Session

COMMAND_S = 60.0


def set_timer(session: Session, unit: UnitRecord, deadline: datetime) -> None:
    """Raises CloudrunError where it is not what it should be then, ConnectionLost."""
    script = move_deadline_script(deadline)
    done = session.run("sudo -n sh -s", stdin=script.encode("ascii"), timeout_s=COMMAND_S)
    if done.exit_code != 0 or held_deadline(done.stdout) != deadline.replace(microsecond=0):
        raise CloudrunError(
            f"{unit.instance_id} did not take the new deadline: {done.stderr.strip() or done.stdout.strip()}",
            next_step=f"cloudrun pull brings home what is done; it ends at {unit.deadline:%H:%M} UTC",
        )
