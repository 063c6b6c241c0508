"""PID 1 of a unit: starts sshd, applies user-data, keeps timers, answers `systemctl` and `shutdown`, reaps, powers off.

Single-threaded and without any library, so that it can fork: everything else is a child of it. A child that matters has
a callback for its end. Requests arrive on a Unix socket from the programs of commands.py. The unit's own tree of files
is `config["prefix"]`: "" in a container, a folder with the plain driver, whose init is a subclass.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from cloudrun.sandbox.guest import commands, sshd, userdata
from cloudrun.sandbox.guest.systemd import Reply, Systemd

_GRACE_S = 1.0  # between SIGTERM and SIGKILL at power-off
_KILL_TIMEOUT_S = 5.0
_RESTARTS, _RESTART_WINDOW_S = 4, 10.0  # as systemd limits the starts of a service
_LONGEST_SLEEP_S = 30.0  # a laptop that slept finds an overdue timer within this time
_REQUEST_MAX_BYTES = 65536

Ending = Literal["poweroff", "reboot", "failure"]


class Init:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._children: dict[int, Callable[[int], None]] = {}
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._ending: Ending | None = None
        self._sshd: int | None = None
        self._sshd_ends: list[float] = []
        self._listen: int | None = None  # written to once the host key is in place
        self._systemd = Systemd(config["prefix"], spawn=self.spawn, end=self.end, reload_ssh=self._reload_ssh)
        self.watched: dict[int, Callable[[], None]] = {}  # other descriptors and what to do when they can be read

    def run(self) -> Ending:
        """Until somebody ends the machine. Every process is dead when this returns."""
        os.environ.clear()
        os.environ.update(sshd.environment(self._config))
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # PID 1 gets only the signals it handles
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(self._config["prefix"] + commands.FOLDER)  # a socket's path must be short
        server.bind(commands.SOCKET)
        os.chdir("/")
        server.listen(64)

        self._start_sshd(ready=False)
        self.spawn(lambda: userdata.apply_early(self._config), self._early_done)
        self._systemd.boot()
        while self._ending is None:
            wait_s = min(self._systemd.next_due_s(time.time()), _LONGEST_SLEEP_S)
            awaited: list[Any] = [wake_read, server, *self.watched, *self._clients]
            ready, _, _ = select.select(awaited, [], [], max(wait_s, 0.0))
            if wake_read in ready:
                os.read(wake_read, 4096)
            self._reap()
            if server in ready:
                client, _ = server.accept()
                client.setblocking(False)
                self._clients[client.fileno()] = (client, bytearray())
            for handle in [handle for handle in ready if handle in self.watched]:
                self.watched[handle]()
            for handle in [handle for handle in ready if handle in self._clients]:
                self._receive(handle)
            self._systemd.run_due(time.time())
        self._stop_everything()
        return self._ending

    # -- children ----------------------------------------------------------------------------------------------------

    def spawn(self, work: Callable[[], int], ended: Callable[[int], None]) -> int:
        """Fork a child that runs `work` and exits with what it returns; `ended` gets its exit code (-signal)."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _run_child(work)
        self._children[pid] = ended
        return pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._children.pop(pid, None)  # None: an orphan that became ours
            if ended is not None:
                ended(os.waitstatus_to_exitcode(status))

    def _early_done(self, exit_code: int) -> None:
        if exit_code != 0:
            print(f"user-data: the first stage ended with {exit_code}", flush=True)
        if self._listen is not None:
            self._let_sshd_listen(self._listen)
        self.spawn(lambda: userdata.apply_late(self._config), lambda _code: None)

    def _start_sshd(self, *, ready: bool) -> None:
        """Fork sshd. Where `ready` is False it loads what it needs and then waits for the host key."""
        gate, self._listen = os.pipe()
        held = self._listen

        def work() -> int:
            os.close(held)
            return sshd.serve(self._config, gate)

        self._sshd = self.spawn(work, self._sshd_ended)
        os.close(gate)
        if ready:
            self._let_sshd_listen(held)

    def _let_sshd_listen(self, gate: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died; the next one is told in its turn
            os.write(gate, b".")
        os.close(gate)
        self._listen = None

    def _sshd_ended(self, exit_code: int) -> None:
        print(f"sshd ended with {exit_code}", flush=True)
        now = time.monotonic()
        self._sshd_ends = [at for at in self._sshd_ends if now - at < _RESTART_WINDOW_S] + [now]
        if len(self._sshd_ends) > _RESTARTS:
            self._ending = "failure"  # a machine nobody can log in to is of no use
        else:
            self._start_sshd(ready=self._listen is None)

    def _reload_ssh(self) -> None:
        if self._sshd is not None:
            os.kill(self._sshd, signal.SIGHUP)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _receive(self, handle: int) -> None:
        client, buffer = self._clients[handle]
        try:
            data = client.recv(4096)
        except OSError:
            data = b""
        buffer += data
        if not data or len(buffer) > _REQUEST_MAX_BYTES:
            self._forget(handle)
        elif buffer.endswith(b"\n"):
            self._clients.pop(handle)
            self._answer(client, bytes(buffer))

    def _forget(self, handle: int) -> None:
        client, _ = self._clients.pop(handle)
        client.close()

    def _answer(self, client: socket.socket, line: bytes) -> None:
        def reply(answer: Reply) -> None:
            document = {"code": answer.exit_code, "out": answer.out, "err": answer.err}
            with client, contextlib.suppress(OSError):  # who asked may have gone
                client.settimeout(1.0)
                client.sendall(json.dumps(document).encode() + b"\n")

        try:
            words = [str(word) for word in json.loads(line)]
        except (ValueError, TypeError):
            reply(Reply(1, err="not a request\n"))
            return
        self._systemd.request(words, reply)

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self, how: Ending) -> None:
        self._ending = how

    def _stop_everything(self) -> None:
        """Ask every process to end and then end those that are left; after a failure without asking."""
        asked_until = time.monotonic() + (0.0 if self._ending == "failure" else _GRACE_S)
        if self._ending != "failure":
            self.signal_all(signal.SIGTERM)
        while self._any_left() and time.monotonic() < asked_until + _KILL_TIMEOUT_S:
            if time.monotonic() >= asked_until:
                self.signal_all(signal.SIGKILL)
            time.sleep(0.01)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the unit but this one. In a namespace that is all there are."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)

    def _any_left(self) -> bool:
        """Whether the unit still has other processes. Reaps those that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return False
        return True


def _run_child(work: Callable[[], int]) -> NoReturn:
    """The rest of a forked child's life, away from PID 1's signals and descriptors."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        code = work()
    except BaseException as error:  # noqa: BLE001 - a child must not return into PID 1's loop
        print(f"{error!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
