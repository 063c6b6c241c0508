"""Runs one playbook through ansible-runner, in a process of its own: `python -m cloudrun.provisioning.driver`.

ansible-runner forks with a pseudo-terminal and may take over signal handlers, which a process with threads and
handlers of its own cannot have. So it gets this one. The job is one line of JSON on stdin; one JSON object a line comes
back on stdout: {"line": ...} for Ansible's output, {"failed": ...} for each failing task, {"status": ...} at the end.
The other side keeps stdin open and silent while it wants the result: a word there, or its end, ends Ansible.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

_POLL_S = 0.2  # how often ansible-runner asks whether to go on
_GRACE_S = 2.0  # between Ansible's SIGTERM and its SIGKILL


class Playbook:
    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._ansible_pid: int | None = None
        self._stopping_since: float | None = None

    def run(self) -> None:
        import ansible_runner

        result = ansible_runner.run(
            private_data_dir=self._job["private_data_dir"],
            playbook=self._job["playbook"],
            inventory=self._job["inventory"],
            cmdline=self._job["cmdline"] or None,
            ident=self._job["ident"],
            settings={"pexpect_timeout": _POLL_S},
            quiet=True,
            event_handler=self._event,
            cancel_callback=self._is_cancelled,  # also keeps ansible-runner off the signal handlers
        )
        _say({"status": result.status, "rc": result.rc})

    def _event(self, event: dict[str, Any]) -> bool:
        self._ansible_pid = event.get("pid", self._ansible_pid)
        for line in event.get("stdout", "").splitlines():
            _say({"line": line})
        if event["event"] in ("runner_on_failed", "runner_on_unreachable"):
            data = event["event_data"]
            if not data.get("ignore_errors"):
                _say({"failed": {"task": data.get("task", ""), "event": event["event"], "result": data.get("res", {})}})
        return False  # the log is enough; no file for each event

    def _is_cancelled(self) -> bool:
        """True makes ansible-runner kill Ansible's process group; its workers are in groups of their own.

        So Ansible is asked first: at SIGTERM it ends its workers, and their ssh with them.
        """
        if self._stopping_since is None:
            if not select.select([0], [], [], 0)[0]:  # neither a word nor the end
                return False
            self._stopping_since = time.monotonic()
            if self._ansible_pid is None:
                return True  # no task has begun, so there is no worker
            try:
                os.kill(self._ansible_pid, signal.SIGTERM)
            except ProcessLookupError:
                return True
        return time.monotonic() - self._stopping_since > _GRACE_S


def _say(document: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more; stdin says so too, and ends Ansible in order
        print(json.dumps(document), flush=True)


def main() -> None:
    line = bytearray()
    while not line.endswith(b"\n"):  # by single bytes, so that nothing is buffered that `select` would wait for
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no job on stdin")
        line += byte
    Playbook(json.loads(line)).run()


if __name__ == "__main__":
    main()
