"""One paramiko connection to one unit: opened against a pinned host key, and lost loudly rather than silently."""

from __future__ import annotations

import base64
import logging
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paramiko
import tenacity

from cloudrun.core.errors import Cancelled, CloudrunError, ConnectionLost, HostKeyMismatch, UsageError
from cloudrun.core.records import CommandResult, SshTarget
from cloudrun.ssh.jump import Tunnel
from cloudrun.ssh.pipe import ChunkPipe
from cloudrun.ssh.stream import SILENCE_S, TICK_S, Stream
from cloudrun.ssh.transport import Transport

CONNECT_S = 3.0  # one try to connect: short, because packets to a machine that is booting are dropped, not refused
LOGIN_S = 15.0  # one try to agree on keys, and to log in
KEEPALIVE_S = 10  # between keepalives; with DEAD_AFTER_S it bounds how long a dead peer goes unnoticed
DEAD_AFTER_S = 30
AFTER_EXIT_S = 1.0  # how long a finished command's output may still trickle in: its daemons may hold the pipe for ever
# Measured against OpenSSH on loopback, 256 MB with digests and fsync, on two cores that others used: either AES-GCM
# took 0.5-0.6 s of this process's CPU to send, 0.9 s to receive (scp: 0.8 and 1.0 s), and 1 GB on one connection four
# times that; aes128-ctr with its separate MAC took half as much again to send. paramiko has no chacha20-poly1305.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
KEY_TYPE = "ssh-ed25519"
# 2 MB was slower; 4 and 8 MB were alike on loopback, and 32 MB gained nothing (with paramiko's own buffer it was 3 to 8
# times slower). A window is also what one round trip can bring: at 40 ms 8 MB are 200 MB/s.
WINDOW_BYTES = 8 * 1024 * 1024
REKEY_BYTES = 1 << 35  # OpenSSH's own limit for these ciphers is 64 GB; paramiko's 512 MB ends long transfers
logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it logs every try on a booting machine as an error
OnOutput = Callable[[bytes], None]


class Session:
    """An authenticated connection. Safe to use from several threads; every command gets a channel of its own."""

    def __init__(self, client: paramiko.SSHClient, target: SshTarget, tunnel: Tunnel | None = None) -> None:
        self._client = client
        self._tunnel = tunnel
        self.target = target

    @classmethod
    def open(cls, target: SshTarget, *, timeout_s: float, cancelled: threading.Event | None = None) -> Self:
        """Wait until the unit answers and lets us in; both may take a while on a machine that is booting.

        Raises HostKeyMismatch at once where another key than the pinned one answers, JumpRefused where the host in
        between lets nobody through, ConnectionLost when `timeout_s` is
        over, Cancelled when the event is set, UsageError for a key that cannot be read.
        """
        key, host_key = _login_key(target.key_path), _public_key(target.host_key)
        stop = cancelled or threading.Event()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((OSError, EOFError, paramiko.SSHException)),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(timeout_s) | tenacity.stop_when_event_set(stop),
            sleep=tenacity.sleep_using_event(stop),
        )
        try:
            client, tunnel = retrying(_connect, target, key, host_key, time.monotonic() + timeout_s)
            return cls(client, target, tunnel)
        except tenacity.RetryError as error:
            if stop.is_set():
                raise Cancelled("cancelled while connecting to the unit") from None
            cause = error.last_attempt.exception()
            raise ConnectionLost(
                f"no login on {target.host}:{target.port} within {timeout_s:.0f} s: {cause}",
                next_step="cloudrun units --json  # is it running, and does its security group admit this address?",
            ) from cause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def close(self) -> None:
        self._client.close()
        if self._tunnel is not None:
            self._tunnel.close()

    def stream(self, command: str) -> Stream:
        """Start a command and return its standard streams. Raises ConnectionLost."""
        return Stream(self._exec(command, ChunkPipe()))

    def run(
        self,
        command: str,
        *,
        timeout_s: float,
        stdin: bytes = b"",
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
    ) -> CommandResult:
        """Run a command in the login user's shell and wait for it. Output that is not UTF-8 gets replacement marks.

        The exit code of a command that was killed by a signal is -1. Raises ConnectionLost where the peer is gone, and
        CloudrunError where the command takes longer than `timeout_s`; the command itself may go on then.
        """
        channel = self._exec(command)
        try:
            feeder = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
            feeder.start()
            stdout, stderr = _collect(channel, command, timeout_s, on_stdout, on_stderr)
            exit_code = channel.recv_exit_status()
            if exit_code == -1 and not self.is_alive:  # paramiko says -1 for "by a signal" and for "nobody knows"
                raise ConnectionLost(f"the connection to the unit broke while it ran `{command[:80]}`")
            return CommandResult(
                exit_code=exit_code,
                stdout=stdout.decode("utf-8", "replace"),
                stderr=stderr.decode("utf-8", "replace"),
            )
        finally:
            channel.close()

    def put(self, local: Path, remote: str) -> None:
        """Copy one file or folder up. Relative remote paths start at the login user's home.

        Raises UsageError where `local` does not exist, TransferError where a file does not arrive whole.
        """
        from cloudrun.ssh.copying import put

        put(self._client, local, remote)

    def get(self, remote: str, local: Path) -> None:
        """Copy one file or folder down, each file whole or not at all. Raises as `put` does."""
        from cloudrun.ssh.copying import get

        get(self._client, remote, local)

    def _exec(self, command: str, buffer: ChunkPipe | None = None) -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise ConnectionLost("the connection to the unit is closed")
        try:
            channel = transport.open_session(timeout=SILENCE_S)
            channel.settimeout(SILENCE_S)
            if buffer is not None:
                channel.in_buffer = buffer
            channel.exec_command(command)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise ConnectionLost(f"the unit did not start a command: {error}") from error
        return channel


