"""An environment from one unit to another: bit for bit what was built, or nothing at all, and no key left anywhere."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import environments
from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir, wire
from cloudrun.ssh.keys import KeyPair, make_key
from tests.leftovers import end_tree
from tests.waiting import until

from .conftest import FINGERPRINT, USERS_KEY, Agent, Refused, Source, Unit


def tree(folder: Path) -> dict[str, Any]:
    """All that a copy shall have."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        info = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_dir():
            found[name] = stat.S_IMODE(info.st_mode)
        else:
            found[name] = (stat.S_IMODE(info.st_mode), info.st_mtime_ns, path.read_bytes())
    return found


def fetched(newcomer: Unit, source: Source, key: KeyPair, digest: str | None = None, **changes: Any) -> dict[str, Any]:
    digest = digest or source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    with source.sharing(key):
        return newcomer.ask("fetch_environment", digest=digest, **source.way(key, **changes))


def nothing_came(newcomer: Unit) -> None:
    envs = newcomer.env.parent
    assert not envs.exists() or list(envs.iterdir()) == []


def nothing_is_left(source: Source, newcomer: Unit, key: KeyPair) -> None:
    assert source.keys.read_text().splitlines() == [USERS_KEY]
    secret = key.private.splitlines()[1].encode()
    for unit in (source, newcomer):
        for path in unit.folder.rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path
    assert not list(newcomer.env.parent.glob("*.copying"))


def test_a_copy_is_what_was_built(source: Source, newcomer: Unit, key: KeyPair) -> None:
    told = fetched(newcomer, source, key)
    assert tree(newcomer.env) == tree(source.env)
    assert told["bytes"] > 3_000_000
    assert newcomer.ask("environment", fingerprint=FINGERPRINT) == {"ready": True}
    python = f"{newcomer.home}/{rundir.env_python(FINGERPRINT)}"
    assert newcomer.run(python, "-c", "import alias; print(alias.answer)") == "42\n"
    assert newcomer.run(f"{newcomer.home}/{rundir.env_dir(FINGERPRINT)}/bin/tool") == "works\n"
    nothing_is_left(source, newcomer, key)


def test_agents_of_the_oldest_python_can_do_it_too(source: Source, newcomer: Unit, key: KeyPair, python: str) -> None:
    source.python = newcomer.python = python
    fetched(newcomer, source, key)
    assert tree(newcomer.env) == tree(source.env)


def test_who_has_received_it_can_pass_it_on(source: Source, newcomer: Unit, key: KeyPair, tmp_path: Path) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    fetched(newcomer, source, key, digest)
    source.end()
    (tmp_path / "second").mkdir()
    second = Source(tmp_path / "second" / "c", source.home)
    third = Unit(tmp_path / "d", source.home)
    try:
        for path in newcomer.env.parent.iterdir():
            target = second.env.parent / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        fetched(third, second, key, digest)
        assert tree(third.env) == tree(second.env)
    finally:
        third.end()
        second.end()


def test_the_python_that_uv_has_installed_travels_along(source: Source, newcomer: Unit, key: KeyPair) -> None:
    pythons = Path(".local/share/uv/python")
    installed = source.folder / pythons / "cpython-3.11.9-linux"
    (installed / "bin").mkdir(parents=True)
    (installed / "bin" / "python3.11").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (installed / "bin" / "python3.11").chmod(0o755)
    (source.folder / pythons / "cpython-3.11-linux").symlink_to("cpython-3.11.9-linux")
    (source.env / "bin" / "python").unlink()
    (source.env / "bin" / "python").symlink_to(source.home / pythons / "cpython-3.11-linux" / "bin" / "python3.11")
    fetched(newcomer, source, key)
    assert tree(newcomer.folder / pythons) == tree(source.folder / pythons)
    assert newcomer.run(f"{newcomer.home}/{rundir.env_python(FINGERPRINT)}", "-c", "print(6 * 7)") == "42\n"


