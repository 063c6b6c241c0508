"""The agent's end of a channel: reads a request, answers it, reads the next, until the client hangs up.

    verb         with                                  then                              reply
    environment  fingerprint                                                             ready
    orders       orders, coming (each may be null)                                       orders, news
    ship         run_dir, area, inline                 see below                         files, bytes, reused
    start        run_dir, spec                                                           status
    queue        run_dir, spec, number, tree                                             status
    status       run_dir                                                                 status, null if never started
    upload       run_dir, upload
    runs                                                                                 runs: [{run_dir, status, ...}]
    follow       run_dir, offsets, wait, bring         <- STDOUT STDERR ALIVE, outputs   status, brought
    cancel       run_dir, grace_s, reason              <- ALIVE...                       status
    outputs      run_dir                               <- DATA... (outputs.json)
    fetch        run_dir, area, entries                <- DATA... FILE_END per file      files
    home         run_dir
    data         key                                                                     ready
    fetch_data   key, files                            <- PROGRESS... ALIVE...
    seal         fingerprint                           <- ALIVE...                       digest, files, bytes
    share        fingerprint, key                      see below
    fetch_environment  fingerprint, digest, address,   <- ALIVE...                       files, bytes
                 port, user, host_key, key

orders: `coming` (environment, spec) says what jobs are about to be started, for a unit that makes ready for them.

A run directory is named relative to the home, as `core.rundir` does.

ship: the client sends the manifest, a list of [path, size, sha256, mode]. With `inline` the contents of all entries
follow at once (DATA... FILE_END for each). Otherwise the agent answers with the list NEED of [index, offset], and the
client sends those, from their offsets on. `area` is "project", "outputs" (an earlier attempt's files, which are to be
outputs again) or "data" (`run_dir` is then the key of a data set).

queue: as start, in its turn: the lowest number first, as many at a time as the orders have `slots`. `tree` (or null) is
the key of a project that was shipped to trees/, of which the run gets a copy then.

share: from the agent's PROGRESS to the client's FILE_END (ALIVE... meanwhile), whoever has the private half of `key`
may fetch the environment from here, as `fetch_environment` does on the unit that lacks it. `digest` is that of its
seal, which `seal` has told when it was built.

fetch: entries of {path, size, offset} in `area` "work" or "logs".

follow: without `wait` it sends what there is. With `bring` (bytes) and once the job has exited, outputs.json follows as
DATA... FILE_END, then outputs and logs as long as they fit into so many bytes (DATA... FILE_END for each); `brought`
names them in that order, as "work/..." and "logs/...".
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from typing import Any, BinaryIO, Callable

from cloudrun.agent import compiled, datasets, jobs, locks, logs, sharing, shipping, summon, transfer
from cloudrun.agent.call import IDLE_S, Call, Input
from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import LIST_MAX_BYTES, RunDir, read_object

Reply = dict[str, Any]


def main() -> None:
    """Serve standard input and output. The working directory is the login user's home."""
    os.umask(0o077)
    stdin, stdout = Input(sys.stdin.fileno()), sys.stdout.buffer
    hello = {
        "protocol": wire.PROTOCOL,
        "python": sys.version.split()[0],
        "pid": os.getpid(),
        "environments": rundir.environments_ready(),
    }
    stdout.write(wire.pack_json(wire.HELLO, hello))
    stdout.flush()
    try:
        while _answer_one(stdin, stdout):
            pass
    except (BrokenPipeError, ConnectionError, wire.WireError):
        pass  # the client went away, which is its right
    compiled.keep(summon.PLACE)
    os._exit(0)  # nothing is left to be flushed to a client that has gone


def _answer_one(stdin: Input, stdout: BinaryIO) -> bool:
    """Answer the next request. False where there is none, or where it failed: a failure ends the channel."""
    frame = stdin.frame(IDLE_S)
    if frame is None:
        return False
    kind, payload = frame
    if kind == wire.ALIVE:
        return True
    try:
        if kind != wire.REQUEST:
            raise AgentError("internal", f"expected a request, not {kind!r}")
        arguments = json.loads(payload)
        verb = arguments.pop("verb")
        if not _only_looks(verb, arguments):
            _be_a_client(rundir.CLIENTS_LOCK)
        reply = VERBS[verb](Call(arguments, stdin, stdout))
        stdout.write(wire.pack_json(wire.REPLY, reply))
        failed = False
    except (BrokenPipeError, ConnectionError, wire.WireError):
        raise
    except AgentError as error:
        stdout.write(wire.pack_json(wire.FAILURE, {"kind": error.kind, "message": str(error)}))
        failed = True
    except Exception:  # noqa: BLE001  # whatever it is, the client must hear it: nobody reads the agent's stderr
        stdout.write(wire.pack_json(wire.FAILURE, {"kind": "internal", "message": traceback.format_exc()}))
        failed = True
    stdout.flush()
    return not failed


def _only_looks(verb: str, arguments: dict[str, Any]) -> bool:
    """Whoever only looks keeps no machine awake: `watch cloudrun ps` would do so until the deadline."""
    if verb == "orders":
        return arguments.get("orders") is None
    return verb in ("environment", "data", "status", "runs") or (verb == "follow" and not arguments.get("wait", True))


