"""A kept unit whose machine is the private OpenSSH server: everything but the machine is the real thing.

It is launched in the sandbox as any unit is; then its row in the ledger is led to the server.
"""

from __future__ import annotations

import contextlib
import platform
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uv

from cloudrun import Ledger, process_unit
from cloudrun.core import rundir
from cloudrun.ledger.home import DATABASE
from cloudrun.process import Unit
from cloudrun.provisioning.environment import environment_for
from tests.bench.server import Line, Server, run

NOOP = "noop.py"


@dataclass(frozen=True)
class Kept:
    project: Path
    instance_id: str

    def lead_to(self, line: Line) -> None:
        Ledger(self.project).update_unit(
            self.instance_id, address=line.host, ssh_port=line.port, host_key=line.server.host_key
        )

    @contextlib.contextmanager
    def joined(self) -> Iterator[Unit]:
        with process_unit(
            project=self.project, instance_id=self.instance_id, on_exit="keep", observe=lambda _: None
        ) as unit:
            yield unit


def kept_unit(folder: Path, server: Server) -> Kept:
    """Needs a sandbox of the bench's own, in which it leaves the instance: who ends the sandbox ends it."""
    project = folder / "project"
    project.mkdir()
    (project / "cloudrun.toml").touch()
    (project / NOOP).touch()
    (server.home / NOOP).touch()
    with process_unit(project=project, on_exit="keep", deadline="12h", observe=lambda _: None) as unit:
        instance_id = unit.instance_id
    ledger = Ledger(project)
    launch_id = ledger.unit(instance_id).launch_id
    server.authorize(run(["ssh-keygen", "-y", "-f", str(ledger.key_path(launch_id))]))
    with contextlib.closing(sqlite3.connect(ledger.home / DATABASE)) as database, database:
        changed = database.execute("UPDATE units SET user = ? WHERE instance_id = ?", (server.user, instance_id))
        assert changed.rowcount == 1
    _provision(server, ledger)
    return Kept(project, instance_id)


def _provision(server: Server, ledger: Ledger) -> None:
    """What the playbook does, with this computer's own settings of uv: Ansible is not what is measured here."""
    project = ledger.project
    architecture = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    environment = environment_for(project / NOOP, project, architecture=architecture, cache_dir=ledger.home / "cache")
    place = server.home / rundir.env_dir(environment.fingerprint)
    place.parent.mkdir(parents=True)
    tool = uv.find_uv_bin()
    run([tool, "venv", "--quiet", "--no-project", "--relocatable", "--python", environment.python, str(place)])
    python = place / "bin" / "python"
    run(
        [tool, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "--requirements", "-"],
        text="\n".join(environment.requirements),
    )
    (server.home / rundir.env_ready(environment.fingerprint)).write_text("{}")
    subprocess.run([str(python), "-c", "import joblib"], check=True)
