"""What a unit cannot do to the computer it runs on, tried from inside."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NOBODY = 65534
LIBRARIES = os.pathsep.join([str(FOLDER.parents[2]), *(path for path in sys.path if "-packages" in path)])


def test_the_hosts_files_are_read_only(container):
    for command in (
        "touch /usr/x",
        "echo x >> /usr/bin/env",
        f"touch {sys.prefix}/x",
        "mkdir /sys/kernel/x",
        "echo x > /etc/ssl/x",
        "mount -o remount,rw /usr",
        "mount -o remount,bind,rw /usr",
        "unshare -Urm sh -c 'mount -o remount,bind,rw /usr && touch /usr/x'",
        "unshare -Urm sh -c 'umount /usr/local/bin && touch /usr/local/bin/x'",
        "unshare -Urm sh -c 'umount -l /usr'",
        "echo o > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/vm/drop_caches",
        "sysctl -w kernel.hostname=x.y kernel.panic=1",
        "mknod /tmp/disk b 8 0",
        "ls /dev/mem /dev/kmsg /dev/vda /dev/sda",
        "cat /proc/kcore",
        "chroot /proc/1/root/.. ls /work",
        "losetup -f",
    ):
        done = container.ssh(f"sudo sh -c {_quoted(command)}")
        assert done.returncode != 0, (command, done.stdout)


_IN_ANOTHER_NAMESPACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x20000) == 0, "no namespace: this would prove nothing"
assert "0000000000000000" not in open("/proc/self/status").read().split("CapEff:")[1].split()[0]
clear = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
for place in PLACES:
    libc.mount(b"none", place.encode(), None, ctypes.c_ulong(32 | 4096), None)
    libc.syscall(442, -100, place.encode(), 0x8000, ctypes.byref(clear), ctypes.sizeof(clear))
    libc.umount2(place.encode(), 2)
libc.mount(b"/", b"/mnt", None, ctypes.c_ulong(4096 | 16384), None)
for place in [*PLACES, *("/mnt" + place for place in PLACES)]:
    try:
        open(place + "/cloudrun-test", "w")
    except OSError as error:
        assert error.errno == 30, error
    else:
        print("written below", place)
"""


def test_a_namespace_inside_the_unit_gives_no_right_to_write(container):
    """util-linux's `unshare` maps users, which is refused; the system call alone gives every capability over a copy."""
    places = ["/usr", "/usr/bin", "/usr/lib", sys.prefix, sys.base_prefix]
    code = f"PLACES = {places!r}\n{_IN_ANOTHER_NAMESPACE}"
    done = container.ssh("python3 -", stdin=code.encode())
    assert (done.returncode, done.stdout) == (0, b""), (done.stdout, done.stderr)


def test_a_unit_goes_first_when_memory_runs_out(container):
    assert int(container.out("cat /proc/self/oom_score_adj")) == 500


def test_what_a_unit_writes_stays_in_its_own_folder(container, tmp_path):
    mark = f"mark-{time.monotonic_ns()}"
    for place in ("/etc", "/tmp", "/var/tmp", "/opt", "/root", "/home/ubuntu", "/run", "/usr/local/bin", "/srv"):
        container.out(f"sudo sh -c 'echo x > {place}/{mark}'")
        with contextlib.suppress(PermissionError, FileNotFoundError):
            assert mark not in [path.name for path in Path(place).iterdir()]
    before = Path("/etc/hosts").read_bytes()
    container.out("echo 1.2.3.4 evil | sudo tee -a /etc/hosts /etc/passwd")
    assert Path("/etc/hosts").read_bytes() == before
    assert b"evil" not in Path("/etc/passwd").read_bytes()


def test_the_hosts_private_places_do_not_appear(container, tmp_path):
    (tmp_path / "secret").write_text("x")
    hidden = [tmp_path, Path.home() / ".ssh", Path.home() / ".bash_history", Path("/run/docker.sock"), Path("/boot")]
    checkout = FOLDER.parents[2] / "pyproject.toml"
    for path in (*hidden, checkout, Path("/etc/shadow"), Path("/var/lib/dpkg"), container.directory):
        assert container.ssh(f"ls -d {path}").returncode != 0, path
    environment = container.out("cat /proc/1/environ | tr '\\0' '\\n'; env")
    assert "SSL_CERT_FILE" not in environment
    assert "AWS_ACCESS" not in environment


def test_only_the_units_own_processes_are_there(new_unit):
    container = new_unit().start()
    pids = [int(word) for word in container.out("ls /proc").split() if word.isdigit()]
    assert max(pids) < 5000
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        assert container.ssh(f"kill -9 {bystander.pid}").returncode != 0
        assert container.ssh(f"sudo sh -c 'kill -9 {os.getpid()} {os.getppid()}'").returncode != 0
        container.ssh("kill -9 -1")
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_capabilities_over_mounts_and_the_kernel_are_gone_for_good(container):
    status = container.out("sudo cat /proc/self/status")
    bounding = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")), 16)
    for capability in (
        12,
        16,
        17,
        19,
        21,
        23,
        25,
        27,
        39,
    ):  # net, module, rawio, ptrace, sys_admin, nice, time, mknod, bpf
        assert not bounding >> capability & 1
    assert "NoNewPrivs:\t1" in status


