"""`cloudrun sandbox`: the region on localhost, started by hand, looked at, ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cloudrun.cli.parser import Json, new_app
from cloudrun.cli.printing import print_json, print_table, printable
from cloudrun.core.errors import SandboxError, UsageError
from cloudrun.plan.quantities import counted, duration_s

app = new_app(
    "sandbox",
    """The region on localhost: EC2's API on this computer, and a real SSH host for every instance.

It starts by itself when a command needs it and stops by itself when idle.

Type, for example:
    cloudrun sandbox status
    cloudrun sandbox stop""",
)


@app.command
def start(
    *,
    machines: Annotated[
        Literal["nspawn"] | None,
        Parameter(help="Boot a real Debian for each instance: Linux and root only. Example: --machines nspawn"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the sandbox where none runs; say how to reach it.

    Type, for example:
        cloudrun sandbox start
        sudo cloudrun sandbox start --machines nspawn
    """
    from cloudrun.sandbox import client

    client.ensure(machines, lambda words: print(words, file=sys.stderr))
    _print_status(client.status(), as_json=as_json)


@app.command
def stop(
    *,
    force: Annotated[
        bool, Parameter(help="Also where machines are alive, with all that is on them. Example: --force")
    ] = False,
    as_json: Json = False,
) -> None:
    """End the sandbox. Machines that are alive go only with --force: outputs that
    are not home go with them.

    Type, for example:
        cloudrun sandbox stop
        cloudrun sandbox stop --force
    """
    from cloudrun.sandbox import client

    listed = [] if force else client.status()["instances"]  # a daemon that does not answer can be ended, too
    alive = [each["instance_id"] for each in listed if each["state"] != "terminated"]
    if alive:
        some = ", ".join(alive[:5]) + (", ..." if len(alive) > 5 else "")
        raise SandboxError(
            f"{counted(len(alive), 'machine is', 'machines are')} alive in it: {some}",
            next_step="cloudrun units shows this project's; cloudrun sandbox stop --force ends all",
        )
    stopped = client.stop()
    if as_json:
        print_json({"running": False, "stopped": stopped})
    else:
        print("the sandbox has ended" if stopped else "no sandbox runs", file=sys.stderr)


@app.command
def status(
    *,
    env: Annotated[
        bool, Parameter(help='Only the lines that a shell needs. Example: eval "$(cloudrun sandbox status --env)"')
    ] = False,
    as_json: Json = False,
) -> None:
    """Whether the sandbox runs, its machines, and what a client such as the AWS CLI
    must present.

    Type, for example:
        cloudrun sandbox status
        cloudrun sandbox status --json | jq .endpoint_url
    """
    from cloudrun.sandbox import client

    document = client.status()
    if env and not document["running"]:
        raise SandboxError("no sandbox runs", next_step="cloudrun sandbox start")
    if env:
        print("\n".join(_exports(document)))
    else:
        _print_status(document, as_json=as_json)


@app.command
def interrupt(
    instance: Annotated[str, Parameter(help="The instance's id. Example: i-ea582b8c281d6ec43")],
    *,
    in_: Annotated[
        str,
        Parameter(
            name="--in", allow_leading_hyphen=True, help="How long after the notice it is taken back. Example: --in 30s"
        ),
    ] = "2m",
    rebalance: Annotated[
        bool, Parameter(help="Only recommend to move away, as EC2 may do before a notice. Example: --rebalance")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a spot machine back, as EC2 does when it needs the capacity: a notice
    first, the end when its time comes.

    The machine finds the notice in its metadata. Only machines launched with
    --spot are taken back.

    Type, for example:
        cloudrun sandbox interrupt i-ea582b8c281d6ec43
        cloudrun sandbox interrupt i-ea582b8c281d6ec43 --in 30s
        cloudrun sandbox interrupt i-ea582b8c281d6ec43 --rebalance
    """
    from cloudrun.sandbox import client

    try:
        seconds = duration_s(in_)
    except ValueError as error:
        raise UsageError(f"--in: {error}", next_step="write --in 2m") from None
    said = client.interrupt(instance, seconds, rebalance=rebalance)
    if as_json:
        print_json(said)
    elif rebalance:
        print(f"{instance} has been told at {said['noticeTime']} that it may be taken back soon", file=sys.stderr)
    else:
        print(f"{instance} has been told that it ends at {said['time']}", file=sys.stderr)


@app.command
def shortage(
    instance_type: Annotated[
        str | None, Parameter(help="The type that is short; without one it is a quota. Example: m7i.large")
    ] = None,
    *,
    most: Annotated[
        int | None, Parameter(help="How many there are; left out, as many as before. Example: --most 0")
    ] = None,
    zone: Annotated[str | None, Parameter(help="Where; everywhere by default. Example: --zone us-east-1a")] = None,
    as_json: Json = False,
) -> None:
    """Let EC2 have only so many machines of a type, as it may happen: launches
    beyond that are refused.

    Without a type it is the account's quota: so many machines at once, whatever
    they are.

    Type, for example:
        cloudrun sandbox shortage m7i.large --most 0 --zone us-east-1a
        cloudrun sandbox shortage m7i.large
        cloudrun sandbox shortage --most 2
    """
    from cloudrun.sandbox import client

    if most is not None and most < 0:
        raise UsageError(f"--most {most} is less than none", next_step="write --most 0")
    client.ensure(say=lambda words: print(words, file=sys.stderr))
    said = client.shortage(instance_type or "", zone or "", most)
    if as_json:
        print_json(said)
        return
    print(f"at most {said['instances']} instances at once", file=sys.stderr)
    for each in said["capacity"]:
        print(f"at most {each['most']} x {each['instance_type']} in {each['zone']}", file=sys.stderr)


def _print_status(document: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    if not document["running"]:
        print("no sandbox runs; it starts by itself when a command needs it\n  next: cloudrun submit train.py")
        return
    print(f"endpoint  {document['endpoint_url']}")
    print(f"region    {document['region']}")
    print(f"pid       {document['pid']}")
    print(f"units     {document['driver']}")
    for sentence in document["weaker"]:
        print(f"weaker    {printable(sentence)}")
    instances = document["instances"]
    if instances:
        print()
        print_table(
            ["instance", "state", "ssh"],
            [[each["instance_id"], each["state"], _address(each)] for each in instances],
        )
    print("\nfor the AWS CLI and other clients, in a shell:")
    for line in _exports(document):
        print(f"  {line}")
    print("\nnot emulated:")
    for sentence in document["not_emulated"]:
        print(f"  {printable(sentence)}")


def _exports(document: Mapping[str, Any]) -> list[str]:
    return [f"export {name}={shlex.quote(str(value))}" for name, value in document["env"].items()]


def _address(instance: Mapping[str, Any]) -> str:
    """What OpenSSH takes; the key is the one that the instance was launched with."""
    if not instance["ssh_host"]:
        return "-"
    return f"ssh -p {instance['ssh_port']} {instance['ssh_user']}@{instance['ssh_host']}"
