"""A machine of one block's own: rented for it or joined by it, and at its end terminated, stopped or kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

from cloudrun.core.errors import CleanupIncomplete, CloudrunError, LaunchError, LedgerError, UnresolvedLaunch
from cloudrun.core.events import Note, Rented
from cloudrun.core.ids import new_id
from cloudrun.core.records import ClientRecord, Image, LaunchRecord, OnExit
from cloudrun.core.states import EndReason, UnitState
from cloudrun.plan.offers import Offer
from cloudrun.units import capacity, joining, launching, terminating
from cloudrun.units.connection import EarlyLogin
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.unit import OpenUnit


class RentedUnit(OpenUnit):
    """`launch` it or `join` it, once; `close` undoes whatever came of that."""

    _as_it_was: OnExit | None = None  # what becomes of a unit that is being joined, until it is

    # -- opening ------------------------------------------------------------------------------------------------

    def launch(self, image: Image, client: ClientRecord) -> None:
        """Rent the machine and log in. Whatever was made so far is undone by `close`."""
        self.image = image
        with self.phases.phase("launch", f"{self.settings.instance_type} in {self.cloud.place.region}"):
            capacity.first_launch(
                capacity.allowed(self.cloud, self.settings),
                self.cloud,
                partial(self._rent, client),
                clock=self.clock,
                observe=self.observe,
            )
            self._await_running()
        record = self.record
        since = record.created_at.timestamp()
        self.observe(Rented(record.instance_id, record.instance_type, record.place, since))
        with self.phases.phase("boot", self.instance_id):
            self._log_in()
            self._settle_in()
            self.record = self.ledger.unit(self.instance_id)
        self.opened = True

    def _rent(self, client: ClientRecord, offer: Offer) -> None:
        self.check_cancelled()
        launch_id = new_id("l")
        # On the stack before anything exists: an abort at any point from here on is cleaned up.
        self._ending.callback(self._release, launch_id)
        launch = launching.prepare(
            self.cloud,
            self.ledger,
            self.settings,
            self.image,
            launch_id=launch_id,
            client_id=client.client_id,
            clock=self.clock,
            offer=offer,
            overdue_grace_s=joining.overdue_grace_s(self.settings),
        )
        self._ending.callback(self._end_instances, launch_id)
        (self.record,) = launching.request(self.cloud, self.ledger, launch, self.clock)

    def join(self, instance_id: str, client: ClientRecord, early: EarlyLogin | None = None) -> None:
        """Take over a kept unit of this ledger, or start a stopped one. Where that fails it is left as it was."""
        unit = joining.unit_to_join(self.ledger, instance_id)
        joining.check_free(self.ledger, unit, self.clock.now())
        joining.check_stop(self.ledger, unit, self.settings)
        joining.check_start(self.ledger, unit, self.settings)
        self.opened = True  # by whoever launched it
        waiting = [run.run_id for run in self.ledger.unfinished_runs(instance_id)]
        if waiting:
            self.keep_until_deadline = True
            self.observe(Note(f"outputs wait on {instance_id}: cloudrun pull {waiting[0]}", "warning"))
        self.image = launching.image_of(self.cloud, self.ledger, unit)
        self._connection.early = early
        with LIFELINE.shield():  # from the moment that it is ours, somebody is to hand it back
            on_exit = self.settings.on_exit
            if not self.ledger.take_unit(instance_id, client.client_id, of=unit.client_id, on_exit=on_exit):
                raise joining.in_use(instance_id)
            self.record = self.ledger.unit(instance_id)
            self._as_it_was = "stop" if unit.state in joining.STOPPED else unit.on_exit
            self._ending.callback(self._release, unit.launch_id)
            self._ending.callback(self._end_instances, unit.launch_id)
        with self.phases.phase("boot", instance_id):
            deadline = None
            if unit.state in joining.STOPPED:
                deadline = joining.start(self.cloud, self.ledger, unit, self.settings, self.clock)
            try:
                if deadline is not None or unit.state is UnitState.LAUNCHING:
                    self._await_running(started=deadline is not None)
                self._log_in(joined=True)
            except LaunchError as error:
                with suppress(CloudrunError):  # it must not hide why the unit was not joined
                    if deadline is None and joining.note_stopped(self.cloud, self.ledger, instance_id):
                        error.next_step = "the same command again: it is started then"
                raise
            if deadline is not None:
                joining.tell_deadline(self.cloud, self.ledger, self.record, deadline, self.session, self.observe)
                self.agent.orders(self._orders())
            if self.record.state is not UnitState.READY:
                self.ledger.move_unit(instance_id, UnitState.READY)
            self.record = self.ledger.unit(instance_id)
        self._as_it_was = None

    def _await_running(self, *, started: bool = False) -> None:
        launching.wait_running(
            self.cloud,
            self.ledger,
            self.instance_id,
            timeout_s=self.settings.boot_timeout_s,
            clock=self.clock,
            cancelled=self.check_cancelled,
            started=started,
        )
        self.record = self.ledger.unit(self.instance_id)

    def _end_instances(self, launch_id: str) -> None:
        """Terminate (or stop, or leave) every instance of the launch, also those that only EC2 knows of."""
        if self._let_go or not self._is_ours():
            return
        ids = self._instances_of(launch_id)
        if not ids:
            return
        how: OnExit = self.settings.on_exit
        if self.signalled or not self.opened:
            how = "terminate"  # one that outlives a signal, or never let us in, would be a surprise on the bill
        if self.keep_until_deadline and not self.hurried.is_set():
            how = "keep"
        how = self._as_it_was or how
        if how == "terminate":
            with self.phases.phase("terminate", ", ".join(ids)):
                terminating.terminate(
                    self.cloud,
                    self.ledger,
                    ids,
                    reason=EndReason.CANCELLED if self.cancelled.is_set() else EndReason.COMPLETED,
                    timeout_s=self.settings.terminate_timeout_s,
                    clock=self.clock,
                )
            return
        if how == "stop":
            running = [each for each in ids if not self._is_stopped(each)]
            terminating.stop(
                self.cloud, self.ledger, running, timeout_s=self.settings.terminate_timeout_s, clock=self.clock
            )
        for instance_id in ids:
            self.ledger.update_unit(instance_id, client_id="", on_exit=how)
            left = "stopped" if how == "stop" else "running"
            self.observe(
                Note(f"{instance_id} is left {left}: cloudrun units shows it, cloudrun reap {instance_id} ends it")
            )

    def _is_stopped(self, instance_id: str) -> bool:
        """By the ledger; one that cannot be read keeps no machine running."""
        try:
            return self.ledger.unit(instance_id).state is UnitState.STOPPED
        except LedgerError:
            return False

    def _instances_of(self, launch_id: str) -> list[str]:
        try:
            launch = self.ledger.launch(launch_id)
            if launch.state not in launching.SETTLED:
                self._settle(launch)
            return [unit.instance_id for unit in self.ledger.units() if unit.launch_id == launch_id]
        except LedgerError:
            if not hasattr(self, "record"):
                raise
            return [self.instance_id]  # a ledger that cannot be read keeps no machine alive

    def _settle(self, launch: LaunchRecord) -> None:
        """Learn what became of a launch whose answer was lost, or say that a machine may be running."""
        try:
            launching.resolve(self.cloud, self.ledger, launch, self.clock)
        except UnresolvedLaunch as error:
            raise CleanupIncomplete(
                f"nobody knows whether launch {launch.launch_id} happened: {error}",
                ids=[launch.launch_id],
                next_step="cloudrun reap, when EC2 can be reached",
            ) from error
        except LedgerError:
            raise
        except CloudrunError as refusal:
            self.observe(Note(f"launch {launch.launch_id} did not happen: {refusal}", "verbose"))

    def _release(self, launch_id: str) -> None:
        if any(launch.launch_id == launch_id for launch in self.ledger.launches(unsettled=True)):
            return  # a machine may still use them
        if not any(unit.launch_id == launch_id for unit in self.ledger.units()):
            terminating.release_resources(
                self.cloud, self.ledger, launch_id, timeout_s=self.settings.terminate_timeout_s, clock=self.clock
            )
        with suppress(LedgerError):  # a time is not worth hiding why the clean-up failed
            more_s = self.phases.timings().terminate_s
            for run_id in self.run_ids:
                was = self.ledger.run(run_id).timings
                took = replace(was, terminate_s=was.terminate_s + more_s, total_s=was.total_s + more_s)
                self.ledger.set_timings(run_id, took)