def _login_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.Ed25519Key.from_private_key_file(str(path))
    except (OSError, paramiko.SSHException) as error:
        raise UsageError(
            f"cannot read the private key {path}: {error}",
            next_step="without it nobody can log in any more; `cloudrun reap` ends the unit",
        ) from error


def _public_key(line: str) -> paramiko.PKey:
    try:
        kind, encoded = line.split()[:2]
        if kind != KEY_TYPE:
            raise ValueError(f"not an {KEY_TYPE} key")
        return paramiko.Ed25519Key(data=base64.b64decode(encoded, validate=True))
    except (ValueError, paramiko.SSHException) as error:
        raise UsageError(f"cannot read the host key {line!r}: {error}") from error


def _connect(
    target: SshTarget, key: paramiko.PKey, host_key: paramiko.PKey, give_up: float
) -> tuple[paramiko.SSHClient, Tunnel | None]:
    """One try, with what leads there where that is not a connection of our own. Lets OSError, EOFError and SSHException
    out, which mean "not yet"; HostKeyMismatch and JumpRefused mean "never"."""
    if not target.jump:
        return _log_in(target, key, host_key, give_up), None
    with ExitStack() as undo:
        tunnel = Tunnel(target)
        undo.callback(tunnel.close)
        try:
            client = _log_in(target, key, host_key, give_up, tunnel.socket)
        except (OSError, EOFError, paramiko.SSHException) as error:
            if words := tunnel.why():
                raise paramiko.SSHException(f"the jump host {target.jump}: {words}") from error
            raise
        undo.pop_all()
        return client, tunnel


def _log_in(
    target: SshTarget, key: paramiko.PKey, host_key: paramiko.PKey, give_up: float, through: socket.socket | None = None
) -> paramiko.SSHClient:
    limit_s = max(0.1, min(LOGIN_S, give_up - time.monotonic()))
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
    client.get_host_keys().add(name, KEY_TYPE, host_key)
    connection = through or socket.create_connection((target.host, target.port), timeout=min(CONNECT_S, limit_s))
    try:
        if through is None:
            _notice_a_dead_peer(connection)
        client.connect(
            target.host,
            port=target.port,
            username=target.user,
            pkey=key,
            sock=connection,
            timeout=limit_s,
            banner_timeout=limit_s,
            auth_timeout=limit_s,
            channel_timeout=limit_s,
            allow_agent=False,
            look_for_keys=False,
            transport_factory=_transport,
        )
    except (paramiko.BadHostKeyException, paramiko.ssh_exception.IncompatiblePeer) as error:
        _close(client, connection)
        if isinstance(error, paramiko.BadHostKeyException) or "host key" in str(error):
            raise HostKeyMismatch(
                f"{target.host}:{target.port} answered with another host key than the one that was put there",
                next_step="do not trust this machine; `cloudrun reap` ends it if it is ours",
            ) from error
        raise
    except BaseException:
        _close(client, connection)
        raise
    transport = client.get_transport()
    assert transport is not None  # noqa: S101  # for the type checker: `connect` has just made it
    transport.set_keepalive(KEEPALIVE_S)
    return client


def _close(client: paramiko.SSHClient, connection: socket.socket) -> None:
    client.close()
    connection.close()  # the client knows it only once it has got as far as a transport


def _transport(connection: Any, **options: Any) -> paramiko.Transport:
    """A transport that offers only what we want: the pinned key's type, fast ciphers, a window that fits them."""
    transport = Transport(connection, default_window_size=WINDOW_BYTES, **options)
    choice = transport.get_security_options()
    choice.key_types = (KEY_TYPE,)
    choice.ciphers = CIPHERS
    transport.packetizer.REKEY_BYTES = REKEY_BYTES
    transport.packetizer.REKEY_PACKETS = REKEY_BYTES
    return transport


def _notice_a_dead_peer(connection: socket.socket) -> None:
    """Let the kernel end a connection whose other side has stopped answering, also while nobody writes to it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"  # macOS's name for it
    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, idle), KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (DEAD_AFTER_S - KEEPALIVE_S) // 5)
    if sys.platform == "linux":  # keepalives stop while written data waits for its acknowledgement; this does not
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    """Give a command its input; one that does not read it all is not our failure."""
    try:
        channel.sendall(stdin)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        pass


def _collect(
    channel: paramiko.Channel, command: str, timeout_s: float, on_stdout: OnOutput | None, on_stderr: OnOutput | None
) -> tuple[bytes, bytes]:
    """Both outputs of a command, until both have ended, or it has and its last words are over."""
    stdout, stderr = bytearray(), bytearray()
    sources = (
        (channel.recv_ready, channel.recv, stdout, on_stdout),
        (channel.recv_stderr_ready, channel.recv_stderr, stderr, on_stderr),
    )
    give_up = time.monotonic() + timeout_s
    # select() knows no descriptor above 1023, which a large pool reaches
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            ended = channel.eof_received or channel.closed  # asked first: what came before it is read below
            for ready, receive, buffer, tell in sources:
                while ready():
                    data = receive(65536)
                    buffer += data
                    if tell is not None:
                        tell(data)
            if ended and channel.exit_status_ready():
                return bytes(stdout), bytes(stderr)
            now = time.monotonic()
            if channel.exit_status_ready():
                give_up = min(give_up, now + AFTER_EXIT_S)
            if now >= give_up:
                if channel.exit_status_ready():
                    return bytes(stdout), bytes(stderr)
                raise CloudrunError(
                    f"`{command[:80]}` did not end on the unit within {timeout_s:.0f} s",
                    next_step="give it more time, or run it as a job with `cloudrun submit`",
                )
            selector.select(min(TICK_S, give_up - now))
