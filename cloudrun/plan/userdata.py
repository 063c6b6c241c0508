"""What a unit does first when it boots: arm its own end, then take the host key that the client has pinned."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from datetime import UTC, datetime

MAX_BYTES = 16 * 1024  # what EC2 takes, before base64
TIMER = "cloudrun-deadline.timer"
SERVICE = "cloudrun-deadline.service"

_UNITS = "/etc/systemd/system"
_STAMPS = "/var/lib/systemd/timers"

# Without default dependencies: user-data runs before sysinit.target is reached, and starting a unit that waits for
# that target would wait for itself.
_SERVICE_TEXT = """\
[Unit]
Description=cloudrun: the deadline of this machine is reached
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=systemctl poweroff
"""
_TIMER_TEXT = """\
[Unit]
Description=cloudrun: powers this machine off, whatever has happened to the client
# launch {launch}
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Timer]
OnCalendar={deadline}
Persistent=true
AccuracySec=1s
"""

# Runs at every boot, and no step that fails keeps the next from being tried. A timer of this launch is kept, since its
# owner may have moved it; one of another launch came with a baked image. At a later boot, a deadline that is past is
# set some minutes ahead, for an owner who has started the machine again to move it (compared as text, which for
# instants in this form is their order); at the first one nobody wants it any more. The timer is not enabled: at the
# next boot this script starts it, not systemd before it.
# systemd counts calendar times from the stamp, or from now where there is none: with an old stamp a deadline that
# passes right here is overdue and fires, instead of never.
_ARM = """\
cd {units}
in_seconds() {{ date -u -d "@$(($(date +%s) + $1))" '+%Y-%m-%d %H:%M:%S UTC'; }}
if ! grep -qsF '# launch {launch}' {timer}; then
  printf '%s' {service_text} > {service}
  printf '%s' {timer_text} > {timer}
elif expr "$(sed -n 's/^OnCalendar=//p' {timer})" '<=' "$(in_seconds 0)" > /dev/null; then
  sed -i "s/^OnCalendar=.*/OnCalendar=$(in_seconds {grace_s})/" {timer}
fi
mkdir -p {stamps} && touch -d 2000-01-01 {stamps}/stamp-{timer}
systemctl daemon-reload
systemctl start {timer}
"""

# For a unit that runs, as root. The boot script above keeps a moved timer of its launch. The stamp is made old again,
# so that a moment which passes right here fires; the last line is what systemd itself holds, not what the file says.
_MOVE = """\
set -e
cd {units}
grep -q '^OnCalendar=' {timer}
sed -i 's/^OnCalendar=.*/OnCalendar={deadline}/' {timer}
sync {timer} .
mkdir -p {stamps}
touch -d 2000-01-01 {stamps}/stamp-{timer}
systemctl daemon-reload
systemctl restart {timer}
systemctl show --property=TimersCalendar {timer} | sed -n 's/.*\\(OnCalendar=[^;}}]* UTC\\).*/\\1/p'
"""
_HELD = re.compile(r"^OnCalendar=(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC$", re.MULTILINE)


def user_data(*, deadline: datetime, host_private_key: str, host_public_key: str, overdue_grace_s: float) -> str:
    """The `#cloud-config` of a launch. `deadline` is absolute and aware; keys are OpenSSH's texts, ed25519. A machine
    that is started again after its deadline has `overdue_grace_s` for its owner to move it.

    Raises ValueError for a naive deadline or where the whole is more than `MAX_BYTES`.
    """
    settings = {
        "bootcmd": [["sh", "-c", _arm(deadline, overdue_grace_s, launch=_fingerprint(host_public_key))]],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_private_key, "ed25519_public": host_public_key},
        "ssh_pwauth": False,
        "disable_root": True,
    }
    # JSON is YAML, so every value is quoted as it should be; one key a line, in the order in which things happen
    text = "#cloud-config\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"user-data of {len(text.encode())} bytes: EC2 takes {MAX_BYTES}")
    return text


def move_deadline_script(deadline: datetime) -> str:
    """Moves a running unit's deadline, for `sudo -n sh -c` there; a moment that is past powers it off at once.

    It fails where the unit has no timer of ours. `held_deadline` reads what it prints. Raises ValueError for a naive
    deadline.
    """
    return _MOVE.format(units=_UNITS, stamps=_STAMPS, timer=TIMER, deadline=_moment(deadline))


def held_deadline(printed: str) -> datetime | None:
    """When the unit's own systemd will power it off, as the script has printed; None where it does not say."""
    found = _HELD.search(printed)
    return None if found is None else datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def _moment(deadline: datetime) -> str:
    if deadline.tzinfo is None:
        raise ValueError("a deadline without a zone")
    return deadline.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _arm(deadline: datetime, overdue_grace_s: float, *, launch: str) -> str:
    return _ARM.format(
        units=_UNITS,
        stamps=_STAMPS,
        launch=launch,
        timer=TIMER,
        service=SERVICE,
        service_text=shlex.quote(_SERVICE_TEXT),
        timer_text=shlex.quote(_TIMER_TEXT.format(launch=launch, deadline=_moment(deadline))),
        grace_s=math.ceil(overdue_grace_s),
    )


def _fingerprint(host_public_key: str) -> str:
    """A launch's name for its own timer: its host key is its own, and no secret."""
    return hashlib.sha256(host_public_key.encode()).hexdigest()[:16]
