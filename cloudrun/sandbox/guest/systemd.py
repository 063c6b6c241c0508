"""The part of systemd that cloudrun's units rely on: timers with a date, services they start, power-off, reload ssh.

What systemd does beyond this is answered with "not emulated" and exit code 1. See systemd.timer(5) for what the words
mean; a persistent timer whose date passed while the machine was off fires at boot, by the age of its stamp file.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

UNITS = "/etc/systemd/system"
STAMPS = "/var/lib/systemd/timers"
_SPANS_S = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SSH_NAMES = frozenset({"ssh", "sshd", "ssh.service", "sshd.service"})

Ending = Literal["poweroff", "reboot"]
Spawn = Callable[[Callable[[], int], Callable[[int], None]], int]


class NotEmulated(Exception):
    pass


@dataclass(frozen=True)
class Reply:
    exit_code: int
    out: str = ""
    err: str = ""


@dataclass
class _Timer:
    due_at: float | None  # seconds since 1970; None once it has elapsed
    service: str
    stamp: str | None
    calendar: str  # its OnCalendar=, "" where it has none


@dataclass(frozen=True)
class Unit:
    """A unit file: the values of each `Key=` by section, in order."""

    values: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def last(self, section: str, key: str, default: str = "") -> str:
        return self.values.get((section, key), [default])[-1]


class Systemd:
    def __init__(
        self, prefix: str, *, spawn: Spawn, end: Callable[[Ending], None], reload_ssh: Callable[[], None]
    ) -> None:
        self._units = prefix + UNITS
        self._stamps = prefix + STAMPS
        self._wants = f"{self._units}/timers.target.wants"
        self._spawn = spawn
        self._end = end
        self._reload_ssh = reload_ssh
        self._timers: dict[str, _Timer] = {}
        self._running: dict[str, int] = {}  # service -> pid

    def boot(self) -> None:
        """Start every enabled timer."""
        for name in sorted(os.listdir(self._wants)) if os.path.isdir(self._wants) else []:
            try:
                self._start_timer(name)
            except (NotEmulated, OSError) as error:
                print(f"{name} was not started: {error}", flush=True)

    # -- time --------------------------------------------------------------------------------------------------------

    def next_due_s(self, now: float) -> float:
        """Seconds until the next timer elapses; infinite where none will."""
        return min((timer.due_at - now for timer in self._timers.values() if timer.due_at), default=float("inf"))

    def run_due(self, now: float) -> None:
        for name, timer in list(self._timers.items()):
            if timer.due_at is not None and timer.due_at <= now:
                timer.due_at = None
                if timer.stamp:
                    _touch(timer.stamp)
                print(f"{name} elapsed: starting {timer.service}", flush=True)
                try:
                    self._start_service(timer.service, lambda _reply: None)
                except (NotEmulated, OSError) as error:
                    print(f"{timer.service} was not started: {error}", flush=True)

    # -- requests ----------------------------------------------------------------------------------------------------

    def request(self, words: list[str], reply: Callable[[Reply], None]) -> None:
        """Do what `systemctl WORDS...` asks. `reply` is called once, later where a oneshot service has to end first."""
        options = [word for word in words if word.startswith("-")]
        verb, *names = [word for word in words if not word.startswith("-")] or ["list-units"]
        try:
            self._do(verb, names, options, reply)
        except NotEmulated as error:
            reply(Reply(1, err=f"systemctl: {error}: not emulated in the sandbox\n"))
        except FileNotFoundError as error:
            reply(Reply(5, err=f"Unit {os.path.basename(error.filename)} not found.\n"))
        except OSError as error:
            reply(Reply(1, err=f"systemctl: {error}\n"))

    def _do(self, verb: str, names: list[str], options: list[str], reply: Callable[[Reply], None]) -> None:
        done = Reply(0)
        if verb in ("poweroff", "halt", "reboot"):
            reply(done)
            self._end("reboot" if verb == "reboot" else "poweroff")
        elif verb in ("daemon-reload", "daemon-reexec", "reset-failed"):
            reply(done)
        elif verb == "is-system-running":
            reply(Reply(0, "running\n"))
        elif verb == "list-timers":
            reply(Reply(0, "".join(f"{_when(timer)} {name} {timer.service}\n" for name, timer in self._timers.items())))
        elif len(names) != 1:
            raise NotEmulated(" ".join([verb, *names]))
        elif names[0] in _SSH_NAMES:
            self._ssh(verb, reply)
        elif names[0].endswith(".timer"):
            self._timer(verb, names[0], options, reply)
        else:
            name = names[0] if "." in names[0] else f"{names[0]}.service"
            if not name.endswith(".service"):
                raise NotEmulated(f"{verb} {name}")
            self._service(verb, name, reply)

    def _ssh(self, verb: str, reply: Callable[[Reply], None]) -> None:
        if verb in ("reload", "restart", "try-restart", "reload-or-restart", "force-reload"):
            self._reload_ssh()
            reply(Reply(0))
        elif verb in ("start", "enable"):
            reply(Reply(0))
        elif verb in ("is-active", "is-enabled"):
            reply(Reply(0, "active\n" if verb == "is-active" else "enabled\n"))
        else:
            raise NotEmulated(f"{verb} ssh")

    def _timer(self, verb: str, name: str, options: list[str], reply: Callable[[Reply], None]) -> None:
        link = f"{self._wants}/{name}"
        now = "--now" in options
        if verb == "enable":
            self._load(name)
            os.makedirs(self._wants, exist_ok=True)
            if not os.path.lexists(link):
                os.symlink(f"{self._units}/{name}", link)
        elif verb == "disable" and os.path.lexists(link):
            os.unlink(link)
        if verb in ("start", "restart", "reload-or-restart") or (verb == "enable" and now):
            self._start_timer(name)
        elif verb == "stop" or (verb == "disable" and now):
            self._timers.pop(name, None)
        elif verb == "is-active":
            active = name in self._timers
            reply(Reply(0 if active else 3, "active\n" if active else "inactive\n"))
            return
        elif verb == "show":
            reply(self._shown(name, options))
            return
        elif verb == "is-enabled":
            enabled = os.path.lexists(link)
            reply(Reply(0 if enabled else 1, "enabled\n" if enabled else "disabled\n"))
            return
        elif verb not in ("enable", "disable"):
            raise NotEmulated(f"{verb} {name}")
        reply(Reply(0))

    def _shown(self, name: str, options: list[str]) -> Reply:
        if options != ["--property=TimersCalendar"]:
            raise NotEmulated(" ".join(["show", *options, name]))
        timer = self._timers.get(name)
        if timer is None or not timer.calendar:
            return Reply(0, "TimersCalendar=\n")
        return Reply(0, f"TimersCalendar={{ OnCalendar={timer.calendar} ; next_elapse={_when(timer)} }}\n")

    def _service(self, verb: str, name: str, reply: Callable[[Reply], None]) -> None:
        if verb in ("start", "restart"):
            if verb == "restart":
                self._stop_service(name)
            self._start_service(name, reply)
        elif verb == "stop":
            self._stop_service(name)
            reply(Reply(0))
        elif verb == "is-active":
            active = name in self._running
            reply(Reply(0 if active else 3, "active\n" if active else "inactive\n"))
        else:
            raise NotEmulated(f"{verb} {name}")

    # -- what units do -----------------------------------------------------------------------------------------------

    def _start_timer(self, name: str) -> None:
        unit = self._load(name)
        service = unit.last("Timer", "Unit") or name.removesuffix(".timer") + ".service"
        now = datetime.now(UTC).timestamp()
        stamp = None
        since = now
        if unit.last("Timer", "Persistent").lower() in ("1", "yes", "true", "on"):
            stamp = f"{self._stamps}/stamp-{name}"
            if os.path.exists(stamp):
                since = os.stat(stamp).st_mtime
            else:
                _touch(stamp)  # never ran: systemd counts from now
        self._timers[name] = _Timer(
            _elapses_at(unit, name, since, now), service, stamp, unit.last("Timer", "OnCalendar")
        )

    def _start_service(self, name: str, reply: Callable[[Reply], None]) -> None:
        if name in self._running:
            reply(Reply(0))
            return
        unit = self._load(name)
        commands = [shlex.split(line.lstrip("-@+!:")) for line in unit.values.get(("Service", "ExecStart"), [])]
        if not commands:
            raise NotEmulated(f"{name} without ExecStart")
        oneshot = unit.last("Service", "Type", "simple") == "oneshot"
        environment = [word for line in unit.values.get(("Service", "Environment"), []) for word in shlex.split(line)]
        folder = unit.last("Service", "WorkingDirectory", "/")

        def work() -> int:
            for word in environment:
                variable, _, value = word.partition("=")
                os.environ[variable] = value
            os.chdir(folder)
            for command in commands:
                pid = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE])
                if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                    return status
            return 0

        def ended(exit_code: int) -> None:
            self._running.pop(name, None)
            if exit_code:
                print(f"{name} ended with {exit_code}", flush=True)
            if oneshot:
                failure = f"Job for {name} failed with {exit_code}.\n" if exit_code else ""
                reply(Reply(1 if exit_code else 0, err=failure))

        self._running[name] = self._spawn(work, ended)
        if not oneshot:
            reply(Reply(0))

    def _load(self, name: str) -> Unit:
        if "/" in name:
            raise NotEmulated(name)
        with open(f"{self._units}/{name}", encoding="utf-8") as stream:
            return parse(stream.read())

    def _stop_service(self, name: str) -> None:
        pid = self._running.get(name)
        if pid is not None:
            os.killpg(pid, signal.SIGTERM)  # every child of PID 1 leads a group of its own


def parse(text: str) -> Unit:
    """A unit file's values, without comments; an empty value clears the earlier ones, as in systemd."""
    values: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section and "=" in line and not line.startswith(("#", ";")):
            key, value = (part.strip() for part in line.split("=", 1))
            values[section, key] = [*values.get((section, key), []), value] if value else []
    return Unit({place: found for place, found in values.items() if found})


