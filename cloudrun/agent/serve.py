"""The agent's end of a channel: reads a request, answers it, reads the next, until the client hangs up.

    verb         with                           then                            reply
    environment  fingerprint                                                    ready
    ship         run_dir, entries               DATA... FILE_END per file ->    files
    start        run_dir, spec                                                  status
    status       run_dir                                                        status, null where never started
    follow       run_dir, offsets               <- STDOUT, STDERR, ALIVE...     status
    cancel       run_dir, grace_s               <- ALIVE...                     status
    outputs      run_dir                        <- DATA... (outputs.json)
    fetch        run_dir, area, entries         <- DATA... FILE_END per file    files

`area` is "work" or "logs". A run directory is named relative to the home, as `core.rundir` does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO, Callable

from cloudrun.agent import logs, supervisor, transfer
from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import RunDir

Reply = dict[str, Any]


class Call:
    """A request, and the streams on which some verbs go on talking before they reply."""

    def __init__(self, arguments: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.arguments = arguments
        self.stdin = stdin
        self.stdout = stdout

    def run(self) -> RunDir:
        name = self.arguments["run_dir"]
        if not rundir.safe_relative(name):
            raise AgentError("usage", f"{name!r} is not the name of a run directory")
        return RunDir(Path.cwd() / name)


def main() -> None:
    """Serve standard input and output. The working directory is the login user's home."""
    os.umask(0o077)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    hello = {"protocol": wire.PROTOCOL, "python": sys.version.split()[0], "pid": os.getpid()}
    stdout.write(wire.pack_json(wire.HELLO, hello))
    stdout.flush()
    try:
        while _answer_one(stdin, stdout):
            pass
    except (BrokenPipeError, wire.WireError):
        pass  # the client went away, which is its right


def _answer_one(stdin: BinaryIO, stdout: BinaryIO) -> bool:
    """Answer the next request. False where there is none, or where it failed: a failure ends the channel."""
    frame = wire.read_frame(stdin)
    if frame is None:
        return False
    kind, payload = frame
    try:
        if kind != wire.REQUEST:
            raise AgentError("internal", f"expected a request, not {kind!r}")
        arguments = json.loads(payload)
        reply = VERBS[arguments.pop("verb")](Call(arguments, stdin, stdout))
        stdout.write(wire.pack_json(wire.REPLY, reply))
        failed = False
    except (BrokenPipeError, wire.WireError):
        raise
    except AgentError as error:
        stdout.write(wire.pack_json(wire.FAILURE, {"kind": error.kind, "message": str(error)}))
        failed = True
    except Exception:  # noqa: BLE001  # whatever it is, the client must hear it: nobody reads the agent's stderr
        stdout.write(wire.pack_json(wire.FAILURE, {"kind": "internal", "message": traceback.format_exc()}))
        failed = True
    stdout.flush()
    return not failed


def _environment(call: Call) -> Reply:
    return {"ready": os.path.exists(rundir.env_ready(call.arguments["fingerprint"]))}


def _ship(call: Call) -> Reply:
    return transfer.receive(call.run(), call.arguments["entries"], call.stdin)


def _start(call: Call) -> Reply:
    run = call.run()
    supervisor.start(run, call.arguments["spec"])
    return {"status": supervisor.status(run)}


def _status(call: Call) -> Reply:
    return {"status": supervisor.status(call.run())}


def _follow(call: Call) -> Reply:
    return logs.follow(call.run(), call.arguments["offsets"], call.stdin, call.stdout)


def _cancel(call: Call) -> Reply:
    run = call.run()
    supervisor.cancel(run, call.arguments["grace_s"])
    return logs.wait(run, call.stdin, call.stdout)


def _outputs(call: Call) -> Reply:
    text = json.dumps(supervisor.outputs(call.run()), separators=(",", ":")).encode("ascii")
    starts = range(0, len(text), wire.CHUNK)  # 100,000 names do not fit into one reply
    call.stdout.writelines(wire.pack(wire.DATA, text[start : start + wire.CHUNK]) for start in starts)
    return {}


def _fetch(call: Call) -> Reply:
    run = call.run()
    folder = run.root if call.arguments["area"] == "logs" else run.work
    return transfer.send(str(folder), call.arguments["entries"], call.stdout)


VERBS: dict[str, Callable[[Call], Reply]] = {
    "environment": _environment,
    "ship": _ship,
    "start": _start,
    "status": _status,
    "follow": _follow,
    "cancel": _cancel,
    "outputs": _outputs,
    "fetch": _fetch,
}
