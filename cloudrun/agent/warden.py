"""The one process of the agent that outlives every connection: it guards the unit's runs, and carries out its orders.

It starts supervisors, so that a job whose supervisor is killed becomes its own child and its exit code is not lost; it
has such jobs adopted; it ends jobs and powers the machine off when its owner's orders (`orders.json`) or the provider
say so; it uploads what has ended and removes what is home. One thread, which never waits for anything but its
selector: whatever is slow is done by a child.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import selectors
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import IO, Any, Callable, NoReturn

from cloudrun.agent import (
    adoption,
    durable,
    jobs,
    limits,
    locks,
    passport,
    power,
    processes,
    spot,
    summon,
    supervisor,
)
from cloudrun.agent.news import News
from cloudrun.agent.wards import Ward, Wards
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, never_waiting, read_object

TICK_S = 1.0  # how often to look around; children and requests are heard at once
SPOT_RESTART_S = 5.0
POWER_OFF_AGAIN_S = 30.0  # a machine that is still there by then did not hear it
CALM_S = 0.2  # after an error: it may come again at once
LOG = rundir.BASE + "/warden.log"  # the last error
UPLOADS = 2  # at a time
SILENT_MAX = 64  # connections on which nothing has been said yet
GOING = ".going"  # what is being removed is called so
Life = Callable[[], Any]


def main(lock: str, listener: str) -> None:
    """Be the warden, in the home of the login user; `lock` and `listener` are inherited descriptors."""
    Warden(int(lock), socket.socket(fileno=int(listener))).run()


class Warden:
    def __init__(self, lock: int, listener: socket.socket) -> None:
        self._lock = lock
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._silent: list[socket.socket] = []
        self._children: dict[int, Callable[[], None]] = {}  # pid -> what to do when it has ended
        self._wards = Wards(self._adopt)
        self._news = News()
        self._orders: dict[str, Any] | None = None
        self._orders_seen: Any = None
        self._given_at = time.time()
        self._quiet_since = time.monotonic()
        self._clients_seen: Any = None
        self._spot_pid: int | None = None
        self._spot_again = 0.0
        self._power_again = 0.0
        self._uploading: set[str] = set()
        self._removing = False
        self._parents: Any = None
        self._begun = time.time()
        self._wait_s = TICK_S
        self._retired = False

    def run(self) -> None:
        for descriptor in (self._lock, self._listener.fileno()):
            os.set_inheritable(descriptor, False)
        processes.adopt_orphans()  # before anybody knows of me: a job may lose its supervisor at any moment
        os.ftruncate(self._lock, 0)
        os.lseek(self._lock, 0, os.SEEK_SET)
        os.write(self._lock, json.dumps({"pid": os.getpid(), "agent": summon.AGENT}).encode("ascii"))
        passport.this_platform()  # what supervisors need is loaded once, here
        with contextlib.suppress(Exception):  # they only save time
            from cloudrun.agent.parents import Parents

            self._parents = Parents()
        wake = processes.wake_on_child()
        self._listener.setblocking(False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._drain(wake))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        gc.collect()
        gc.freeze()  # forks share what is here
        next_tick = 0.0
        try:
            while self._at_home() and not self._retired:
                pause_s = max(0.0, next_tick - time.monotonic())
                try:
                    for key, _ in self._selector.select(pause_s):
                        key.data()
                    self._reap()
                    if time.monotonic() >= next_tick:
                        next_tick = time.monotonic() + TICK_S
                        self._tick()
                        next_tick = time.monotonic() + self._wait_s
                except Exception:  # noqa: BLE001  # no process left for a child, say: the deadline has to be kept
                    _note(traceback.format_exc())
                    time.sleep(CALM_S)
        finally:
            self._close()

    # -- what is heard ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(connection))
            self._silent.append(connection)
        while len(self._silent) > SILENT_MAX:  # whoever has something to say says it at once
            self._hear(self._silent[0])

    def _hear(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._silent.remove(connection)
        descriptors: list[int] = []
        try:
            payload, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
            message = json.loads(payload)
            if message["agent"] != summon.AGENT:
                self._retired = True  # that version's warden takes my place
            elif message["do"] == "start" and len(descriptors) == 2:
                self._start(RunDir(Path(message["run_dir"])), *descriptors)
            else:
                self._tick()
                connection.send(summon.DONE)
        except (ConnectionError, BlockingIOError, ValueError, KeyError, TypeError):
            pass  # whoever it was has gone, or is none of us
        finally:
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)

    @staticmethod
    def _drain(wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)

    def _reap(self) -> None:
        """Reap who has ended. What a job whose supervisor is gone ended with is written down before that."""
        ended: list[Callable[[], None]] = []
        strangers = False
        with contextlib.suppress(ChildProcessError):
            while (found := processes.peek()) is not None:
                pid = found.si_pid
                then = self._children.pop(pid, None)
                if then is not None:
                    ended.append(then)
                else:
                    strangers = True
                    self._bury(pid, found.si_code, found.si_status)
                os.waitpid(pid, 0)
        for then in ended:
            then()
        if strangers:  # a supervisor that a parent has forked, perhaps
            self._wards.look()

    def _bury(self, pid: int, code: int, number: int) -> None:
        process = processes.look(pid)
        if process is not None:
            how = {"exit_code" if code == processes.CLD_EXITED else "signal": number}
            self._wards.bury(process, dict(how, pid=pid, usage=limits.of_dead(process)))

    # -- supervisors -----------------------------------------------------------------------------------------------

    def _start(self, run: RunDir, lock: int, ready: int) -> None:
        spec = read_object(run.spec)
        if spec is None:
            return
        ward = self._wards.add(run)
        pid = None
        with contextlib.suppress(Exception):  # whatever is wrong with a parent: a fresh process is as good
            if self._parents is not None and self._parents.fits(spec):
                pid = self._parents.start(run, spec, lock, ready)
        if pid is None:
            held = os.fdopen(os.dup(lock), "ab")
            with held:
                pid = self._fork(lambda: supervisor.supervise_and_exit(run, spec, held, ready), held.fileno(), ready)
        self._guard(pid, ward)

    def _guard(self, supervisor: int, ward: Ward) -> None:
        ward.supervisor = supervisor
        self._children[supervisor] = lambda: self._unguarded(ward)

    def _unguarded(self, ward: Ward) -> None:
        ward.supervisor = None
        self._wards.check(ward)

    def _adopt(self, ward: Ward, known: dict[str, Any], lock: IO[bytes]) -> None:
        spec = read_object(ward.run.spec) or {}
        self._guard(self._fork(lambda: adoption.adopt_and_exit(ward.run, spec, lock, known), lock.fileno()), ward)

    def _fork(self, life: Life, *kept: int) -> int:
        """A child that does nothing but `life`, with standard streams and `kept` for its only descriptors."""
        pid = os.fork()
        if pid == 0:
            _live(life, kept)
        return pid

    # -- what is looked after --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._wait_s = TICK_S
        for duty in (
            self._look,
            self._read_orders,
            self._watch_provider,
            self._obey,
            self._upload,
            self._remove,
            self._news.write,
        ):
            try:
                duty()
            except Exception:  # noqa: BLE001  # none shall keep another from being done, the deadline above all
                _note(traceback.format_exc())

    def _look(self) -> None:
        try:
            self._wards.look()
        finally:
            for ward in self._wards.newly_finished():
                self._warm(ward)

    def _at_home(self) -> bool:
        """Whether the home is still there, and its lock still mine."""
        try:
            return os.path.samestat(os.stat(rundir.WARDEN_LOCK), os.fstat(self._lock))
        except OSError:
            return False

    def _warm(self, ward: Ward) -> None:
        if self._parents is not None and ward.spec:
            with contextlib.suppress(Exception):
                self._parents.warm(ward.spec)

    def _read_orders(self) -> None:
        try:
            info = os.stat(rundir.ORDERS)
        except OSError:
            self._orders = None
            return
        seen = (info.st_ino, info.st_mtime_ns)
        if seen == self._orders_seen:
            return
        self._orders_seen = seen
        orders = read_object(Path(rundir.ORDERS))
        if orders is None or not power.can_be_followed(orders):
            return
        self._orders, self._given_at = orders, info.st_mtime
        if self._news.other_boot(self._given_at) and self._given_at < self._begun:
            # a machine that was started again: its owner may be about to move the deadline
            overdue = self._begun + power.OVERDUE_GRACE_S
            self._orders = dict(orders, deadline=max(float(orders["deadline"]), overdue))
            self._given_at = self._begun

    def _watch_provider(self) -> None:
        wanted = bool(self._orders and self._orders.get("spot"))
        if self._spot_pid is not None and not wanted:
            processes.signal_one(self._spot_pid, signal.SIGKILL)
        elif self._spot_pid is None and wanted and time.monotonic() >= self._spot_again:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            try:
                self._spot_pid = self._fork(lambda: spot.watch(writer), writer)
            except OSError:
                os.close(reader)
                raise
            finally:
                os.close(writer)
            self._selector.register(reader, selectors.EVENT_READ, lambda: self._hear_provider(reader))
            self._children[self._spot_pid] = lambda: self._forget_provider(reader)

    def _hear_provider(self, reader: int) -> None:
        with contextlib.suppress(BlockingIOError, ValueError, IndexError):
            text = os.read(reader, 65536)
            if not text:
                self._selector.unregister(reader)
            self._news.hear(json.loads(text.splitlines()[-1]))
            self._tick()

    def _forget_provider(self, reader: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(reader)
        os.close(reader)
        self._spot_pid = None
        self._spot_again = time.monotonic() + SPOT_RESTART_S

    def _obey(self) -> None:
        if self._news.rebalance_is_new():
            for ward in self._wards.active():
                ward.checkpoint()
        now = time.time()
        interruption_at = self._news.interruption_at
        if interruption_at is not None:
            self._wards.end("interrupted", max(0.0, interruption_at - now) * power.GRACE_SHARE)
        client = self._client_is_here()
        unsaved = self._wards.unsaved()
        graces_s = [ward.grace_s for ward in self._wards.active()]
        if client or unsaved or graces_s:
            self._quiet_since = time.monotonic()
        if self._orders is None:
            self._news.stay()
            return
        quiet_s = time.monotonic() - self._quiet_since
        plan = power.plan(self._orders, power.Facts(now, self._given_at, quiet_s, client, graces_s, unsaved))
        if plan.end_jobs:
            self._wards.end("deadline", plan.grace_s)
        self._wait_s = min(TICK_S, max(0.01, plan.next_s))
        if plan.power_off:
            self._power_off(plan.power_off)
        else:
            self._news.stay()

    def _client_is_here(self) -> bool:
        """Whether a client holds its lock, or has come since the last look."""
        try:
            seen = os.stat(rundir.CLIENTS_LOCK).st_mtime_ns
        except OSError:
            return False
        came = self._clients_seen is not None and seen != self._clients_seen
        self._clients_seen = seen
        return came or locks.is_held(rundir.CLIENTS_LOCK)

    def _power_off(self, why: str) -> None:
        if time.monotonic() < self._power_again:
            return
        self._news.power_off(why)
        self._news.write()
        self._children[self._fork(power.off)] = lambda: None
        self._power_again = time.monotonic() + POWER_OFF_AGAIN_S

    def _upload(self) -> None:
        for ward in self._wards.to_upload():
            if len(self._uploading) >= UPLOADS:
                return
            if ward.name not in self._uploading:
                self._children[self._fork(ward.upload)] = functools.partial(self._uploaded, ward)
                self._uploading.add(ward.name)

    def _uploaded(self, ward: Ward) -> None:
        self._uploading.discard(ward.name)
        ward.upload_ended()
        self._tick()

    def _remove(self) -> None:
        folders = [ward.run.root for ward in self._wards.removable() if ward.name not in self._uploading]
        if folders and not self._removing:
            self._children[self._fork(lambda: _remove(folders))] = self._removed
            self._removing = True

    def _removed(self) -> None:
        self._removing = False

    def _close(self) -> None:
        if self._spot_pid is not None:
            processes.signal_one(self._spot_pid, signal.SIGKILL)
        if self._parents is not None:
            with contextlib.suppress(Exception):
                self._parents.close()
        self._listener.close()
        os.close(self._lock)


def _live(life: Life, kept: tuple[int, ...]) -> NoReturn:
    """The rest of a forked child's life. Nothing of the warden's stays open in it, its lock above all."""
    code = 1
    try:
        gc.freeze()  # whoever owns a descriptor that is closed here must not close its number once more
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in _descriptors():
            if descriptor > 2 and descriptor not in kept:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        life()
        code = 0
    finally:
        os._exit(code)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # where none is left there is none to look with
        return list(range(min(os.sysconf("SC_OPEN_MAX"), 65536)))


def _note(trouble: str) -> None:
    """For whoever wonders: nobody reads a warden's standard error."""
    with contextlib.suppress(OSError), open(LOG, "w", encoding="utf-8", opener=never_waiting) as stream:
        stream.write(trouble)


def _remove(folders: list[Path]) -> None:
    """Remove whole folders, also those that a job has made unwritable."""
    for folder in folders:
        with contextlib.suppress(OSError):
            lock = jobs.try_lock(RunDir(folder))
            if lock is None:
                continue  # an earlier warden's child still uploads it
            with lock:
                # under another name first: half a run directory is none
                os.rename(folder, folder.with_name(f".{folder.name}{GOING}"))
    for going in Path(rundir.RUNS).glob(".*" + GOING):  # also what an earlier one has not come to the end of
        durable.remove_tree(str(going))