def test_a_python_that_the_newcomer_has_already_is_left_alone(source: Source, newcomer: Unit, key: KeyPair) -> None:
    place = Path("pythons/cpython-3.11.9/bin/python3.11")
    for unit, words in ((source, "theirs"), (newcomer, "ours")):
        (unit.folder / place).parent.mkdir(parents=True)
        (unit.folder / place).write_text(f"#!/bin/sh\necho {words}\n")
        (unit.folder / place).chmod(0o755)
    (source.env / "bin" / "python").unlink()
    (source.env / "bin" / "python").symlink_to(source.home / place)
    fetched(newcomer, source, key)
    assert newcomer.run(f"{newcomer.home}/{rundir.env_python(FINGERPRINT)}") == "ours\n"


def test_what_jobs_have_added_since_does_not_travel(source: Source, newcomer: Unit, key: KeyPair) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    before = tree(source.env)
    (source.env / "lib" / "added.py").write_text("by a job")
    fetched(newcomer, source, key, digest)
    assert tree(newcomer.env) == before


def test_what_jobs_have_changed_since_breaks_the_copy_off(source: Source, newcomer: Unit, key: KeyPair) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    (thing,) = source.env.glob("lib/python3*/site-packages/thing.py")
    changes: dict[str, Callable[[], object]] = {
        "other bytes": lambda: thing.write_text("answer = 43\n"),
        "longer": lambda: thing.write_text("answer = 42\n# more\n"),
        "gone": lambda: None,
        "a link": lambda: thing.symlink_to("empty"),
        "a pipe": lambda: os.mkfifo(thing),
    }
    for name, change in changes.items():
        thing.unlink(missing_ok=True)
        change()
        with pytest.raises(Refused, match=r"was changed|No such file|symbolic links"):
            fetched(newcomer, source, key, digest)
        assert not list(newcomer.env.parent.glob("*")), name
        nothing_is_left(source, newcomer, key)


def test_another_environment_than_the_one_that_was_sealed_is_refused(
    source: Source, newcomer: Unit, key: KeyPair
) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    (source.env / "lib" / "added.py").write_text("by a job")
    source.ask("seal", fingerprint=FINGERPRINT)  # by the job too
    with pytest.raises(Refused, match="not the one that was sealed"):
        fetched(newcomer, source, key, digest)
    nothing_came(newcomer)


def test_a_copy_for_another_home_is_refused(source: Source, tmp_path: Path, key: KeyPair) -> None:
    stranger = Unit(tmp_path / "b", tmp_path / "another")
    try:
        with pytest.raises(Refused, match=r"is for .*home"):
            fetched(stranger, source, key)
        nothing_came(stranger)
    finally:
        stranger.end()


def test_a_unit_without_the_python_that_is_needed_gets_nothing(source: Source, newcomer: Unit, key: KeyPair) -> None:
    (source.env / "bin" / "python").unlink()
    (source.env / "bin" / "python").symlink_to("/opt/nowhere/bin/python3.11")
    with pytest.raises(Refused, match="this unit has no /opt/nowhere"):
        fetched(newcomer, source, key)
    nothing_came(newcomer)


def test_one_that_is_there_already_is_not_fetched(source: Source, newcomer: Unit, key: KeyPair) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    fetched(newcomer, source, key, digest)
    source.end()
    way = source.way(key)
    assert newcomer.ask("fetch_environment", digest=digest, **way) == {"files": 0, "bytes": 0}


def test_half_a_one_makes_room(source: Source, newcomer: Unit, key: KeyPair) -> None:
    """As somebody leaves it who is killed."""
    for folder in (newcomer.env, newcomer.env.with_suffix(".copying") / "0"):
        folder.mkdir(parents=True)
        (folder / "half").write_text("of a file")
    fetched(newcomer, source, key)
    assert tree(newcomer.env) == tree(source.env)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_source_that_dies_in_the_middle_leaves_nothing(source: Source, newcomer: Unit, key: KeyPair) -> None:
    with (source.env / "lib" / "large").open("wb") as file:
        file.truncate(400_000_000)  # takes no room, and some seconds to copy
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    with source.sharing(key):
        agent = newcomer.agent()
        agent.say("fetch_environment", digest=digest, **source.way(key))
        until(lambda: list(newcomer.env.parent.glob("*.copying/0/lib/large")))
        end_tree(source.server.pid)
        with pytest.raises(Refused, match="broke off"):
            agent.reply()
    nothing_came(newcomer)
    nothing_is_left(source, newcomer, key)


