"""System packages and a playbook of the user's own, on a real SSH host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloudrun.core.errors import ProvisionError, UsageError
from cloudrun.core.records import Environment, System
from cloudrun.core.rundir import env_dir, env_ready
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.provisioning.environment import client_python
from cloudrun.provisioning.playbook import provision
from cloudrun.provisioning.system import system_for

from .conftest import Host

TIMEOUT_S = 240
OWN = """
- name: Mine
  hosts: all
  gather_facts: false
  roles: [marker]
"""


def write_own(folder: Path, task: str) -> str:
    role = folder / "roles" / "marker" / "tasks"
    role.mkdir(parents=True, exist_ok=True)
    (role / "main.yml").write_text(task)
    (folder / "own.yml").write_text(OWN)
    return str(folder / "own.yml")


def wanted(system: System) -> Environment:
    python, requirements = client_python(), ("joblib==1.4.0",)
    fingerprint = environment_fingerprint(python, "x86_64", requirements, system)
    return Environment(python, "x86_64", requirements, "a test", fingerprint, system)


def test_what_a_unit_has_beside_python_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    own = write_own(tmp_path, "- ansible.builtin.raw: 'true'\n")
    cache = tmp_path / "cache"
    plain = System()
    packages = system_for(("libgomp1", "ffmpeg", "libgomp1"), None, cache_dir=cache)
    assert packages.apt == ("ffmpeg", "libgomp1")
    first = system_for((), own, cache_dir=cache)
    write_own(tmp_path, "- ansible.builtin.raw: 'false'\n")
    other = system_for((), own, cache_dir=cache)
    assert len({wanted(system).fingerprint for system in (plain, packages, first, other)}) == 4
    assert wanted(plain).fingerprint == environment_fingerprint(client_python(), "x86_64", ("joblib==1.4.0",))


def test_a_playbook_that_cannot_be_used_is_refused_before_anything_is_launched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no playbook"):
        system_for((), str(tmp_path / "absent.yml"), cache_dir=tmp_path / "cache")
    (tmp_path / "broken.yml").write_text("- hosts: unit\n  tasks:\n    - no_such_module_at_all:\n")
    with pytest.raises(ProvisionError, match="no_such_module_at_all"):
        system_for((), str(tmp_path / "broken.yml"), cache_dir=tmp_path / "cache")


def test_the_users_playbook_runs_after_ours_and_the_unit_is_ready_only_then(host: Host, tmp_path: Path) -> None:
    own = write_own(
        tmp_path, "- ansible.builtin.raw: test -e {{ environment_dir }}/bin/python && test -e let_me && touch mine\n"
    )
    environment = wanted(system_for((), own, cache_dir=tmp_path / "cache"))
    private = tmp_path / "private"
    with pytest.raises(ProvisionError):
        provision(host.target, environment, private_dir=private, timeout_s=TIMEOUT_S)
    ready = host.home / env_ready(environment.fingerprint)
    assert (host.home / env_dir(environment.fingerprint) / "bin" / "python").exists()
    assert not ready.exists(), "what the user's playbook was to do has not been done"

    (host.home / "let_me").touch()
    provision(host.target, environment, private_dir=private, timeout_s=TIMEOUT_S)
    assert (host.home / "mine").exists()
    assert environment.system.playbook_digest in ready.read_text()


def test_packages_that_are_there_are_not_installed_again_and_others_need_root(host: Host, tmp_path: Path) -> None:
    (host.tools / "dpkg-query").write_text('#!/bin/sh\n[ "$4" = there ] && printf installed\n')
    (host.tools / "dpkg-query").chmod(0o755)
    lines: list[str] = []
    there = wanted(System(("there",)))
    provision(host.target, there, private_dir=tmp_path / "private", timeout_s=TIMEOUT_S, on_line=lines.append)
    assert (host.home / env_ready(there.fingerprint)).exists()
    (host.tools / "sudo").write_text("#!/bin/sh\necho 'no root here' >&2; exit 1\n")
    (host.tools / "sudo").chmod(0o755)
    missing = replace(there, system=System(("absent",)), fingerprint="0" * 32)
    with pytest.raises(ProvisionError, match=r"No apt is here to install them with: absent|Install system packages"):
        provision(host.target, missing, private_dir=tmp_path / "private", timeout_s=TIMEOUT_S)