_be_a_client = functools.lru_cache(None)(locks.hold_shared)  # from here on, as long as this process lives


def _environment(call: Call) -> Reply:
    return {"ready": os.path.exists(rundir.env_ready(call.arguments["fingerprint"]))}


def _ship(call: Call) -> Reply:
    return datasets.ship(call) if call.arguments.get("area") == "data" else shipping.ship(call)


def _start(call: Call) -> Reply:
    run, spec = call.run(), call.arguments["spec"]
    # not while another channel, of a client that has lost it, still ships this run
    with locks.folder_lock(str(run.root), call.alive):
        if spec.get("data") and not os.path.lexists(run.status):
            with shipping.explained():
                datasets.link(run, spec["data"])
        jobs.start(run, spec)
    return {"status": jobs.status(run)}


def _queue(call: Call) -> Reply:
    run, tree = call.run(), call.arguments["tree"]
    if tree is not None and not rundir.safe_relative(tree):
        raise AgentError("usage", f"{tree!r} is not the key of a project")
    with locks.folder_lock(str(run.root), call.alive):
        call.while_alive(lambda: _sync(tree or run.root.name))
        jobs.queue(run, call.arguments["spec"], int(call.arguments["number"]), tree)
    return {"status": jobs.recorded(run)}


@functools.lru_cache(None)
def _sync(_what: str) -> None:
    """What a run will begin with shall be on the disk before it is said to wait; once for what many share."""
    os.sync()


def _status(call: Call) -> Reply:
    return {"status": jobs.status(call.run())}


def _orders(call: Call) -> Reply:
    reply = jobs.orders(call.arguments.get("orders"))
    if coming := call.arguments.get("coming"):
        jobs.expect(coming["environment"], coming["spec"])
    return reply


def _upload(call: Call) -> Reply:
    jobs.renew_upload(call.run(), call.arguments["upload"])
    return {}


def _runs(_call: Call) -> Reply:
    return {"runs": jobs.listed()}


def _follow(call: Call) -> Reply:
    run, bring = call.run(), call.arguments.get("bring", 0)
    reply = logs.follow(run, call.arguments["offsets"], call.stdin, call.stdout, wait=call.arguments.get("wait", True))
    if bring and (reply["status"] or {}).get("state") == "exited":
        reply["brought"] = _bring(call, run, bring)
    return reply


def _bring(call: Call, run: RunDir, room: int) -> list[str]:
    """Send the manifest and what of it fits into `room` bytes; returns its names."""
    manifest = _manifest(call, run)
    _send_manifest(call, manifest)
    call.stdout.write(wire.pack_json(wire.FILE_END, {}))
    brought = []
    for area, folder, entries in (
        ("work", str(run.work), manifest["entries"]),
        ("logs", str(run.root), manifest["logs"]),
    ):
        for entry in entries:
            content = transfer.small_contents(folder, entry) if entry["size"] <= room else None
            if content is not None:
                room -= len(content)
                call.stdout.write(wire.pack(wire.DATA, content) if content else b"")
                call.stdout.write(wire.pack_json(wire.FILE_END, {}))
                brought.append(f"{area}/{entry['path']}")
    return brought


def _manifest(call: Call, run: RunDir) -> dict[str, Any]:
    """outputs.json; where it has to be made now, which takes a digest of all outputs, the client hears of us."""
    found: dict[str, Any] = read_object(run.outputs, LIST_MAX_BYTES) or call.while_alive(lambda: jobs.outputs(run))
    return found


def _send_manifest(call: Call, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, separators=(",", ":")).encode("ascii")
    starts = range(0, len(text), wire.CHUNK)  # 100,000 names do not fit into one reply
    call.stdout.writelines(wire.pack(wire.DATA, text[start : start + wire.CHUNK]) for start in starts)


def _cancel(call: Call) -> Reply:
    run = call.run()
    jobs.cancel(run, call.arguments["grace_s"], call.arguments.get("reason", "cancelled"))
    return logs.wait(run, call.stdin, call.stdout)


def _outputs(call: Call) -> Reply:
    _send_manifest(call, _manifest(call, call.run()))
    return {}


def _fetch(call: Call) -> Reply:
    run = call.run()
    folder = run.root if call.arguments["area"] == "logs" else run.work
    return transfer.send(str(folder), call.arguments["entries"], call.stdout)


def _home(call: Call) -> Reply:
    jobs.home(call.run())
    return {}


def _data(call: Call) -> Reply:
    return {"ready": datasets.is_ready(call.arguments["key"])}


VERBS: dict[str, Callable[[Call], Reply]] = {
    "environment": _environment,
    "orders": _orders,
    "ship": _ship,
    "start": _start,
    "queue": _queue,
    "status": _status,
    "upload": _upload,
    "runs": _runs,
    "follow": _follow,
    "cancel": _cancel,
    "outputs": _outputs,
    "fetch": _fetch,
    "home": _home,
    "data": _data,
    "fetch_data": datasets.fetch,
    "seal": sharing.seal,
    "share": sharing.share,
    "fetch_environment": sharing.fetch,
}