def test_nothing_of_a_unit_is_root_on_this_computer(container, processes, eventually):
    mark = f"100.{time.monotonic_ns()}"
    container.out(f"sudo sh -c 'setsid sleep {mark} >/dev/null 2>&1 </dev/null &'")
    (sleeper,) = eventually(lambda: len(found := processes(f"sleep\0{mark}")) == 1 and found)
    uids = _ids(sleeper, "Uid")
    assert len(set(uids)) == 1
    assert uids[0] == (container.spec.uid or os.geteuid())
    assert set(_ids(container.running.pid, "Uid")) == set(uids), "its keeper runs with the same rights"
    if os.geteuid() == 0:
        assert _ids(sleeper, "Gid") == uids
        assert "Groups:\t \n" in Path(f"/proc/{sleeper}/status").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be refused")
def test_a_unit_of_roots_without_a_user_of_its_own_is_refused(new_unit):
    unit = new_unit(uid=None)
    with pytest.raises(AssertionError, match="gave no other user"):
        unit.start()
    assert unit.running.wait(0.0) == "died"


def test_temporary_folders_are_everybodys_and_sticky(container):
    assert container.out("stat -c %a /tmp /var/tmp /run").split() == ["1777", "1777", "755"]


def test_two_units_do_not_see_each_other(container, new_unit, processes):
    other = new_unit().start()
    mark = f"100.{time.monotonic_ns()}"
    container.out(f"setsid sleep {mark} >/dev/null 2>&1 </dev/null &")
    assert mark not in other.out("ps axww -o args | grep -v grep || true")
    assert other.ssh(f"ls {container.directory}").returncode != 0
    other.ssh("kill -9 -1")
    assert processes(f"sleep\0{mark}")


def test_a_disk_full_of_traps_leads_nowhere_at_the_next_boot(new_unit, tmp_path):
    """A unit that was stopped has had its disk to itself: no link on it is followed while the next boot prepares it."""
    victim = tmp_path / "victim"
    (victim / "tmp").mkdir(parents=True)
    (victim / "tmp" / "file").write_text("kept")
    victim.chmod(0o777)
    (victim / "tmp").chmod(0o777)
    for folder in ("var", "tmp", "run", "usr-local-bin", "home", "dev", "root"):
        unit = new_unit().start()
        unit.running.kill()
        trapped = unit.directory / "root" / folder
        trapped.rename(unit.directory / "root" / "elsewhere")
        trapped.symlink_to(victim)
        with contextlib.suppress(AssertionError):  # most such machines are too broken to boot, and say so
            unit.start()
            unit.ssh("echo x > /usr/local/bin/x; echo x > /tmp/x; echo x > /run/x; echo x > /opt/x")
        unit.running.kill()
        assert sorted(str(path.relative_to(victim)) for path in victim.rglob("*")) == ["tmp", "tmp/file"], folder
        unit.end()
    assert (victim / "tmp" / "file").read_text() == "kept"


def test_a_socket_of_the_host_cannot_be_reached_by_a_file(container):
    assert container.out("find /run /tmp /var /home /dev /opt /srv -xdev -type s 2>/dev/null || true") in (
        "",
        "/run/cloudrun/init.sock",
    )
    assert container.ssh("ls /run/user /run/dbus /run/systemd/private").returncode != 0


@pytest.mark.skipif(tuple(map(int, platform.release().split(".")[:2])) < (6, 12), reason="Landlock scopes: Linux 6.12")
def test_an_abstract_socket_of_the_host_cannot_be_reached(container):
    with socket.socket(socket.AF_UNIX) as server:
        name = f"cloudrun-test-{os.getpid()}-{time.monotonic_ns()}"
        server.bind(f"\0{name}")
        server.listen()
        code = f'import socket; socket.socket(socket.AF_UNIX).connect(chr(0) + "{name}")'
        assert b"PermissionError" in container.ssh(f"python3 -c '{code}'").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="is an ordinary user already")
@pytest.mark.slow
def test_all_of_this_holds_for_an_ordinary_user_too():
    """The same tests again as nobody, with a Python that nobody may execute."""
    python = _python_for_everybody()
    if python is None:
        pytest.skip("no other Python of this version that every user may run")
    folder = Path(tempfile.mkdtemp(prefix="cloudrun-nobody-"))  # pytest's own are closed to other users
    folder.chmod(0o777)
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "--basetemp", str(folder / "t"), str(FOLDER)]
    chosen = "safety or kill or outlive or order or plain"
    done = subprocess.run(
        [python, "-m", "pytest", *options, "-k", chosen],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": LIBRARIES},
        cwd=folder,
        capture_output=True,
        timeout=300,
        text=True,
        check=False,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def _python_for_everybody() -> str | None:
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            probe = subprocess.run(
                [candidate, "-c", "import asyncssh, pytest, cloudrun"],
                env={"PYTHONPATH": LIBRARIES},
                capture_output=True,
                check=False,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
            )
            if probe.returncode == 0:
                return candidate
    return None


def _ids(pid: int, kind: str) -> list[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return [int(word) for word in line.split()[1:]]
    raise AssertionError(kind)


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"
