"""The one process of the agent that outlives every connection: it guards the unit's runs, and carries out its orders.

It starts supervisors, so that a job whose supervisor is killed becomes its own child and its exit code is not lost; it
has such jobs adopted; it starts runs that wait, in their turn; it ends jobs and powers the machine off when its owner's
orders (`orders.json`) or the provider say so; it uploads what has ended and removes what is home. One thread, which
never waits for anything but its selector: whatever is slow is done by a child.
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
from typing import IO, Any

from cloudrun.agent import (
    adoption,
    late,
    limits,
    locks,
    passport,
    power,
    processes,
    queue,
    spot,
    summon,
    supervisor,
)
from cloudrun.agent.children import Children
from cloudrun.agent.news import News
from cloudrun.agent.orders import Orders
from cloudrun.agent.wards import Ward, Wards, remove
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, never_waiting, read_object

TICK_S = 1.0  # how often to look around; children and requests are heard at once
SPOT_RESTART_S = 5.0
POWER_OFF_AGAIN_S = 30.0  # a machine that is still there by then did not hear it
CALM_S = 0.2  # after an error: it may come again at once
LOG = rundir.BASE + "/warden.log"  # the last error
UPLOADS = 2  # at a time
SILENT_MAX = 64  # connections on which nothing has been said yet


def main(lock: str, listener: str) -> None:
    """Be the warden, in the home of the login user; `lock` and `listener` are inherited descriptors."""
    Warden(int(lock), socket.socket(fileno=int(listener))).run()


class Warden:
    def __init__(self, lock: int, listener: socket.socket) -> None:
        self._lock = lock
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._silent: list[socket.socket] = []
        self._children = Children(self._bury)
        self._wards = Wards(self._adopt)
        self._queue = queue.Queue()
        self._news = News()
        self._orders = Orders(self._news.other_boot)
        self._quiet_since = time.monotonic()
        self._clients_seen: Any = None
        self._spot_pid: int | None = None
        self._spot_again = 0.0
        self._power_again = 0.0
        self._uploading: set[str] = set()
        self._removing = False
        self._parents: Any = None
        self._late = late.LateStarts()
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
                pause_s = max(0.0, min(next_tick - time.monotonic(), late.LOOK_S if len(self._late) else TICK_S))
                try:
                    for key, _ in self._selector.select(pause_s):
                        key.data()
                    if self._children.reap():  # a supervisor that a parent has forked, perhaps
                        self._wards.look()
                    if time.monotonic() >= next_tick:
                        next_tick = time.monotonic() + TICK_S
                        self._tick()
                        next_tick = time.monotonic() + self._wait_s
                    self._begin_late()
                    self._start_waiting()
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
            elif message["do"] == "expect":
                self._warm(message["spec"])
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

    def _bury(self, pid: int, code: int, number: int) -> None:
        """Write down what a job ended with whose supervisor is gone."""
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
        if not self._late.add(self._parents, ward, spec, lock, ready):
            self._begin(ward, spec, lock, ready)

    def _begin_late(self) -> None:
        for each in self._late.due(self._parents):
            self._begin(each.ward, each.spec, each.lock, each.ready)

    def _begin(self, ward: Ward, spec: dict[str, Any], lock: int, ready: int) -> None:
        run, pid = ward.run, None
        with contextlib.suppress(Exception):  # whatever is wrong with a parent: a fresh process is as good
            if self._parents is not None and self._parents.fits(spec):
                pid = self._parents.start(run, spec, lock, ready)
        if pid is None:
            held = os.fdopen(os.dup(lock), "ab")
            with held:
                pid = self._children.fork(
                    lambda: supervisor.supervise_and_exit(run, spec, held, ready), held.fileno(), ready
                )
        self._guard(pid, ward)

    def _guard(self, supervisor: int, ward: Ward) -> None:
        ward.supervisor = supervisor
        self._children.expect(supervisor, lambda: self._unguarded(ward))

    def _unguarded(self, ward: Ward) -> None:
        ward.supervisor = None
        self._wards.check(ward)

    def _adopt(self, ward: Ward, known: dict[str, Any], lock: IO[bytes]) -> None:
        spec = read_object(ward.run.spec) or {}
        self._guard(
            self._children.fork(lambda: adoption.adopt_and_exit(ward.run, spec, lock, known), lock.fileno()), ward
        )

    # -- runs that wait --------------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Begin with as many as may run; whatever a job is to find in its folder is put there by a child first."""
        while (turn := self._turn()) is not None:
            self._queue.prepares(turn)
            try:
                self._children.fork(turn.prepare, then=functools.partial(self._prepared, turn))
            except BaseException:
                self._queue.prepared(turn)
                raise

    def _turn(self) -> queue.Waiting | None:
        """The run whose turn it is, where one may begin now."""
        turn = self._queue.first()
        orders = self._orders.current
        if turn is None or orders is None or self._news.interruption_at is not None:
            return None
        if len(self._wards.active()) + self._queue.preparing >= (orders.get("slots") or 0):
            return None
        return turn if power.may_start(orders, time.time(), self._orders.given_at, turn.grace_s) else None

    def _prepared(self, turn: queue.Waiting) -> None:
        """It begins now, unless it was ended meanwhile, or must wait on: the orders may be others than they were."""
        self._queue.prepared(turn)
        if self._turn() is not turn:
            return
        with turn.begin() as lock:
            if lock is None:
                self._queue.forget(turn)  # the next look finds it where it still waits
                return
            with open(os.devnull, "wb", buffering=0) as nobody:
                self._start(turn.run, lock.fileno(), nobody.fileno())
        self._queue.forget(turn)

    def _be_kept(self) -> None:
        """While runs wait, another process is there to start a warden should I be killed."""
        if len(self._queue) and not summon.kept():
            self._children.fork(summon.keep)

    # -- what is looked after --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._wait_s = TICK_S
        for duty in (
            self._look,
            self._queue.look,
            self._be_kept,
            self._orders.read,
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
                self._warm(ward.spec)

    def _at_home(self) -> bool:
        """Whether the home is still there, and its lock still mine."""
        try:
            return os.path.samestat(os.stat(rundir.WARDEN_LOCK), os.fstat(self._lock))
        except OSError:
            return False

    def _warm(self, spec: dict[str, Any] | None) -> None:
        if self._parents is not None and spec:
            with contextlib.suppress(Exception):
                self._parents.warm(spec)

    def _watch_provider(self) -> None:
        wanted = bool(self._orders.current and self._orders.current.get("spot"))
        if self._spot_pid is not None and not wanted:
            processes.signal_one(self._spot_pid, signal.SIGKILL)
        elif self._spot_pid is None and wanted and time.monotonic() >= self._spot_again:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            try:
                forget = functools.partial(self._forget_provider, reader)
                self._spot_pid = self._children.fork(lambda: spot.watch(writer), writer, then=forget)
            except OSError:
                os.close(reader)
                raise
            finally:
                os.close(writer)
            self._selector.register(reader, selectors.EVENT_READ, lambda: self._hear_provider(reader))

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
        waiting = len(self._queue)
        if client or unsaved or graces_s or waiting:
            self._quiet_since = time.monotonic()
        if self._orders.current is None:
            self._news.stay()
            return
        quiet_s = time.monotonic() - self._quiet_since
        facts = power.Facts(now, self._orders.given_at, quiet_s, client, graces_s, unsaved, waiting)
        plan = power.plan(self._orders.current, facts)
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
        self._children.fork(power.off)
        self._power_again = time.monotonic() + POWER_OFF_AGAIN_S

    def _upload(self) -> None:
        for ward in self._wards.to_upload():
            if len(self._uploading) >= UPLOADS:
                return
            if ward.name not in self._uploading:
                self._children.fork(ward.upload, then=functools.partial(self._uploaded, ward))
                self._uploading.add(ward.name)

    def _uploaded(self, ward: Ward) -> None:
        self._uploading.discard(ward.name)
        ward.upload_ended()
        self._tick()

    def _remove(self) -> None:
        folders = [ward.run.root for ward in self._wards.removable() if ward.name not in self._uploading]
        if folders and not self._removing:
            self._children.fork(lambda: remove(folders), then=self._removed)
            self._removing = True

    def _removed(self) -> None:
        self._removing = False

    def _close(self) -> None:
        if self._retired:
            summon.dismiss_keeper()
        if self._spot_pid is not None:
            processes.signal_one(self._spot_pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            self._parents.close()
        self._listener.close()
        os.close(self._lock)


def _note(trouble: str) -> None:
    """For whoever wonders: nobody reads a warden's standard error."""
    with contextlib.suppress(OSError), open(LOG, "w", encoding="utf-8", opener=never_waiting) as stream:
        stream.write(trouble)
