"""One launch, from its intent to machines that run; `terminating` is the reverse.

The order is what keeps a machine from leaking: the ledger knows what is about to be asked before EC2 is asked, and a
lost answer is asked for again with the same token until it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from cloudrun.core.clock import Clock, utc_text
from cloudrun.core.errors import (
    CleanupIncomplete,
    CloudrunError,
    LaunchError,
    LedgerError,
    UnresolvedLaunch,
    UsageError,
    mark_incomplete,
)
from cloudrun.core.records import Image, Instance, LaunchRecord, LaunchRequest, Site, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, LaunchState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.offers import Offer
from cloudrun.plan.reaping import key_name
from cloudrun.plan.tagging import tags_of
from cloudrun.plan.userdata import user_data
from cloudrun.plan.volumes import volume_problem
from cloudrun.units.clients import owner
from cloudrun.units.terminating import POLL_S, terminate
from cloudrun.wiring import Cloud

SETTLED = (LaunchState.RESOLVED, LaunchState.REFUSED)
RESOLVE_ATTEMPTS = 5
UNWRITTEN_TIMEOUT_S = 120.0
STARTING_S = 30.0  # for which EC2 may go on saying that an instance is stopped, after it was started


def prepare(
    cloud: Cloud,
    ledger: Ledger,
    settings: Settings,
    image: Image,
    *,
    launch_id: str,
    client_id: str,
    clock: Clock,
    offer: Offer,
    overdue_grace_s: float,
    count: int = 1,
    more_tags: Mapping[str, str] | None = None,
) -> LaunchRecord:
    """Make the keys and the security group, and write the intent. Nothing bills yet when this returns.

    `overdue_grace_s` is 0 for machines that nobody ever starts again: then not even a reboot gives them more time.
    """
    from cloudrun.ssh.keys import make_key

    login, host = make_key(f"cloudrun {launch_id}"), make_key(f"cloudrun host {launch_id}")
    _write_private(ledger.keys_dir / launch_id, login.private)
    now = clock.now()
    deadline = now + timedelta(seconds=settings.deadline_s)
    tags = {
        **tags_of(settings.tags),
        "Name": f"cloudrun {launch_id}",
        "cloudrun:ledger": ledger.ledger_id,
        "cloudrun:launch": launch_id,
        "cloudrun:owner": owner(),
        "cloudrun:expires-at": utc_text(deadline),
        **(more_tags or {}),
    }
    name = key_name(launch_id)
    site = find_site(cloud, settings)
    subnet = site.subnet_in(offer.zone)
    cloud.network.import_key_pair(name, login.public, tags)
    group = site.group_id or _make_group(cloud, site, name, tags)
    record = LaunchRecord(
        launch_id=launch_id,
        place=cloud.place,
        state=LaunchState.INTENDED,
        request=LaunchRequest(
            client_token=launch_id,
            count=count,
            instance_type=offer.instance_type,
            image_id=image.image_id,
            root_device=image.root_device,
            volume_gib=max(settings.volume_gib, image.root_gib),
            key_name=name,
            security_group_id=group,
            user_data=user_data(
                deadline=deadline,
                host_private_key=host.private,
                host_public_key=host.public,
                overdue_grace_s=overdue_grace_s,
            ),
            tags=tags,
            spot=settings.spot,
            zone=offer.zone,
            max_price=settings.max_price,
            subnet_id=subnet.subnet_id if subnet else "",
            public_address=bool(subnet and site.ask_public and not subnet.public),
            volume_type=settings.volume_type,
            volume_iops=settings.volume_iops,
            volume_throughput=settings.volume_throughput,
            instance_profile=settings.instance_profile or "",
            private=site.private,
            group_is_given=bool(site.group_id),
            admits_caller=not (site.group_id or site.admitted),
            overdue_grace_s=overdue_grace_s,
        ),
        user=settings.user or image.user,
        client_id=client_id,
        deadline=deadline,
        on_exit=settings.on_exit,
        host_key=" ".join(host.public.split()[:2]),
        created_at=now,
        architecture=image.architecture,
        ssh_jump=settings.ssh_jump or "",
    )
    ledger.intend(record)
    return record


def _make_group(cloud: Cloud, site: Site, name: str, tags: Mapping[str, str]) -> str:
    first, *others = site.admitted or (cloud.caller_cidr(),)
    more = {"vpc_id": site.vpc_id} if site.vpc_id else {}
    group = cloud.network.create_security_group(name, first, tags, **more)
    for network in others:
        cloud.network.admit(group, network)
    return group


def find_site(cloud: Cloud, settings: Settings) -> Site:
    """Where in the account's network its machines go. EC2 is asked only about what the settings name. Raises UsageError
    where that does not exist, does not go together, or leads to machines that nobody can reach."""
    values = [settings.vpc, settings.subnet, settings.security_group, settings.zone, settings.address]
    if not any((*values, settings.ssh_from, settings.ssh_jump)):
        return Site()
    words = [value or "" for value in (*values, settings.ssh_from)]
    return cloud.network.site(*words, jump=settings.ssh_jump is not None)


def find_image(cloud: Cloud, settings: Settings) -> Image:
    """What all allowed types boot. Raises UsageError for an unknown type or image, where they do not go together, and
    for machines that would not be reached."""
    if settings.max_price is not None and not settings.spot:
        raise UsageError("a maximum price is for spot machines", next_step="add --spot, or leave out --max-price")
    problem = volume_problem(settings.volume_type, settings.volume_iops, settings.volume_throughput)
    if problem:
        raise UsageError(problem, next_step="correct --volume-type, --volume-iops and --volume-throughput")
    for name, why in cloud.refuses.items():
        if getattr(settings, name):
            raise UsageError(f"{name}: {why}", next_step=f"leave out {name}, or use --provider aws")
    image = cloud.images.find(settings.instance_type, image_id=settings.image, user=settings.user)
    for instance_type in settings.fallback_types:
        other = cloud.images.find(instance_type, image_id=image.image_id, user=image.user)
        if other.gpu and not image.gpu and settings.image is None:
            raise UsageError(
                f"{instance_type} has a GPU and {settings.instance_type} has none: one image does not suit both",
                next_step=f"write --instance-type {instance_type} and allow the other, or name an image that does",
            )
    find_site(cloud, settings)
    if settings.ssh_jump:
        from cloudrun.ssh.jump import check_way

        check_way(settings.ssh_jump)
    return image


def image_of(cloud: Cloud, ledger: Ledger, unit: UnitRecord) -> Image:
    """What a unit of this ledger was launched from, as far as that matters to what runs on it. EC2 is asked only about
    units of an older cloudrun."""
    launch = ledger.launch(unit.launch_id)
    architecture = launch.architecture or cloud.images.find(unit.instance_type).architecture
    return Image(launch.request.image_id, "", architecture, launch.request.root_device, unit.user, 0)


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def request(cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock) -> list[UnitRecord]:
    """Ask EC2 for the machines. Raises the refusal, or UnresolvedLaunch where even asking again gave no answer."""
    ledger.move_launch(launch.launch_id, LaunchState.REQUESTED)
    return _ask(cloud, ledger, launch, clock, attempts=RESOLVE_ATTEMPTS)


def resolve(cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock) -> list[UnitRecord]:
    """Find out what became of a launch whose answer was lost: the same call, same token, word for word."""
    if launch.state is LaunchState.INTENDED:
        ledger.move_launch(launch.launch_id, LaunchState.REFUSED, "never asked for: the client ended before")
        return []
    return _ask(cloud, ledger, launch, clock, attempts=1, asked_before=True)


def _ask(
    cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock, *, attempts: int, asked_before: bool = False
) -> list[UnitRecord]:
    for attempt in range(attempts):
        try:
            instances = cloud.instances.run(launch.request, asked_before=asked_before or attempt > 0)
        except UnresolvedLaunch as lost:
            if attempt + 1 == attempts:
                if ledger.launch(launch.launch_id).state is LaunchState.REQUESTED:
                    ledger.move_launch(launch.launch_id, LaunchState.UNRESOLVED, str(lost))
                raise
            clock.sleep(min(2.0**attempt * 0.5, 8.0))
        except CloudrunError as refusal:
            ledger.move_launch(launch.launch_id, LaunchState.REFUSED, str(refusal))
            raise
        else:
            units = [_unit(launch, instance) for instance in instances]
            try:
                ledger.resolve_launch(launch.launch_id, units)
            except LedgerError as error:
                _end_unwritten(cloud, ledger, units, error, clock)
                raise
            return units
    raise AssertionError("a launch is asked for at least once")


def _end_unwritten(cloud: Cloud, ledger: Ledger, units: Sequence[UnitRecord], error: LedgerError, clock: Clock) -> None:
    """Machines that the ledger cannot hold (a full disk) must not live: nobody would know of them."""
    ids = [unit.instance_id for unit in units]
    try:
        terminate(cloud, ledger, ids, reason=EndReason.COMPLETED, timeout_s=UNWRITTEN_TIMEOUT_S, clock=clock)
    except CleanupIncomplete as failure:
        error.add_note(str(failure))
        mark_incomplete(error)
    except LedgerError:
        pass  # the very same once more


def _unit(launch: LaunchRecord, instance: Instance) -> UnitRecord:
    return UnitRecord(
        instance_id=instance.instance_id,
        launch_id=launch.launch_id,
        place=launch.place,
        state=UnitState.LAUNCHING,
        instance_type=instance.instance_type,
        user=launch.user,
        address=_address(launch.request, instance),
        ssh_port=instance.ssh_port,
        host_key=launch.host_key,
        deadline=launch.deadline,
        on_exit=launch.on_exit,
        client_id=launch.client_id,
        created_at=launch.created_at,
        ssh_jump=launch.ssh_jump,
    )


def _address(request: LaunchRequest, instance: Instance) -> str | None:
    """Where we log in."""
    return instance.private_address if request.private else instance.address


def wait_running(
    cloud: Cloud,
    ledger: Ledger,
    instance_id: str,
    *,
    timeout_s: float,
    clock: Clock,
    cancelled: Callable[[], None],
    started: bool = False,
) -> Instance:
    """Poll until EC2 says `running` with an address. `cancelled` raises where the user has had enough; `started` is a
    machine that was stopped until a moment ago, as EC2 may still say for a while."""
    begin = clock.monotonic()
    end = begin + timeout_s
    pause = POLL_S[0]
    while True:
        cancelled()
        # A new instance may be missing from a describe for a moment; only the deadline makes that an error.
        found = cloud.instances.describe([instance_id]).get(instance_id)
        if found is not None and found.state == "running" and found.address:
            note_running(ledger, found)
            return found
        old_news = started and clock.monotonic() < begin + STARTING_S
        down = ("shutting-down", "terminated") if old_news else ("shutting-down", "terminated", "stopping", "stopped")
        if found is not None and found.state in down:
            why = found.state_reason or "EC2 gave no reason"
            raise LaunchError(
                f"{instance_id} went to {found.state} before it was up: {why}",
                next_step="submit again, or try another instance type",
            )
        if clock.monotonic() >= end:
            raise LaunchError(
                f"{instance_id} was not running after {timeout_s:.0f} s",
                next_step="submit again; raise boot_timeout_s if this recurs",
            )
        clock.sleep(pause)
        pause = min(pause * 1.5, POLL_S[1])


def note_running(ledger: Ledger, instance: Instance) -> UnitRecord:
    """Write down where a machine is that has begun to run. Returns its row."""
    with ledger.together():
        request = ledger.launch(ledger.unit(instance.instance_id).launch_id).request
        ledger.update_unit(instance.instance_id, address=_address(request, instance), ssh_port=instance.ssh_port)
        if ledger.unit(instance.instance_id).state is not UnitState.BOOTING:  # one that was started is already
            ledger.move_unit(instance.instance_id, UnitState.BOOTING)
        return ledger.unit(instance.instance_id)
