"""The channels to one unit's agent: kept and used again, each by one request at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from cloudrun.core import wire
from cloudrun.core.errors import ConnectionLost
from cloudrun.ssh.archive import archive
from cloudrun.ssh.channel import AgentChannel
from cloudrun.ssh.session import Session

ROOM = 8  # channels at a time that any sshd allows on one connection (MaxSessions is 10 by default), less two
PING_S = 60.0  # how often to say that we are here: a unit without a client powers itself off


class Channels:
    """Opened as they are needed, over `session`; any thread may take one. Silent for `silence_s`, a unit is gone."""

    def __init__(self, session: Session, silence_s: float) -> None:
        self._session = session
        self._silence_s = silence_s
        self._idle: list[AgentChannel] = []
        self._taken = 0
        self._lock = threading.Lock()
        self._pinging: threading.Thread | None = None
        self.environments: frozenset[str] = frozenset()  # those that the unit had when its agent greeted us last

    @property
    def idle(self) -> int:
        """How many wait to be used again."""
        return len(self._idle)

    @property
    def has_room(self) -> bool:
        """Whether one may be taken that could as well be done without."""
        return bool(self._idle) or self._taken < ROOM

    def close(self) -> None:
        """Close them; whoever takes one after this opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    @contextlib.contextmanager
    def take(
        self, *, cancelled: threading.Event | None = None, within_s: float = float("inf")
    ) -> Iterator[AgentChannel]:
        """A channel for one request. After anything but success it may be out of step, so it is not used again."""
        with self._lock:
            self._idle = [channel for channel in self._idle if channel.stream.is_open]
            channel = self._idle.pop() if self._idle else None
            self._taken += 1
        try:
            with self._opened(channel or self._open(), cancelled, within_s) as channel:
                yield channel
        finally:
            with self._lock:
                self._taken -= 1

    def _open(self) -> AgentChannel:
        channel = AgentChannel(self._session, archive())
        self.environments = frozenset(map(str, channel.hello.get("environments", ())))
        return channel

    @contextlib.contextmanager
    def _opened(
        self, channel: AgentChannel, cancelled: threading.Event | None, within_s: float
    ) -> Iterator[AgentChannel]:
        channel.stream.cancelled = cancelled
        channel.stream.silence_s = self._silence_s
        channel.stream.give_up_at = time.monotonic() + within_s
        try:
            yield channel
        except BaseException:
            channel.close()
            raise
        with self._lock:
            self._idle.append(channel)
            if self._pinging is None:
                self._pinging = threading.Thread(target=self._ping, name="agent-ping", daemon=True)
                self._pinging.start()

    def _ping(self) -> None:
        """Tell the other ends of idle channels now and then that theirs has not gone, until there are none."""
        while True:
            time.sleep(PING_S)
            with self._lock:
                idle, self._idle = [channel for channel in self._idle if channel.stream.is_open], []
                if not idle:
                    self._pinging = None
                    return
            for channel in idle:
                with contextlib.suppress(ConnectionLost):
                    channel.stream.give_up_at, channel.stream.cancelled = float("inf"), None
                    channel.send(wire.ALIVE)
                    channel.flush()
                    with self._lock:
                        self._idle.append(channel)
