"""EC2 as cloudrun depends on it, on top of moto's model of it: what moto leaves out or does otherwise than AWS.

An instance is `pending` before it runs and `shutting-down` until its machine is dead; client tokens are honoured;
unknown types and images are refused; a machine that powers itself off ends as its instance was told to; a terminated
instance stays terminated; an address is one where the machine really answers. Behaviour after the Amazon EC2 API
reference and "Error codes for the Amazon EC2 API".
"""

from __future__ import annotations

import base64
import json
import threading
from datetime import UTC, datetime
from typing import Any

from moto.ec2 import urls as ec2_urls
from moto.ec2.exceptions import (
    DependencyViolationError,
    EC2ClientError,
    InvalidParameterCombination,
    MissingParameterError,
    OperationDisableApiStopNotPermitted,
    OperationNotPermitted4,
)
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason

from cloudrun.plan.quantities import counted
from cloudrun.sandbox.hypervisor import Hypervisor, Outcome, PowerOn

SSH_PORT_TAG = "cloudrun:ssh-port"
USER_DATA_MAX_BYTES = 16384
INSTANCE_LIMIT = 100  # protects the computer that all of them run on
_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_NO_TOKEN = "ABCDE"  # noqa: S105 (what moto makes of a ClientToken that was not sent)


