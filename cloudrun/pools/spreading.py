"""The environments of a pool's units: one is built with Ansible, the others get theirs from a unit that has it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING

from cloudrun.core.errors import Cancelled, CloudrunError, ConnectionLost, ProvisionError, TransferError
from cloudrun.core.events import Note
from cloudrun.core.records import CopySource, SealedEnvironment
from cloudrun.ledger import Ledger
from cloudrun.plan import spreading as plan
from cloudrun.plan.spreading import Build, Copy, GiveUp, Spread, Wait
from cloudrun.units.phases import Phases
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.units.unit import OpenUnit

POLL_S = 0.5  # while one waits for another unit: whether it shall go on waiting
LOOK_S = 5.0  # whether the unit that builds is still there, which Ansible finds out only after a minute


@dataclass(frozen=True)
class Kind:
    """Units of one image have the same user, home and libraries: what is built on one works on the others."""

    fingerprint: str
    image_id: str


class Spreading:
    """Called from the units' threads: each waits, copies or builds as the plan says."""

    def __init__(self, cloud: Cloud, ledger: Ledger) -> None:
        self._cloud = cloud
        self._ledger = ledger
        self._changed = Condition()
        self._spreads: dict[Kind, Spread] = defaultdict(Spread)
        self._failures: dict[Kind, ProvisionError] = {}
        self._sources: dict[tuple[Kind, str], tuple[OpenUnit, SealedEnvironment]] = {}
        self._builders: dict[Kind, OpenUnit] = {}
        self._look_at = 0.0
        self._open_groups: set[str] = set()  # whose machines may reach each other

    def provide(self, unit: OpenUnit, fingerprint: str, phases: Phases, build: Callable[[], None]) -> None:
        """See to it that the unit has the environment. `build` does it with Ansible, on this unit.

        Raises what `build` does, on this unit or, where others have tried in vain, on those; Cancelled.
        """
        request = self._ledger.launch(unit.record.launch_id).request
        kind, group = Kind(fingerprint, request.image_id), request.security_group_id
        step = self._take(kind, unit, group)
        if isinstance(step, Wait):
            with phases.phase("provision", f"waits for the environment that {step.builder or 'another machine'} has"):
                step = self._await(kind, unit, group)
        if isinstance(step, GiveUp):
            raise _same(self._failures[kind])
        if not (isinstance(step, Copy) and self._copy(kind, unit, group, step.source, phases)):
            self._build(kind, unit, group, build)

    def lends(self, instance_id: str) -> bool:
        """Whether another unit is getting an environment from this one."""
        with self._changed:
            return any(spread.lends(instance_id) for spread in self._spreads.values())

    def leaves(self, instance_id: str) -> None:
        """The unit is about to end."""
        with self._changed:
            for kind, spread in self._spreads.items():
                self._sources.pop((kind, instance_id), None)
                self._spreads[kind] = plan.leaves(spread, instance_id)
            self._changed.notify_all()

    def _take(self, kind: Kind, unit: OpenUnit, group: str) -> plan.Step:
        """The unit's next step, which it has begun then in everybody's eyes."""
        with self._changed:
            spread = self._spreads[kind]
            step = plan.next_step(spread, group)
            if isinstance(step, Build) and not step.alone:
                self._spreads[kind] = plan.build_begins(spread, unit.instance_id)
                self._builders[kind] = unit
                self._look_at = time.monotonic() + LOOK_S
            elif isinstance(step, Copy):
                self._spreads[kind] = plan.copy_begins(spread, step.source)
            return step

    def _await(self, kind: Kind, unit: OpenUnit, group: str) -> plan.Step:
        while True:
            with self._changed:
                if not isinstance(step := self._take(kind, unit, group), Wait):
                    return step
                if unit.stop.is_set():
                    raise Cancelled("provisioning was cancelled")
                self._changed.wait(POLL_S)
                builder = self._builders[kind] if self._spreads[kind].builder else None
                if builder is None or time.monotonic() < self._look_at:
                    continue
                self._look_at = time.monotonic() + LOOK_S
            if builder.is_gone():
                self.leaves(builder.instance_id)

    def _now(self, kind: Kind, change: Callable[[Spread], Spread]) -> None:
        with self._changed:
            self._spreads[kind] = change(self._spreads[kind])
            self._changed.notify_all()

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self, kind: Kind, unit: OpenUnit, group: str, build: Callable[[], None]) -> None:
        name = unit.instance_id
        of_itself = False
        has_it = False
        try:
            build()
            has_it = True
        except ProvisionError as error:
            of_itself = bool(error.task) and not unit.is_gone()
            if of_itself:
                self._failures[kind] = error
            raise
        finally:
            if not has_it:
                self._now(kind, lambda spread: plan.build_fails(spread, name, of_itself=of_itself))
        try:
            sealed = self._seal(unit, kind.fingerprint)
        except ConnectionLost:  # whoever works on the unit learns whether it is still there
            self._now(kind, lambda spread: plan.build_fails(spread, name, of_itself=False))
            return
        with self._changed:
            if sealed is not None:
                self._sources[kind, name] = unit, sealed
            self._now(kind, lambda spread: plan.build_ends(spread, name, group, sealed=sealed is not None))

    def _seal(self, unit: OpenUnit, fingerprint: str) -> SealedEnvironment | None:
        """Before any job runs there. None where it cannot be copied."""
        try:
            return unit.agent.seal(fingerprint)
        except ConnectionLost:
            raise
        except CloudrunError as error:
            unit.observe(Note(f"the environment of {unit.instance_id} cannot be copied: {error}", "verbose"))
            return None

    # -- copying -------------------------------------------------------------------------------------------------------

    def _copy(self, kind: Kind, unit: OpenUnit, group: str, source: str, phases: Phases) -> bool:
        """Whether the unit has it now. Whatever keeps it from that, it may still build its own."""
        sealed = None
        try:
            with phases.phase("provision", f"environment from {source}"):
                sealed = self._bring(kind, unit, group, source)
        except CloudrunError as error:
            if isinstance(error, Cancelled):
                raise
            if unit.stop.is_set():  # whom it was to come from may have gone for the same reason
                raise Cancelled("provisioning was cancelled") from error
            words = f"{unit.instance_id} did not get the environment of {source}, and builds its own: {error}"
            unit.observe(Note(words, "warning"))
        finally:
            with self._changed:
                if sealed is not None:
                    self._sources[kind, unit.instance_id] = unit, sealed
                    self._now(kind, lambda spread: plan.copy_ends(spread, source, unit.instance_id, group))
                else:
                    self._now(kind, lambda spread: plan.copy_fails(spread, source))
        return sealed is not None

    def _bring(self, kind: Kind, unit: OpenUnit, group: str, source: str) -> SealedEnvironment:
        from cloudrun.ssh.keys import make_key

        with self._changed:
            known = self._sources.get((kind, source))
        if known is None:
            raise TransferError(f"{source} is about to end")
        other, sealed = known
        found = self._cloud.instances.describe([source, unit.instance_id])
        there, here = found.get(source), found.get(unit.instance_id)
        if there is None or there.private_address is None or here is None or here.private_address is None:
            raise TransferError(f"EC2 names no private address of {source} or {unit.instance_id}")
        request = self._ledger.launch(other.record.launch_id).request
        if not request.group_is_given:  # the user's own stays as it is, also where it keeps machines apart
            self._let_in(request.security_group_id, group, here.private_address)
        key = make_key("")
        way = CopySource(there.private_address, there.ssh_port, other.record.user, other.record.host_key, key.private)
        with other.agent.sharing(kind.fingerprint, key.public.strip()):
            unit.agent.fetch_environment(sealed, way, cancelled=unit.stop)
        return sealed

    def _let_in(self, group: str, who: str, address: str) -> None:
        """Open the source's security `group` to the unit: to all of its own machines at once, to another's one by one
        (a rule that named the other group would keep that from being deleted)."""
        if group != who:
            self._cloud.network.admit(group, f"{address}/32")
        elif group not in self._open_groups:
            self._cloud.network.admit_each_other(group)
            self._open_groups.add(group)


def _same(error: ProvisionError) -> ProvisionError:
    """For another unit, with what the first one said."""
    return ProvisionError(str(error), task=error.task, log_path=error.log_path, next_step=error.next_step)
