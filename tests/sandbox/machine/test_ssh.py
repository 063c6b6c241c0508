"""A unit's SSH server, used by OpenSSH's clients and by paramiko, under both drivers."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess

import paramiko
import pytest


def test_a_login_finds_the_user_at_home(unit):
    home = unit.out("pwd")
    assert home.endswith("/home/ubuntu")
    assert unit.out("echo $HOME $USER") == f"{home} ubuntu"


def test_exit_codes_and_both_streams_arrive(unit):
    done = unit.ssh("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_a_command_that_a_signal_ends_says_so(unit):
    client = paramiko_client(unit)
    channel = client.get_transport().open_session()
    channel.exec_command("kill -9 $$")
    assert channel.recv_exit_status() == -1
    client.close()
    assert unit.ssh("kill -9 $$").returncode == 255


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_bytes_pass_unchanged_in_both_directions(unit, size):
    data = os.urandom(size)
    assert unit.ssh("cat", stdin=data).stdout == data
    assert unit.ssh("sha256sum", stdin=data).stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_input_that_a_command_does_not_read_harms_nothing(unit):
    done = unit.ssh("exec 0<&-; sleep 0.2; echo done", stdin=os.urandom(1_000_000))
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_shell_reads_its_commands_from_the_channel(unit):
    assert b"sum 5" in unit.ssh(None, "-T", stdin=b"echo sum $((2+3))\nexit\n").stdout


def test_a_terminal_is_given_when_asked_for(unit):
    done = unit.ssh("tty; test -t 0 && echo yes; exit 3", "-tt")
    assert done.returncode == 3
    assert b"/dev/" in done.stdout
    assert b"yes" in done.stdout
    assert b"not a tty" in unit.ssh("tty").stdout


def test_a_quick_commands_output_on_a_terminal_is_never_lost(unit):
    client = paramiko_client(unit)
    try:
        for _ in range(30):
            _, out, _ = client.exec_command("echo quick", get_pty=True)
            assert out.read() == b"quick\r\n"
    finally:
        client.close()


def test_a_terminal_has_the_size_of_the_clients(unit):
    client = paramiko_client(unit)
    channel = client.get_transport().open_session()
    channel.get_pty(term="xterm", width=123, height=45)
    channel.settimeout(90)
    channel.exec_command("stty size; until stty size | grep '33 77'; do sleep 0.05; done")
    told = b""
    while b"\n" not in told:
        told += channel.recv(100)
    assert told.split() == [b"45", b"123"]
    channel.resize_pty(width=77, height=33)
    while chunk := channel.recv(100):
        told += chunk
    assert b"33 77" in told
    client.close()


def test_only_language_settings_are_taken_from_the_client(unit):
    assert unit.out("echo $LANG") == "C.UTF-8"
    done = subprocess.run(
        ["ssh", *unit.options(), "-o", "SendEnv=LC_ALL EVIL", unit.login, "echo $LC_ALL,$EVIL"],
        env={**os.environ, "LC_ALL": "C", "EVIL": "1"},
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"C,\n"


def test_nobody_else_gets_in(unit, tmp_path):
    assert unit.ssh("true", login=f"root@{unit.spec.address}").returncode == 255
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    options = [str(tmp_path / "other") if word == str(unit.folder / "id") else word for word in unit.options()]
    refused = subprocess.run(["ssh", *options, unit.login, "true"], capture_output=True, check=False)
    assert refused.returncode == 255
    assert b"Permission denied (publickey)" in refused.stderr


def test_files_travel_by_sftp_and_scp(unit, tmp_path):
    data = os.urandom(500_000)
    (tmp_path / "a").write_bytes(data)
    batch = f"put {tmp_path}/a b\nmkdir d\nrename b d/c\nls -l d\nget d/c {tmp_path}/back\n"
    flags = unit.options(port_flag="-P")
    done = subprocess.run(
        ["sftp", "-b", "-", *flags, unit.login], input=batch.encode(), capture_output=True, check=True
    )
    assert b"500000" in done.stdout
    assert (tmp_path / "back").read_bytes() == data
    for legacy in ([], ["-O"]):
        name = f"copy{len(legacy)}"
        subprocess.run(["scp", "-q", *legacy, *flags, str(tmp_path / "a"), f"{unit.login}:{name}"], check=True)
        assert unit.out(f"sha256sum < {name}").split()[0] == hashlib.sha256(data).hexdigest()
        subprocess.run(["scp", "-q", *legacy, *flags, f"{unit.login}:{name}", str(tmp_path / name)], check=True)
        assert (tmp_path / name).read_bytes() == data


def test_paramiko_runs_many_commands_on_one_connection(unit):
    client = paramiko_client(unit)
    for number in range(5):
        _, stdout, _ = client.exec_command(f"echo {number}")
        assert stdout.read() == f"{number}\n".encode()
    with client.open_sftp() as sftp, sftp.open("by-paramiko", "wb") as stream:
        stream.write(b"x" * 100_000)
    assert unit.out("wc -c < by-paramiko") == "100000"
    client.close()


def test_a_port_of_the_unit_can_be_forwarded(unit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = paramiko_client(unit)
        channel = client.get_transport().open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 1))
        accepted, _ = server.accept()
        accepted.sendall(b"hello")
        assert channel.recv(5) == b"hello"
        accepted.close()
        client.close()


def test_a_lost_connection_ends_the_command_but_not_what_left_its_session(unit, eventually):
    client = paramiko_client(unit)
    client.exec_command("setsid sh -c 'echo $$ > free; sleep 60' >/dev/null 2>&1 & echo $$ > bound; exec sleep 60")
    eventually(lambda: len(unit.ssh("cat free bound").stdout.split()) == 2)
    free, bound = unit.out("cat free"), unit.out("cat bound")
    client.close()
    eventually(lambda: unit.ssh(f"kill -0 {bound}").returncode != 0)
    assert unit.ssh(f"kill -0 {free}").returncode == 0
    unit.ssh(f"kill {free}")


def test_a_signal_from_the_client_reaches_the_command(unit):
    client = paramiko_client(unit)
    channel = client.get_transport().open_session()
    channel.exec_command("trap 'echo got it; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    assert channel.recv(10) == b"ready\n"
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)
    message.add_string("TERM")
    channel.transport._send_user_message(message)
    assert channel.recv_exit_status() == 4
    client.close()


def paramiko_client(unit) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    kind, encoded = unit.host_key.split()[:2]
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"[{unit.spec.address}]:{unit.spec.ssh_port} {kind} {encoded}")
    client.get_host_keys().add(entry.hostnames[0], kind, entry.key)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    client.connect(
        unit.spec.address,
        unit.spec.ssh_port,
        unit.spec.user,
        key_filename=str(unit.folder / "id"),
        look_for_keys=False,
        allow_agent=False,
        timeout=60,
        banner_timeout=60,
        auth_timeout=60,
    )
    return client