def test_a_source_that_is_gone_is_not_waited_for(source: Source, newcomer: Unit, key: KeyPair) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    end_tree(source.server.pid)
    with pytest.raises(Refused, match="Connection refused"):
        newcomer.ask("fetch_environment", digest=digest, **source.way(key))
    nothing_came(newcomer)


def test_a_machine_with_another_host_key_is_not_believed(source: Source, newcomer: Unit, key: KeyPair) -> None:
    with pytest.raises(Refused, match="Host key verification failed"):
        fetched(newcomer, source, key, host_key=make_key("other").public)
    nothing_came(newcomer)
    nothing_is_left(source, newcomer, key)


def test_a_unit_without_ssh_says_so(source: Source, newcomer: Unit, key: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    agent = newcomer.command(["env", f"PATH={tmp_path / 'empty'}", newcomer.python, "-I", "-S", "-X", "utf8"])
    newcomer.command = lambda words: [*agent, *words[5:]]  # type: ignore[method-assign]
    with pytest.raises(Refused, match="no ssh"):
        fetched(newcomer, source, key)
    nothing_came(newcomer)
    nothing_is_left(source, newcomer, key)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_leaves_nothing(source: Source, home: Path, tmp_path: Path, key: KeyPair) -> None:
    small = tmp_path / "b"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(small)], check=True)
    try:
        newcomer = Unit(small, home)
        with pytest.raises(Refused, match="No space left"):
            fetched(newcomer, source, key)
        nothing_came(newcomer)
        nothing_is_left(source, newcomer, key)
        newcomer.end()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=False)


# -- who may what ------------------------------------------------------------------------------------------------------


def test_the_key_is_good_for_nothing_once_the_copy_is_over(source: Source, newcomer: Unit, key: KeyPair) -> None:
    digest = source.ask("seal", fingerprint=FINGERPRINT)["digest"]
    with source.sharing(key):
        pass
    with pytest.raises(Refused, match="Permission denied"):
        newcomer.ask("fetch_environment", digest=digest, **source.way(key))
    nothing_came(newcomer)


def test_the_key_is_good_for_nothing_but_the_copy(source: Source, key: KeyPair, tmp_path: Path) -> None:
    source.ask("seal", fingerprint=FINGERPRINT)
    identity = tmp_path / "identity"
    identity.write_text(key.private)
    identity.chmod(0o600)
    options = ["-F", "/dev/null", "-i", str(identity), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{source.port} {source.way(key)['host_key']}\n")
    options += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}", "-o", "LogLevel=ERROR"]
    marker = source.folder / "marker"
    with source.sharing(key):
        way = ["ssh", *options, "-p", str(source.port), "127.0.0.1"]
        done = subprocess.run([*way, f"touch {marker}"], capture_output=True, timeout=60, check=False)
        assert b'{"machine"' in done.stdout[:30]
        assert not marker.exists()
        forwarded = subprocess.run(
            [*way, "-o", "ExitOnForwardFailure=yes", "-W", f"127.0.0.1:{source.port}"],
            input=b"", capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert b"SSH-2.0" not in forwarded.stdout
        assert b"forwarding failed" in forwarded.stderr


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "..", 'x"', "x y", "x;touch y", "x\ny", None, 7, "x" * 65])
def test_a_hostile_name_is_none(name: Any) -> None:
    with pytest.raises(AgentError, match="is not the name of an environment"):
        environments.checked(name)