def _elapses_at(unit: Unit, name: str, since: float, now: float) -> float | None:
    """When a timer elapses next, counted from `since`: None where that is past. An overdue one elapses now."""
    calendar = unit.last("Timer", "OnCalendar")
    delay = unit.last("Timer", "OnActiveSec") or unit.last("Timer", "OnBootSec")
    if calendar:
        moment = calendar_time(calendar)
        return None if moment <= since else max(moment, now)
    if delay:
        return now + span_s(delay)
    raise NotEmulated(f"{name} without OnCalendar, OnActiveSec or OnBootSec")


def calendar_time(text: str) -> float:
    """`YYYY-MM-DD HH:MM:SS UTC` in seconds since 1970; without `UTC` the machine's own zone. Raises NotEmulated."""
    for form in ("%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S"):
        try:
            moment = datetime.strptime(text.strip(), form)  # noqa: DTZ007 - the zone is put on below
        except ValueError:
            continue
        return moment.replace(tzinfo=UTC).timestamp() if form.endswith("UTC") else moment.timestamp()
    raise NotEmulated(f"OnCalendar={text}")


def span_s(text: str) -> float:
    """A time span as in `90`, `5min`, `1h 30min`, in seconds. Raises NotEmulated."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    if not parts or any(unit not in _SPANS_S for _, unit in parts):
        raise NotEmulated(f"the time span {text}")
    return sum(float(number) * _SPANS_S[unit] for number, unit in parts)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab"):
        os.utime(path)


def _when(timer: _Timer) -> str:
    return "-" if timer.due_at is None else datetime.fromtimestamp(timer.due_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
