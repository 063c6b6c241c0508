"""A launch whose answer is lost: never launched twice, never taken for refused, and found out by asking again."""

from __future__ import annotations

import socket

import pytest

from cloudrun.aws.instances import Instances
from cloudrun.aws.session import Aws, connect
from cloudrun.core.errors import CapacityError, CredentialsError, LaunchError, QuotaError, UnresolvedLaunch, UsageError
from cloudrun.core.records import LaunchRequest

from .conftest import Endpoint, Fault, Refusal

ALWAYS = 4  # as often as a call is tried


@pytest.mark.parametrize("fault", ["lost", "broken"])
def test_a_launch_whose_answer_is_lost_once_returns_what_was_launched(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, ledger_id: str, fault: Fault
) -> None:
    endpoint.faults = [fault]
    instances = Instances(aws)
    launched = instances.run(request_for_two)
    assert endpoint.actions().count("RunInstances") == 2
    assert {each.instance_id for each in instances.owned(ledger_id)} == {each.instance_id for each in launched}


@pytest.mark.parametrize(
    "faults", [["lost"] * ALWAYS, ["broken"] * ALWAYS, ["half"], ["strange"]], ids=lambda faults: faults[0]
)
def test_a_launch_whose_every_answer_is_lost_is_unresolved_until_asked_again(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, ledger_id: str, faults: list[Fault]
) -> None:
    endpoint.faults = faults.copy()
    instances = Instances(aws)
    with pytest.raises(UnresolvedLaunch) as caught:
        instances.run(request_for_two)
    assert "cloudrun reap" in caught.value.next_step
    assert len(str(caught.value)) < 400
    launched = instances.run(request_for_two, asked_before=True)
    assert {each.instance_id for each in instances.owned(ledger_id)} == {each.instance_id for each in launched}
    assert len(launched) == 2


@pytest.mark.parametrize("code", ["ExpiredToken", "AuthFailure", "UnauthorizedOperation"])
def test_credentials_that_end_after_a_lost_answer_leave_the_launch_unresolved(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, code: str
) -> None:
    endpoint.faults = ["lost", Refusal(code)]
    with pytest.raises(UnresolvedLaunch):
        Instances(aws).run(request_for_two)


def test_a_network_that_goes_away_before_asking_again_leaves_the_launch_unresolved(
    request_for_two: LaunchRequest,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
        instances = Instances(connect(region="us-east-1", endpoint_url=nowhere, access_key="A", secret_key="s"))
        with pytest.raises(UnresolvedLaunch):
            instances.run(request_for_two, asked_before=True)
        with pytest.raises(LaunchError) as caught:
            instances.run(request_for_two)
        assert type(caught.value) is LaunchError


def test_a_refusal_after_a_lost_answer_is_one_where_nothing_was_launched(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    endpoint.faults = [Refusal("InternalError", 500), Refusal("VcpuLimitExceeded")]
    with pytest.raises(QuotaError):
        Instances(aws).run(request_for_two)


def test_a_refusal_after_a_lost_answer_is_not_believed_against_instances_that_are_there(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    endpoint.faults = ["lost", Refusal("InvalidAMIID.NotFound")]
    assert len(Instances(aws).run(request_for_two)) == 2


@pytest.mark.parametrize("code", ["IdempotentParameterMismatch", "IdempotentInstanceTerminated"])
def test_a_token_that_is_used_up_returns_what_it_launched(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, code: str
) -> None:
    instances = Instances(aws)
    launched = {each.instance_id for each in instances.run(request_for_two)}
    instances.terminate(sorted(launched))
    endpoint.faults = [Refusal(code)]
    again = instances.run(request_for_two)
    assert {each.instance_id for each in again} == launched
    assert {each.state for each in again} == {"terminated"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [("IdempotentParameterMismatch", UnresolvedLaunch), ("IdempotentInstanceTerminated", LaunchError)],
)
def test_a_used_token_without_instances_is_open_or_over(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, code: str, expected: type[Exception]
) -> None:
    endpoint.faults = [Refusal(code)]
    with pytest.raises(expected) as caught:
        Instances(aws).run(request_for_two)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refusal("InsufficientInstanceCapacity", 500), CapacityError),  # a server error in EC2's books
        (Refusal("MaxSpotInstanceCountExceeded"), QuotaError),
        (Refusal("InvalidParameterValue"), UsageError),
        (Refusal("UnauthorizedOperation", 403), CredentialsError),
        (Refusal("OperationNotPermitted"), CredentialsError),
        (Refusal("IncorrectState"), LaunchError),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_a_plain_refusal_is_not_unresolved(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest, refusal: Refusal, expected: type[Exception]
) -> None:
    endpoint.faults = [refusal] * ALWAYS
    with pytest.raises(expected) as caught:
        Instances(aws).run(request_for_two)
    assert type(caught.value) is expected


def test_being_throttled_once_is_no_loss(aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest) -> None:
    endpoint.faults = [Refusal("RequestLimitExceeded", 503)]
    assert len(Instances(aws).run(request_for_two)) == 2


def test_a_key_pair_that_is_not_known_yet_is_waited_for(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    endpoint.faults = [Refusal("InvalidKeyPair.NotFound")]
    assert len(Instances(aws).run(request_for_two)) == 2
