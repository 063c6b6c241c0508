"""Jump hosts: what may be written, and the command that it becomes."""

from __future__ import annotations

import pytest

from cloudrun.plan.jumping import check_jump, jump_command, login_command


@pytest.mark.parametrize(
    ("jump", "end"),
    [
        ("bastion", ["-W", "[%h]:%p", "bastion"]),
        ("me@bastion.example.com", ["-W", "[%h]:%p", "me@bastion.example.com"]),
        ("me@bastion:2222", ["-p", "2222", "-W", "[%h]:%p", "me@bastion"]),
        ("me@[2001:db8::7]:2222", ["-p", "2222", "-W", "[%h]:%p", "me@2001:db8::7"]),
    ],
)
def test_it_becomes_a_proxy_command(jump: str, end: list[str]) -> None:
    command = jump_command(jump)
    assert command[-len(end) :] == end
    assert command[:5] == ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]


def test_a_person_logs_in_there_with_the_same_words() -> None:
    assert login_command("me@bastion:2222") == ["ssh", "-p", "2222", "me@bastion"]


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=evil", "me@-oProxyCommand=evil", "a b", "me@", "h:0", "h:65536", "h;reboot", "a%h", "$(x)"],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no jump host"):
        check_jump(text)