def test_a_hostile_name_is_refused_by_every_verb(source: Source, newcomer: Unit, key: KeyPair) -> None:
    name = "../../etc"
    with pytest.raises(Refused, match="is not the name of an environment"):
        source.ask("seal", fingerprint=name)
    with pytest.raises(Refused, match="is not the name of an environment"):
        source.ask("share", fingerprint=name, key=key.public.strip())
    with pytest.raises(Refused, match="is not the name of an environment"):
        newcomer.ask("fetch_environment", digest="", **source.way(key, fingerprint=name))
    assert source.keys.read_text() == USERS_KEY
    nothing_came(newcomer)


def test_a_key_that_would_be_more_than_one_line_is_refused(source: Source, key: KeyPair) -> None:
    for line in (
        f"{key.public.strip()}\n{key.public}",
        f"{key.public.strip()} comment",
        "",
        'command="x" ssh-ed25519 A',
    ):
        with pytest.raises(Refused, match="not one line"):
            source.ask("share", fingerprint=FINGERPRINT, key=line)
    assert source.keys.read_text() == USERS_KEY


def test_an_address_that_ssh_would_take_for_an_option_is_refused(source: Source, newcomer: Unit, key: KeyPair) -> None:
    for change in ({"address": "-oProxyCommand=x"}, {"user": "-x"}, {"host_key": "other\nkey"}):
        with pytest.raises(Refused, match="no unit that could be asked"):
            newcomer.ask("fetch_environment", digest="0" * 64, **source.way(key, **change))


def test_two_copies_at_a_time_and_the_users_own_keys_stay(source: Source, newcomer: Unit) -> None:
    one, other = make_key(""), make_key("")
    with source.sharing(one), source.sharing(other):
        lines = source.keys.read_text().splitlines()
        assert lines[0] == USERS_KEY
        assert len(lines) == 3
        assert all(line.startswith('restrict,command="') for line in lines[1:])
        assert stat.S_IMODE(source.keys.stat().st_mode) == 0o600
    assert source.keys.read_text().splitlines() == [USERS_KEY]
    assert [path.name for path in source.keys.parent.iterdir()] == ["authorized_keys"]


def admitting(source: Source, key: KeyPair) -> Agent:
    agent = source.agent()
    agent.say("share", fingerprint=FINGERPRINT, key=key.public.strip())
    agent.until(wire.PROGRESS)
    assert key.public.strip() in source.keys.read_text()
    return agent


@pytest.mark.parametrize("number", [None, signal.SIGHUP, signal.SIGTERM])
def test_a_client_that_vanishes_takes_its_key_along(
    source: Source, key: KeyPair, number: signal.Signals | None
) -> None:
    agent = admitting(source, key)
    if number is None:
        agent.hang_up()
    else:
        agent.process.send_signal(number)
    until(lambda: source.keys.read_text().splitlines() == [USERS_KEY])


def test_a_line_that_was_left_by_kill_9_goes_with_the_next_copy(source: Source, key: KeyPair) -> None:
    agent = admitting(source, key)
    agent.process.kill()
    agent.process.wait()
    assert key.public.strip() in source.keys.read_text()
    with source.sharing(make_key("")):
        assert key.public.strip() not in source.keys.read_text()


def test_an_account_without_a_list_of_keys_gets_one(source: Source, newcomer: Unit, key: KeyPair) -> None:
    source.keys.unlink()
    fetched(newcomer, source, key)
    assert tree(newcomer.env) == tree(source.env)
    assert source.keys.read_text() == ""


def test_what_is_no_file_folder_or_link_is_not_sealed(source: Source) -> None:
    os.mkfifo(source.env / "lib" / "pipe")
    with pytest.raises(Refused, match="no file, folder or link"):
        source.ask("seal", fingerprint=FINGERPRINT)


def test_only_what_was_built_here_and_is_ready_is_sealed(source: Source, newcomer: Unit) -> None:
    (source.env / ".ready").unlink()
    with pytest.raises(Refused, match="not one that was built on this unit"):
        source.ask("seal", fingerprint=FINGERPRINT)
    newcomer.env.parent.mkdir(parents=True)
    newcomer.env.symlink_to(source.env)
    with pytest.raises(Refused, match="not one that was built on this unit"):
        newcomer.ask("seal", fingerprint=FINGERPRINT)
