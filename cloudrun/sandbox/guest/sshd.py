"""The unit's SSH server: one login user, public keys only, commands, shells, sftp and scp as OpenSSH does them.

Pumps are explicit: with asyncssh's `process.redirect` Ansible's pipelining (a module on standard input) hangs. As with
OpenSSH, a channel ends when the command has ended *and* whoever inherited its output has closed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from cloudrun.sandbox.guest import disk

if TYPE_CHECKING:
    import asyncssh

_HOST_KEYS = "/etc/ssh/ssh_host_*_key"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK_BYTES = 1 << 18
_WINDOW_BYTES = 1 << 21
_KEEPALIVE_S = 30
_ACCEPTED_ENVIRONMENT = ("LANG", "LC_")  # AcceptEnv of Ubuntu's sshd_config


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """What a login and a service of the unit start with."""
    user = config["user"]
    found = {"PATH": PATH, "HOME": home(config), "USER": user, "LOGNAME": user, "SHELL": disk.shell()}
    found["LANG"] = "C.UTF-8"
    if config["metadata_url"]:
        found["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = config["metadata_url"]
    found |= config["environment"]
    return found


def home(config: Mapping[str, Any]) -> str:
    return f"{config['prefix']}/home/{config['user']}"


def serve(config: Mapping[str, Any], gate: int) -> int:
    """Load everything, wait for a byte on `gate`, and serve until SIGTERM. Returns an exit code."""
    load()
    if not os.read(gate, 1):
        return 1
    os.close(gate)
    os.chdir(home(config))
    asyncio.run(_serve(config))
    return 0


def load() -> None:
    """Import what a server needs, which takes some tenths of a second."""
    # asyncssh asks for a library of post-quantum algorithms at import, for which ctypes starts ldconfig and gcc
    import ctypes.util

    ctypes.util.find_library = lambda _name: None  # type: ignore[assignment]
    import asyncssh  # noqa: F401


async def _serve(config: Mapping[str, Any]) -> None:
    import asyncssh

    class Server(asyncssh.SSHServer):
        def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
            self._connection = connection

        def begin_auth(self, username: str) -> bool:
            if username == config["user"]:
                with contextlib.suppress(OSError, ValueError):
                    keys = asyncssh.read_authorized_keys(f"{home(config)}/.ssh/authorized_keys")
                    self._connection.set_authorized_keys(keys)
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def connection_requested(self, *_ends: object) -> bool:
            return True  # ssh -L: to whatever the unit itself can reach

    class Files(asyncssh.SFTPServer):
        def exit(self) -> None:
            self.channel.exit(0)  # OpenSSH's scp takes a channel without an exit status for a failure

    async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _run(process, config)

    acceptor = await asyncssh.listen(
        config["address"],
        config["ssh_port"],
        server_factory=Server,
        server_host_keys=_host_keys(config),
        process_factory=handle,
        sftp_factory=Files,
        allow_scp=False,  # `scp -O` runs the machine's own scp, as with OpenSSH
        encoding=None,
        line_editor=False,
        window=_WINDOW_BYTES,
        compression_algs=None,
        gss_host=None,
        x11_forwarding=False,
        agent_forwarding=False,
        keepalive_interval=_KEEPALIVE_S,
        rekey_bytes=1 << 40,
        reuse_address=True,
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: acceptor.update(server_host_keys=_host_keys(config)))
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    print(f"sshd listens on {config['address']} port {config['ssh_port']}", flush=True)
    await stopping.wait()
    acceptor.close()


def _host_keys(config: Mapping[str, Any]) -> list[asyncssh.SSHKey]:
    """The keys in place; a machine without any makes its own."""
    import asyncssh

    pattern = config["prefix"] + _HOST_KEYS
    if not glob.glob(pattern):
        path = pattern.replace("*", "ed25519")
        key = asyncssh.generate_private_key("ssh-ed25519")
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
            stream.write(key.export_private_key())
        key.write_public_key(path + ".pub")
    keys = []
    for path in sorted(glob.glob(pattern)):
        try:
            keys.append(asyncssh.read_private_key(path))
        except (OSError, ValueError, asyncssh.KeyImportError) as error:
            print(f"sshd: {path} is not a host key: {error}", flush=True)
    return keys


# -- one session -----------------------------------------------------------------------------------------------------


async def _run(process: asyncssh.SSHServerProcess[bytes], config: Mapping[str, Any]) -> None:
    import asyncssh

    environ = environment(config) | _from_client(process)
    local, peer = process.get_extra_info("sockname"), process.get_extra_info("peername")
    environ["SSH_CONNECTION"] = f"{peer[0]} {peer[1]} {local[0]} {local[1]}"
    environ["SSH_CLIENT"] = f"{peer[0]} {peer[1]} {local[1]}"
    shell = environ["SHELL"]
    arguments = [f"-{os.path.basename(shell)}"] if process.command is None else [shell, "-c", process.command]
    if process.subsystem:
        process.stderr.write(f"subsystem {process.subsystem}: not emulated in the sandbox\n".encode())
        process.exit(1)
        return
    try:
        if process.term_type is None:
            await _run_piped(process, shell, arguments, environ)
        else:
            await _run_on_terminal(process, shell, arguments, environ | {"TERM": process.term_type})
    except OSError as error:
        process.stderr.write(f"{error}\n".encode())
        process.exit(254)
    except asyncssh.Error:
        pass  # the connection is gone


def _from_client(process: asyncssh.SSHServerProcess[bytes]) -> dict[str, str]:
    return {name: value for name, value in process.env.items() if name.startswith(_ACCEPTED_ENVIRONMENT)}


async def _run_piped(
    process: asyncssh.SSHServerProcess[bytes], shell: str, arguments: list[str], environ: dict[str, str]
) -> None:
    pipe = subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *arguments, executable=shell, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    feeding = asyncio.create_task(_feed(process, cast("asyncio.StreamWriter", child.stdin), child))
    emptying = [
        asyncio.create_task(_empty(cast("asyncio.StreamReader", child.stdout), process.stdout)),
        asyncio.create_task(_empty(cast("asyncio.StreamReader", child.stderr), process.stderr)),
    ]
    await _until_over(process, child, feeding, emptying)


async def _run_on_terminal(
    process: asyncssh.SSHServerProcess[bytes], shell: str, arguments: list[str], environ: dict[str, str]
) -> None:
    controller, terminal = pty.openpty()
    _resize(controller, process.term_size)
    environ["SSH_TTY"] = os.ttyname(terminal)
    child = await asyncio.create_subprocess_exec(
        *arguments,
        executable=shell,
        env=environ,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    reading, _ = await loop.connect_read_pipe(
        lambda: _TerminalProtocol(reader), os.fdopen(os.dup(controller), "rb", buffering=0)
    )
    flow, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop), os.fdopen(controller, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(flow, protocol, None, loop)
    feeding = asyncio.create_task(_feed(process, writer, child, controller))
    emptying = [asyncio.create_task(_empty(reader, process.stdout))]
    try:
        await _until_over(process, child, feeding, emptying)
    finally:
        reading.close()  # both ends closed: the kernel hangs up on whatever still runs on this terminal
        flow.abort()


class _TerminalProtocol(asyncio.StreamReaderProtocol):
    """A terminal whose last process has ended reads as an error. To a StreamReader an error comes before what it still
    holds, so a quick command's output would be lost: here it is the end of the file."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        super().connection_lost(None)