class RegionEC2(EC2Backend):
    """`lock` is held by whoever serves EC2 requests; the hypervisor's reports take it themselves."""

    def __init__(self, region_name: str, account_id: str, hypervisor: Hypervisor, lock: threading.Lock) -> None:
        super().__init__(region_name, account_id)
        self._hypervisor = hypervisor
        self._lock = lock
        self._launches: dict[str, tuple[str, Reservation]] = {}  # by client token: what was asked, what came of it
        self.capacity: dict[tuple[str, str], int] = {}  # by type and zone, where it is not as good as infinite
        self.instance_limit = INSTANCE_LIMIT
        self._private: set[str] = set()  # instances without a public address, by their subnet or by request

    @property
    def _url_module(self) -> Any:
        return ec2_urls  # moto derives it from this class's module, which is not moto's

    # -- requests ------------------------------------------------------------------------------------------------------

    def run_instances(
        self, image_id: str, count: int, user_data: Any, security_group_names: list[str], **kwargs: Any
    ) -> Reservation:
        token = kwargs.get("client_token") or _NO_TOKEN
        asked = json.dumps(
            [image_id, count, str(user_data), security_group_names, {**kwargs, "client_token": ""}],
            default=str,
            sort_keys=True,
        )
        if token != _NO_TOKEN and token in self._launches:
            before, reservation = self._launches[token]
            if before != asked:
                raise EC2ClientError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                )
            return reservation
        document = base64.b64decode(str(user_data)).decode("utf-8", "surrogateescape") if user_data else ""
        self._check_launch(image_id, count, kwargs, document)
        reservation = super().run_instances(image_id, count, user_data, security_group_names, **kwargs)
        if token != _NO_TOKEN:
            self._launches[token] = (asked, reservation)
        for instance in reservation.instances:
            if not instance.nics[0].public_ip_auto_assign:
                self._private.add(instance.id)
            self._power_on(instance)
        return reservation

    def start_instances(self, instance_ids: list[str]) -> list[tuple[Instance, InstanceState]]:
        instances = self._in_state(instance_ids, ("stopped", "pending", "running"), "started")
        for instance, before in instances:
            if before.name == "stopped":
                self._power_on(instance)
        return instances

    def stop_instances(self, instance_ids: list[str]) -> list[tuple[Instance, InstanceState]]:
        instances = self._in_state(instance_ids, ("running", "stopping", "stopped"), "stopped")
        for instance, _ in instances:
            if instance.disable_api_stop:
                raise OperationDisableApiStopNotPermitted(instance.id)
        for instance, before in instances:
            if before.name == "running":
                _set_state(instance, "stopping", "Client.UserInitiatedShutdown", "User initiated shutdown")
                self._hypervisor.end(instance.id)
        return instances

    def terminate_instances(self, instance_ids: list[str]) -> list[tuple[Instance, InstanceState]]:
        if not instance_ids:
            raise InvalidParameterCombination("No instances specified")
        instances = self._in_state(instance_ids, tuple(_CODES), "terminated")
        for instance, _ in instances:
            if instance.disable_api_termination:
                raise OperationNotPermitted4(instance.id)
        for instance, before in instances:
            if before.name == "stopped":
                self._terminated(instance)
            elif before.name != "terminated":
                _set_state(instance, "shutting-down", "Client.UserInitiatedShutdown", "User initiated shutdown")
                self._hypervisor.end(instance.id)
        return instances

    def reboot_instances(self, instance_ids: list[str]) -> list[Instance]:
        instances = [instance for instance, _ in self._in_state(instance_ids, ("running",), "rebooted")]
        for instance in instances:
            self._hypervisor.reboot(instance.id)
        return instances

    def delete_security_group(self, name: str | None = None, group_id: str | None = None) -> None:
        if name and not group_id and (group := self.get_security_group_by_name_or_id(name)):
            group_id = group.id
        users = [instance for instance in self.all_instances() if instance.state != "terminated"]
        if any(group.id == group_id for instance in users for group in instance.security_groups):
            raise DependencyViolationError(f"resource {group_id} has a dependent object")
        super().delete_security_group(name, group_id)

    # -- spot ----------------------------------------------------------------------------------------------------------

    def check_spot(self, instance_id: str) -> None:
        """Raises EC2ClientError where it is no running instance of the spot market: the others are not taken back."""
        instance = self.get_instance(instance_id)
        if instance.lifecycle != "spot":
            raise EC2ClientError("UnsupportedOperation", f"The instance '{instance_id}' is not a Spot Instance.")
        self._in_state([instance_id], ("running",), "interrupted")

    def take_back(self, instance_id: str) -> None:
        """What EC2 does when the time that it announced has come."""
        with self._lock:
            instance = self.get_instance(instance_id)
            if instance.state == "running":
                _set_state(instance, "shutting-down", "Server.SpotInstanceTermination", "Spot instance termination")
                self._hypervisor.end(instance.id)

    # -- reports of the hypervisor -------------------------------------------------------------------------------------

    def machine_runs(self, instance_id: str) -> None:
        with self._lock:
            instance = self.get_instance(instance_id)
            if instance.state == "pending":
                _set_state(instance, "running")

    def machine_ended(self, instance_id: str, outcome: Outcome) -> None:
        """The machine and all its processes are gone, because we ended it or by itself."""
        with self._lock:
            instance = self.get_instance(instance_id)
            if instance.state in ("pending", "running"):
                if outcome != "powered_off":
                    _set_state(instance, "shutting-down", "Server.InternalError", "The machine died; see daemon.log")
                else:
                    stops = instance.instance_initiated_shutdown_behavior == "stop"
                    state = "stopping" if stops else "shutting-down"
                    _set_state(instance, state, "Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
            if instance.state == "stopping":
                self._stopped(instance)
            else:
                self._terminated(instance)

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _check_launch(self, image_id: str, count: int, kwargs: dict[str, Any], user_data: str) -> None:
        """Refuse what EC2 refuses. moto itself checks the image's id, the key pair and the security groups."""
        if not image_id and not kwargs.get("launch_template"):
            raise MissingParameterError("ImageId")
        if len(user_data.encode("utf-8", "surrogateescape")) > USER_DATA_MAX_BYTES:
            raise EC2ClientError("InvalidParameterValue", f"User data is limited to {USER_DATA_MAX_BYTES} bytes")
        name = kwargs["instance_type"]
        live = [instance for instance in self.all_instances() if instance.state != "terminated"]
        if len(live) + count > self.instance_limit:
            raise EC2ClientError(
                "InstanceLimitExceeded",
                f"This sandbox runs {counted(len(live), 'instance')} and may run {self.instance_limit}: they share one"
                " computer.",
            )
        zone = str(kwargs.get("placement") or f"{self.region_name}a")  # where moto puts what names no zone
        there = [each for each in live if (each.instance_type, str(each.placement.zone)) == (name, zone)]
        if len(there) + count > self.capacity.get((name, zone), INSTANCE_LIMIT):
            raise EC2ClientError(
                "InsufficientInstanceCapacity",
                f"We currently do not have sufficient {name} capacity in the Availability Zone you requested ({zone}).",
            )
        types = [found for found in self.instance_types if found["InstanceType"] == name]
        if not types:
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")
        architectures = types[0]["ProcessorInfo"]["SupportedArchitectures"]
        for image in self.describe_images(ami_ids=[image_id]) if image_id else []:
            if image.architecture not in architectures:
                raise EC2ClientError(
                    "InvalidParameterValue",
                    f"The architecture '{','.join(architectures)}' of the specified instance type does not match the "
                    f"architecture '{image.architecture}' of the specified AMI. Specify an instance type and an AMI "
                    "that have matching architectures, and try again.",
                )

    def _in_state(
        self, instance_ids: list[str], states: tuple[str, ...], verb: str
    ) -> list[tuple[Instance, InstanceState]]:
        """The instances and copies of their states, which are all among `states`; nothing is done where one is not."""
        instances = self.get_multi_instances_by_id(instance_ids)
        for instance in instances:
            if instance.state not in states:
                raise EC2ClientError(
                    "IncorrectInstanceState",
                    f"The instance '{instance.id}' is not in a state from which it can be {verb}.",
                )
        return [(instance, InstanceState(instance.state, instance.state_code)) for instance in instances]

    def _power_on(self, instance: Instance) -> None:
        """A machine for the instance, with a new address: as on EC2, one does not survive a stop."""
        _set_state(instance, "pending")
        address, port = self._hypervisor.next_address()
        _set_public_address(instance, None if instance.id in self._private else address)
        _set_private_address(instance, address)
        instance.add_tags({SSH_PORT_TAG: str(port)})
        keys = self.describe_key_pairs(key_names=[instance.key_name]) if instance.key_name else []
        user_data = base64.b64decode(str(instance.user_data)) if instance.user_data else b""
        order = PowerOn(
            instance_id=instance.id,
            address=address,
            ssh_port=port,
            hostname=str(instance.private_dns_name).partition(".")[0],
            authorized_keys=tuple(key.public_key.strip() for key in keys),
            user_data=user_data.decode("utf-8", "surrogateescape"),
            instance_type=instance.instance_type,
            image_id=instance.image_id,
            region=self.region_name,
            zone=str(instance.placement.zone),
            private_address=str(instance.private_ip),
            key_name=instance.key_name or "",
            tokens_required=instance.metadata_options.http_tokens == "required",
        )
        self._hypervisor.power_on(order, self)

    def _stopped(self, instance: Instance) -> None:
        reasons = instance.state_reason, instance._reason  # noqa: SLF001 (see _set_state)
        instance.stop()  # gives reasons of its own
        instance.state_reason, instance._reason = reasons  # noqa: SLF001
        _set_public_address(instance, None)

    def _terminated(self, instance: Instance) -> None:
        reasons = instance.state_reason, instance._reason  # noqa: SLF001 (see _set_state)
        instance.terminate()  # gives reasons of its own
        instance.state_reason, instance._reason = reasons  # noqa: SLF001
        _set_public_address(instance, None)
        self._hypervisor.remove(instance.id)


def install(region_name: str, account_id: str, hypervisor: Hypervisor, lock: threading.Lock) -> RegionEC2:
    """Make it the EC2 that moto's server answers from."""
    from moto.ec2.models import ec2_backends

    backend = RegionEC2(region_name, account_id, hypervisor, lock)
    ec2_backends[account_id][region_name] = backend
    return backend


def _set_state(instance: Instance, name: str, code: str = "", message: str = "") -> None:
    instance.instance_state.name = name
    instance.instance_state.code = _CODES[name]
    instance.state_reason = StateReason(f"{code}: {message}", code) if code else StateReason()
    whose = "Service" if code.startswith("Server.") else "User" if code == "Client.UserInitiatedShutdown" else ""
    said = f"{whose} initiated ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)" if whose else ""
    instance._reason = said  # noqa: SLF001 (StateTransitionReason, which moto lets nobody set)


def _set_public_address(instance: Instance, address: str | None) -> None:
    """moto would make one up, and it would be a stranger's."""
    instance.nics[0].public_ip_auto_assign = False
    instance.nics[0].public_ip = address


def _set_private_address(instance: Instance, address: str) -> None:
    """Where other machines reach it: here the same. moto's own would be a stranger's, and is given back."""
    nic = instance.nics[0]
    for each in nic.private_ip_addresses:
        nic.subnet.del_subnet_ip(each["PrivateIpAddress"])
    nic.private_ip_address = address
    nic.private_ip_addresses = [{"Primary": True, "PrivateIpAddress": address}]
