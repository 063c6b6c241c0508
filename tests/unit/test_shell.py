"""`cloudrun ssh`: which unit is meant, and what OpenSSH is told."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cloudrun.cli.ssh import left_to_ssh
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import SshTarget
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.shell import known_hosts_line, ssh_words
from cloudrun.units.shell import doing, meant
from tests.fakes import Ec2, ManualClock, begun, launch_one

TARGET = SshTarget("192.0.2.1", 2222, "ubuntu", Path("/a b/100%/key"), "ssh-ed25519 AAAAC3Nz comment")


def test_openssh_understands_what_it_is_told(tmp_path: Path) -> None:
    words = ssh_words(TARGET, "i-1", tmp_path / "known hosts")
    told = subprocess.run(["ssh", "-G", *words[1:]], capture_output=True, text=True, check=True).stdout.splitlines()
    settings = dict(line.split(" ", 1) for line in told if " " in line)
    assert (settings["hostname"], settings["port"], settings["user"]) == ("192.0.2.1", "2222", "ubuntu")
    assert settings["stricthostkeychecking"] == "true"
    assert settings["userknownhostsfile"] == str(tmp_path / "known hosts")
    assert settings["identityfile"].replace("%%", "%") == "/a b/100%/key"
    assert (settings["hostkeyalias"], settings["identitiesonly"], settings["forwardagent"]) == ("i-1", "yes", "no")


def test_a_machine_behind_a_jump_host_is_reached_through_it(tmp_path: Path) -> None:
    target = SshTarget("10.0.0.7", 22, "ubuntu", tmp_path / "key", "ssh-ed25519 AAAA", jump="me@bastion:2222")
    words = ssh_words(target, "i-1", tmp_path / "known_hosts")
    shown = subprocess.run([*words[:1], "-G", *words[1:]], capture_output=True, text=True, check=True).stdout
    (proxy,) = [line for line in shown.splitlines() if line.startswith("proxycommand ")]
    assert proxy.endswith("-p 2222 -W '[%h]:%p' me@bastion")


def test_a_command_is_a_text_for_the_shell_there_or_words() -> None:
    assert ssh_words(TARGET, "i-1", Path("k"), ["echo $HOME; id"])[-2:] == ["--", "echo $HOME; id"]
    assert ssh_words(TARGET, "i-1", Path("k"), ["echo", "$HOME it's"])[-1] == """echo '$HOME it'"'"'s'"""
    assert "--" not in ssh_words(TARGET, "i-1", Path("k"))


def test_a_jump_host_is_gone_through_with_what_the_user_has_set_up_for_it() -> None:
    words = ssh_words(replace(TARGET, jump="me@bastion:2200"), "i-1", Path("k"))
    (proxy,) = [word for word in words if word.startswith("ProxyCommand=")]
    assert "me@bastion" in proxy
    assert "-W '[%h]:%p'" in proxy
    told = subprocess.run(["ssh", "-G", *words[1:]], capture_output=True, text=True, check=True).stdout
    assert "proxycommand ssh " in told
    assert "stricthostkeychecking true" in told


def test_only_the_pinned_key_is_known_under_the_units_own_name() -> None:
    assert known_hosts_line(TARGET, "i-1") == "i-1 ssh-ed25519 AAAAC3Nz\n"


def test_a_unit_is_meant_by_its_id_its_beginning_or_its_run(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    one = launch_one(ledger, clock, ec2)
    begun(ledger, clock)
    for reference in (one.instance_id, "i-l", "l-1", "r-1", "train"):
        assert meant(ledger, reference) == one
    two = launch_one(ledger, clock, ec2, "l-2")
    assert meant(ledger, one.instance_id) == one
    with pytest.raises(UsageError, match="several units"):
        meant(ledger, "i-l")
    with pytest.raises(NotFound, match="did you mean train"):
        meant(ledger, "trian")
    ledger.move_unit(two.instance_id, UnitState.TERMINATING)
    assert meant(ledger, "i-l") == one
    with pytest.raises(UsageError, match="is terminating"):
        meant(ledger, two.instance_id)


def test_what_a_unit_does_is_a_word_or_two(ledger: Ledger, clock: ManualClock) -> None:
    unit = launch_one(ledger, clock, Ec2())
    assert doing([], unit) == "boots"
    for state in (UnitState.BOOTING, UnitState.READY):
        ledger.move_unit(unit.instance_id, state)
    unit = ledger.unit(unit.instance_id)
    assert [doing(runs, unit) for runs in ([], ["r-1"], ["r-1", "r-2"])] == ["nothing", "run r-1", "2 runs"]


def test_an_interruption_ends_what_was_started_and_not_who_waits_for_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    with left_to_ssh():
        done = subprocess.run(["sh", "-c", "kill -INT $$; echo went on"], capture_output=True, text=True, check=False)
        signal.raise_signal(signal.SIGINT)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert signal.getsignal(signal.SIGINT) is before
