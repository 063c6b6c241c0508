"""A grid whose environment is nowhere yet: Ansible builds it on one machine, and the others get it from there."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from cloudrun.core.states import RunState
from cloudrun.provisioning.environment import environment_for
from tests.sandbox.conftest import Aws, Project, Start, wait_for

Nothing = Callable[[Project], None]

# Versions that no other test asks for: no machine boots with them.
CELL = """
# /// script
# dependencies = {needs}
# ///
import json, os, time, joblib
n = json.loads(os.environ["CLOUDRUN_PARAMS"])["n"]
time.sleep(6 if n < 4 else 0.5)  # long enough for the other machines to come before all is done
assert "{words}" in open(os.environ["VIRTUAL_ENV"] + "/.ready").read()
print(json.dumps({{"accuracy": n}}))
"""


def command(cells: int) -> tuple[str, ...]:
    return ("submit", "cell.py", "--set", "n=" + ",".join(map(str, range(cells))), "--slots", "1", "--units", "4")


def unit_home(instance_id: str) -> Path:
    return Path(os.environ["CLOUDRUN_SANDBOX_DIR"], "units", instance_id, "root", "home", "ubuntu")


def built_by_ansible(project: Project) -> list[str]:
    """The runs before which a playbook ran."""
    runs = project.ledger.runs()
    return [run.run_id for run in runs if any(each.path == "provision.log" for each in run.artifacts)]


def test_ansible_runs_on_one_machine_of_four(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("cell.py", CELL.format(needs="['joblib==1.3.2']", words="joblib==1.3.2"))
    submitting = start("-m", "cloudrun", *command(12), "-v")
    ledger = project.ledger
    wait_for(lambda: sum(run.state is RunState.SUCCEEDED for run in ledger.runs()) >= 8, "eight cells", 120)
    keys = []
    for unit in ledger.units():
        with suppress(FileNotFoundError):  # one that has no more to do is gone soon
            keys.append((unit_home(unit.instance_id) / ".ssh" / "authorized_keys").read_text())
    assert keys
    assert all(text.count("ssh-ed25519") == 1 and "restrict" not in text for text in keys), "one key, the client's"
    _, said = submitting.communicate(timeout=200)
    assert submitting.returncode == 0, said
    assert "did not get the environment" not in said
    assert said.count("TASK [Build the environment]") == 1
    runs = ledger.runs()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert len({run.instance_id for run in runs}) == 4, "a machine had nothing to do: this would prove nothing of it"
    assert len(built_by_ansible(project)) == 1
    provisioned = [run for run in runs if run.timings.provision_s > 0]
    assert len(provisioned) == 4, "the others took their time over it too, and it is said of their first runs"
    nothing_left(project)


@dataclass
class Index:
    """A web server with one wheel. From `hang` on it answers nobody, until `answering` is set."""

    url: str
    asked: Event
    answering: Event

    def hang(self) -> None:
        self.asked.clear()
        self.answering.clear()


@pytest.fixture
def index() -> Iterator[Index]:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("slow.py", "")
        archive.writestr("slow-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
        archive.writestr("slow-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("slow-1.0.dist-info/RECORD", "slow.py,,\n")
    asked, answering = Event(), Event()
    answering.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            answering.wait(120)
            with suppress(OSError):  # whoever asked has died
                self.send_response(200)
                self.send_header("Content-Length", str(len(wheel.getvalue())))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(wheel.getvalue())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Index(f"http://127.0.0.1:{server.server_port}/slow-1.0-py3-none-any.whl", asked, answering)
        answering.set()
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_machine_that_dies_while_it_builds_is_followed_by_another(
    project: Project, start: Start, aws: Aws, index: Index, nothing_left: Nothing
) -> None:
    script = project.write("cell.py", CELL.format(needs=f"['joblib==1.3.1', 'slow @ {index.url}']", words="slow"))
    # what the client asks for it asks now: from here on only machines do
    environment_for(script, project.root, architecture="x86_64", cache_dir=project.ledger.home / "cache")
    index.hang()
    submitting = start("-m", "cloudrun", *command(8))
    assert index.asked.wait(60), "no machine builds"
    ledger = project.ledger
    (builder,) = (
        unit.instance_id
        for unit in ledger.units()
        if list(unit_home(unit.instance_id).glob(".cloudrun/envs/*.building.*"))
    )
    aws("ec2", "terminate-instances", "--instance-ids", builder)
    index.answering.set()
    _, said = submitting.communicate(timeout=200)
    assert submitting.returncode == 0, said
    runs = ledger.runs()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert {run.params["n"] for run in runs} == set(range(8))
    assert builder not in {run.instance_id for run in runs}
    assert len(built_by_ansible(project)) == 1
    nothing_left(project)