async def _until_over(
    process: asyncssh.SSHServerProcess[bytes],
    child: asyncio.subprocess.Process,
    feeding: asyncio.Task[None],
    emptying: list[asyncio.Task[None]],
) -> None:
    """Until the command has ended and its output is out, or the client has gone: then its group is hung up on."""

    async def complete() -> None:
        await child.wait()
        for stream in emptying:
            await stream

    gone = asyncio.create_task(process.wait_closed())
    over = asyncio.create_task(complete())
    try:
        await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
        if over.done() and not over.cancelled() and over.exception() is None:
            _report(process, child.returncode or 0)
    finally:
        for task in (gone, over, feeding, *emptying):
            task.cancel()
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGHUP)


def _report(process: asyncssh.SSHServerProcess[bytes], returncode: int) -> None:
    if returncode >= 0:
        process.exit(returncode)
    else:
        process.exit_with_signal(signal.Signals(-returncode).name.removeprefix("SIG"))


async def _feed(
    process: asyncssh.SSHServerProcess[bytes],
    writer: asyncio.StreamWriter,
    child: asyncio.subprocess.Process,
    terminal: int | None = None,
) -> None:
    """Client to command: bytes, end of input, signals, window changes."""
    import asyncssh

    while True:
        try:
            data = await process.stdin.read(_BLOCK_BYTES)
        except asyncssh.TerminalSizeChanged as change:
            if terminal is not None:
                _resize(terminal, (change.width, change.height, change.pixwidth, change.pixheight))
            continue
        except asyncssh.SignalReceived as received:
            with contextlib.suppress(AttributeError, ProcessLookupError):
                os.killpg(child.pid, getattr(signal, f"SIG{received.signal}"))
            continue
        except asyncssh.BreakReceived:
            continue
        except asyncssh.Error:
            return  # the connection is gone; `_until_over` sees to the command
        if not data:
            if terminal is None:
                writer.close()
            return
        try:
            writer.write(data)
            await writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            writer.close()  # the command reads no more; go on taking what is sent


async def _empty(reader: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes]) -> None:
    """Command to client, as fast as the client takes it."""
    while True:
        data = await reader.read(_BLOCK_BYTES)
        if not data:
            return
        writer.write(data)
        await writer.drain()


def _resize(terminal: int, size: tuple[int, int, int, int]) -> None:
    width, height, pixel_width, pixel_height = size
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixel_width, pixel_height))
