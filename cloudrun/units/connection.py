"""The way to one machine: opened, watched while it boots, opened again when it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    CloudrunError,
    ConnectionLost,
    CredentialsError,
    HostKeyMismatch,
    Interrupted,
    JumpRefused,
    LaunchError,
    LedgerError,
)
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import ComingJobs, Instance, SshTarget, UnitNews, UnitOrders, UnitRecord
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.interruptions import was_interrupted
from cloudrun.plan.reaping import CONSISTENCY
from cloudrun.units.joining import unit_to_join
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent
    from cloudrun.ssh.session import Session

RECONNECT_S = 60.0  # a network that comes back later finds the job ended by the deadline, or pulled by the reaper
LOOK_EVERY_S = 15.0  # while SSH does not answer: whether the machine is still there
LOOK_FIRST_S = 2.0  # where it has answered before: that it has gone is the likeliest cause
EARLY_S = 3.0  # for a login that nobody waits for yet


class EarlyLogin:
    """A login to a machine that runs, begun while its client still gets ready: it is mostly waiting for the other side.

    It tells the unit nothing. One that fails is made again in the ordinary way, where its error is heard.
    """

    def __init__(self, target: SshTarget) -> None:
        self._target = target
        self._session: Session | None = None  # as long as it is ours to close
        self._found: tuple[Session, Agent] | None = None
        self._stop = Event()
        self._thread = Thread(target=self._log_in, name="cloudrun-early-login", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._close()  # a unit that lets us in and then is silent would be waited for
        self._thread.join()
        self._close()

    def take(self, target: SshTarget) -> tuple[Session, Agent] | None:
        """What has come of it, once; None where it failed, or led to another machine than `target`."""
        self._thread.join()
        if target != self._target:
            return None
        found, self._found = self._found, None
        if found is not None:
            self._session = None
        return found

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _log_in(self) -> None:
        from cloudrun.ssh.agent import Agent
        from cloudrun.ssh.session import Session

        with suppress(CloudrunError):
            session = self._session = Session.open(self._target, timeout_s=EARLY_S, cancelled=self._stop)
            agent = Agent(session)
            try:
                if not self._stop.is_set():
                    agent.install()
                    self._found = session, agent
            except BaseException:
                session.close()
                raise


def ssh_target(ledger: Ledger, unit: UnitRecord) -> SshTarget:
    key = ledger.key_path(unit.launch_id)
    return SshTarget(unit.address or "", unit.ssh_port, unit.user, key, unit.host_key, unit.ssh_jump)


def early_login(ledger: Ledger, instance_id: str) -> EarlyLogin | None:
    """To a unit that awaits its next run. Whether it is ours to use is seen to before it is told anything. Raises
    NotFound."""
    unit = unit_to_join(ledger, instance_id)
    return EarlyLogin(ssh_target(ledger, unit)) if unit.state is UnitState.READY and unit.address else None


class Connection:
    """An SSH session and the agent behind it. `unit()` is the machine's row; `stop` ends every waiting; `orders`: what
    the unit is told at each login (None: nothing, as by one who only looks)."""

    session: Session
    agent: Agent

    def __init__(
        self,
        cloud: Cloud,
        ledger: Ledger,
        clock: Clock,
        unit: Callable[[], UnitRecord],
        stop: Event,
        observe: Observer,
        orders: Callable[[], UnitOrders | None] = lambda: None,
    ) -> None:
        self._cloud = cloud
        self._ledger = ledger
        self._clock = clock
        self._unit = unit
        self._stop = stop
        self._observe = observe
        self._orders = orders
        self._environments: set[str] = set()
        self.early: EarlyLogin | None = None
        self.coming: ComingJobs | None = None  # what the unit is to be told of at each login
        self.news = UnitNews()
        self._reopening = Lock()

    def target(self) -> SshTarget:
        return ssh_target(self._ledger, self._unit())

    def open(
        self, within_s: float, stop: Event | None = None, *, look_s: float = LOOK_EVERY_S, knock: bool = False
    ) -> None:
        """Wait for SSH, and look now and then whether the machine that is waited for still runs, first after `look_s`.
        `stop` in place of the connection's own. `knock`: it was launched a while ago, perhaps from another address,
        which is let in where the first try fails."""
        look_s = LOOK_FIRST_S if knock else look_s
        from cloudrun.ssh.agent import Agent
        from cloudrun.ssh.session import Session

        end = self._clock.monotonic() + within_s
        while True:
            left_s = max(0.1, end - self._clock.monotonic())
            try:
                early, self.early = self.early, None
                if early is not None and (logged_in := early.take(self.target())) is not None:
                    self.session, self.agent = logged_in
                else:
                    self.session = Session.open(
                        self.target(), timeout_s=min(left_s, look_s), cancelled=stop or self._stop
                    )
                    self.agent = Agent(self.session)
                self.news = self.agent.orders(self._orders(), self.coming)
                return
            except (HostKeyMismatch, JumpRefused):
                raise
            except ConnectionLost as error:
                self.close()
                look_s = min(2 * look_s, LOOK_EVERY_S)
                found = self._describe()
                if found is not None and found.state not in ("pending", "running"):
                    raise self._went_away(found) from error
                if found is None and self._clock.now() - self._unit().created_at > CONSISTENCY:
                    raise LaunchError(
                        f"{self._unit().instance_id} is gone: EC2 no longer knows it", next_step="cloudrun reap"
                    ) from error
                if self._clock.monotonic() >= end:
                    raise
                if knock:
                    self.let_this_address_in()
                    knock = False

    def reopen(self, stop: Event | None = None, *, lost: Session | None = None) -> None:
        """A new connection in place of the one that is `lost`, unless another thread has made one already.

        Raises ConnectionLost where the machine lets nobody in, Interrupted where the provider has taken it back.
        """
        with self._reopening:
            if lost is None or self.session is lost:
                self._reopen(stop)

    def _reopen(self, stop: Event | None) -> None:
        self.close()
        found = self._found_again(stop or self._stop)
        if found is None or found.state != "running":
            if found is not None and was_interrupted(found):
                raise Interrupted(f"{found.instance_id} was taken back by the provider")
            raise ConnectionLost(f"{self._unit().instance_id} is {found.state if found else 'gone'}")
        self.let_this_address_in()
        try:
            self.open(RECONNECT_S, stop, look_s=LOOK_FIRST_S)
        except LaunchError as error:
            raise ConnectionLost(str(error)) from error

    def _found_again(self, stop: Event) -> Instance | None:
        """What EC2 says of the machine; a computer that was offline for a moment cannot reach EC2 either."""
        end = self._clock.monotonic() + RECONNECT_S
        while True:
            try:
                return self._describe() if self._cloud.exists() else None
            except CredentialsError:
                raise
            except CloudrunError:
                if self._clock.monotonic() >= end or stop.wait(1.0):
                    raise

    def is_gone(self) -> bool:
        """Whether EC2 says that the machine does not run any more; false where it says nothing."""
        try:
            if not self._cloud.exists():
                return True
            found = self._describe()
        except CloudrunError:
            return False
        return found is None or found.state != "running"

    def was_taken_back(self) -> bool:
        found = self._describe()
        return found is not None and was_interrupted(found)

    def close(self) -> None:
        session = getattr(self, "session", None)
        if session is not None:
            session.close()

    def knows_environment(self, fingerprint: str) -> bool:
        """Whether the unit has it. Asked once: an environment that is complete stays."""
        if fingerprint not in self._environments and self.agent.has_environment(fingerprint):
            self._environments.add(fingerprint)
        return fingerprint in self._environments

    def _describe(self) -> Instance | None:
        instance_id = self._unit().instance_id
        return self._cloud.instances.describe([instance_id]).get(instance_id)

    def let_this_address_in(self) -> None:
        """A laptop that has moved has another address than the one its security group admits."""
        unit = self._unit()
        with suppress(LedgerError):
            request = self._ledger.launch(unit.launch_id).request
            if not request.admits_caller:
                return
            try:
                self._cloud.network.admit(request.security_group_id, self._cloud.caller_cidr())
            except CloudrunError as error:  # the old address may be right all the same
                self._observe(Note(f"the security group could not be told of this address: {error}", "verbose"))

    def _went_away(self, found: Instance) -> LaunchError | Interrupted:
        if was_interrupted(found):
            return Interrupted(f"{found.instance_id} was taken back by the provider before it let us in")
        why = found.state_reason or "EC2 gave no reason"
        return LaunchError(
            f"{found.instance_id} went to {found.state} before it let us in: {why}", next_step="submit again"
        )


@contextmanager
def connected(
    cloud: Cloud, ledger: Ledger, unit: UnitRecord, observe: Observer, *, timeout_s: float
) -> Iterator[Connection]:
    """The way to a unit that this ledger knows, without orders: for one who only looks, fetches or cancels.

    Raises ConnectionLost, HostKeyMismatch.
    """
    connection = Connection(cloud, ledger, SystemClock(), lambda: ledger.unit(unit.instance_id), Event(), observe)
    connection.let_this_address_in()
    try:
        connection.open(timeout_s)
        yield connection
    finally:
        connection.close()
