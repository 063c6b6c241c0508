"""A pool's launches: each is asked for in a thread of its own, and counts from before EC2 is asked until it is known
what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread

from cloudrun.core.errors import CapacityError, CleanupIncomplete, CloudrunError, LaunchError, UnresolvedLaunch
from cloudrun.core.events import Note
from cloudrun.core.ids import new_id
from cloudrun.core.records import UnitRecord
from cloudrun.core.states import LaunchState
from cloudrun.plan.offers import Offer
from cloudrun.plan.scheduling import UnitView
from cloudrun.pools.context import Context
from cloudrun.units import launching, terminating
from cloudrun.units.capacity import allowed, learn_zones

AGAIN_S = 10.0  # before EC2 is asked again for what it did not have
AGAIN_MAX_S = 60.0  # where it has had nothing for a while
RELEASE_S = 10.0  # for what no machine has used; what is left then is released in the end


@dataclass(frozen=True)
class Launched:
    """What came of a launch: `units` that may not run yet, or the `error`."""

    launch_id: str
    offer: Offer
    count: int
    units: tuple[UnitRecord, ...] = ()
    deadline: float = 0.0
    error: BaseException | None = None


class Renting:
    """`tell` is called from other threads; all else is for one."""

    def __init__(self, context: Context, *, tags: Mapping[str, str], tell: Callable[[Launched], None]) -> None:
        """`tags`: of the machines."""
        self._context = context
        self._offers = allowed(context.cloud, context.settings)
        self._clock = context.clock
        self._tags = tags
        self._tell = tell
        self._unknown: dict[str, list[UnitView]] = {}  # by launch: what may cost money, and is in no unit's row
        self._threads: list[Thread] = []
        self._again_s = AGAIN_S
        self._nothing_since: float | None = None  # all was refused when the pause was made longer last
        self.asked = 0  # launches whose answer has not been heard
        self.launch_ids: list[str] = []

    def offer(self) -> Offer | None:
        """What to ask for now; None where all that is allowed was refused a moment ago."""
        return self._offers.best(self._clock.monotonic(), self._again_s)

    def ask(self, offer: Offer, count: int, deadline: float) -> None:
        """For so many of that, or fewer where so many were refused. EC2 may take a while over it: what runs goes on."""
        launch_id, now = new_id("l"), self._clock.now().timestamp()
        terms = self._context.terms(offer.instance_type)
        count = min(count, self._offers.at_once(offer) or count)
        self._unknown[launch_id] = [
            UnitView(f"{launch_id}/{number}", "launching", terms.slots, 0, now, deadline, terms.usd_per_hour)
            for number in range(count)
        ]
        self.launch_ids.append(launch_id)
        self.asked += 1
        thread = Thread(target=self._launch, args=(launch_id, offer, count, deadline), name="cloudrun-launch")
        try:
            thread.start()
            self._threads.append(thread)
        except RuntimeError as error:  # this computer has no thread left: nothing was asked for
            refusal = LaunchError(f"nothing can be launched from here: {error}", next_step="end other programs first")
            self._tell(Launched(launch_id, offer, count, error=refusal))

    def views(self) -> list[UnitView]:
        """Units that may be there, for whoever counts money: also those of a launch whose answer was lost."""
        return [view for views in self._unknown.values() for view in views]

    def heard(self, event: Launched) -> None:
        self.asked -= 1
        if isinstance(event.error, CapacityError):
            now = self._clock.monotonic()
            self._offers.refuse(event.offer, now, event.count)
            if self.offer() is None:
                self._wait_longer(now)
        elif event.error is None:
            self._offers.had(self._clock.monotonic())
            self._again_s, self._nothing_since = AGAIN_S, None
        if not isinstance(event.error, UnresolvedLaunch):
            del self._unknown[event.launch_id]

    def _wait_longer(self, now: float) -> None:
        """Twice as long each time that all were asked and had nothing."""
        if self._nothing_since is None:
            self._nothing_since = now
        elif now - self._nothing_since >= self._again_s:
            self._nothing_since = now
            self._again_s = min(2 * self._again_s, AGAIN_MAX_S)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def settle(self) -> list[str]:
        """Learn what became of launches whose answer was lost; returns the ids of machines that nobody knew of.

        Raises CleanupIncomplete where EC2 still does not say.
        """
        found: list[str] = []
        for launch in self._context.ledger.launches(unsettled=True):
            if launch.launch_id not in self.launch_ids:
                continue
            try:
                units = launching.resolve(self._context.cloud, self._context.ledger, launch, self._clock)
                found += [unit.instance_id for unit in units]
            except UnresolvedLaunch as error:
                raise CleanupIncomplete(
                    f"nobody knows whether launch {launch.launch_id} happened: {error}",
                    ids=[launch.launch_id],
                    next_step="cloudrun reap, when EC2 can be reached",
                ) from error
            except CloudrunError as refusal:
                self._context.observe(Note(f"launch {launch.launch_id} did not happen: {refusal}", "verbose"))
        return found

    def _launch(self, launch_id: str, offer: Offer, count: int, deadline: float) -> None:
        cloud, ledger = self._context.cloud, self._context.ledger
        try:
            launch = launching.prepare(
                cloud,
                ledger,
                replace(self._context.settings, deadline_s=deadline - self._clock.now().timestamp()),
                self._context.image,
                launch_id=launch_id,
                client_id=self._context.client_id,
                clock=self._clock,
                offer=offer,
                overdue_grace_s=0.0,
                count=count,
                more_tags=self._tags,
            )
            units = launching.request(cloud, ledger, launch, self._clock)
            self._tell(Launched(launch_id, offer, count, tuple(units), launch.deadline.timestamp()))
        except BaseException as error:  # noqa: BLE001  # the deciding thread judges it
            try:
                if isinstance(error, CapacityError):
                    learn_zones(self._offers, cloud, offer.instance_type)
            finally:  # whoever decides waits for this word
                self._tell(Launched(launch_id, offer, count, error=error))
            self._release(launch_id)

    def _release(self, launch_id: str) -> None:
        """The key pair and the group of a launch that EC2 refused: a shortage would pile them up. Whatever else became
        of it, they are released in the end, and so is what cannot be now."""
        with suppress(CloudrunError):
            if self._context.ledger.launch(launch_id).state is LaunchState.REFUSED:
                terminating.release_resources(
                    self._context.cloud, self._context.ledger, launch_id, timeout_s=RELEASE_S, clock=self._clock
                )
                self.launch_ids.remove(launch_id)
