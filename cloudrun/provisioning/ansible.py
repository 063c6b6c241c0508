"""What Ansible needs to be started: its program, its surroundings, the way to the unit, a playbook it can read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from cloudrun.core.errors import ProvisionError, UsageError
from cloudrun.core.records import Environment, SshTarget
from cloudrun.core.rundir import INDEX_LOGINS, env_dir
from cloudrun.plan.jumping import jump_command
from cloudrun.provisioning.resources import inventory_dir, playbook_dir

_CHECK_TIMEOUT_S = 60.0
# Enough to start Python and ssh. Not PYTHONDONTWRITEBYTECODE: it has Ansible compiled at each start, which takes 0.5 s.
_KEPT_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV"),
    "SSH_AUTH_SOCK",  # for a jump host; the unit itself is told to ask no agent
)


def check_playbook(playbook: Path | None = None) -> None:
    """Refuse what Ansible cannot do, before anything is launched for it.

    `playbook` is one's own, which Ansible is asked to read (0.7 s); None is cloudrun's, which the tests have had read.
    Raises ProvisionError with Ansible's message or where Ansible is missing, UsageError where there is no such file or
    no ssh client.
    """
    require_ssh_client()
    program, book = ansible_playbook(), playbook_file(playbook)
    if playbook is None:
        return
    command = [program, "--syntax-check", "-i", str(inventory_dir()), str(book)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=ansible_environment(None),
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProvisionError(f"ansible-playbook could not check {book}: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        raise ProvisionError(f"Ansible cannot read the playbook {book}:\n{reason}", next_step=f"correct {book}")


def require_ssh_client() -> None:
    """Raises UsageError where there is no `ssh`, which Ansible needs."""
    if shutil.which("ssh") is None:
        raise UsageError("there is no ssh client here, and Ansible needs one", next_step="apt install openssh-client")


def write_inventory(target: SshTarget, environment: Environment, work: Path) -> Path:
    """What the unit is to have, and how to reach it: with its pinned key, without the user's ssh settings and agent."""
    known_hosts = work / "known_hosts"
    name = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
    key_type, key = target.host_key.split()[:2]
    known_hosts.write_text(f"{name} {key_type} {key}\n", encoding="ascii")
    options = {
        "UserKnownHostsFile": _ssh_quoted(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlgorithms": key_type,
        "UpdateHostKeys": "no",
        "IdentityFile": _ssh_quoted(target.key_path.resolve()),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
    }
    if target.jump:
        options["ProxyCommand"] = shlex.join(jump_command(target.jump))
    arguments = ["-F", "/dev/null"]
    for option, value in options.items():
        arguments += ["-o", f"{option}={value}"]
    record = {
        "python": environment.python,
        "architecture": environment.architecture,
        "requirements": list(environment.requirements),
        **({"apt": list(environment.system.apt)} if environment.system.apt else {}),
        **({"playbook": environment.system.playbook_digest} if environment.system.playbook else {}),
    }
    host = {
        "ansible_host": target.host,
        "ansible_port": target.port,
        "ansible_user": target.user,
        "ansible_ssh_common_args": shlex.join(arguments),
        "python": environment.python,
        "requirements": list(environment.requirements),
        "environment_dir": env_dir(environment.fingerprint),
        "index_logins": INDEX_LOGINS,
        "apt": list(environment.system.apt),
        "own_playbook_follows": bool(environment.system.playbook),
        "environment_record": json.dumps(record),
    }
    path = work / "hosts.json"
    path.write_text(json.dumps({"all": {"hosts": {"unit": _literal(host)}}}, indent=2), encoding="utf-8")
    return path


def _literal(value: Any) -> Any:
    """The same with all texts marked as no templates: Ansible would carry out a `{{ lookup(...) }}` in them, here.

    The mark is that of Ansible's JSON (`ansible-inventory --list` writes it so for what YAML calls `!unsafe`).
    """
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, dict):
        return {name: _literal(each) for name, each in value.items()}
    return [_literal(each) for each in value] if isinstance(value, list) else value


def _ssh_quoted(path: Path) -> str:
    """A path as ssh_config wants it: in quotes for spaces, % doubled."""
    return '"' + str(path).replace("%", "%%") + '"'


def ansible_environment(work: Path | None) -> dict[str, str]:
    """What Ansible may know of the caller's environment, and where it may write.

    Not the caller's ANSIBLE_* variables, and no keys: ansible-runner writes the whole of it to a file.
    """
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment["PATH"] = os.pathsep.join([*_script_folders(), os.environ.get("PATH", os.defpath)])
    environment["ANSIBLE_CONFIG"] = str(playbook_dir() / "ansible.cfg")
    environment["ANSIBLE_HOST_KEY_CHECKING"] = "True"  # ansible-runner says False where nobody says anything
    # Ansible refuses to start in another encoding, and its messages are read.
    environment["LC_ALL"] = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
    environment["OBJC_DISABLE_INITIALIZE_FORK_SAFETY"] = "YES"  # macOS ends forked Python workers otherwise
    if work is not None:
        environment["ANSIBLE_HOME"] = str(work / "home")
        # what a playbook of the user's own may need, and would be looked for below ANSIBLE_HOME
        collections = (Path.home() / ".ansible" / "collections", Path("/usr/share/ansible/collections"))
        environment["ANSIBLE_COLLECTIONS_PATH"] = os.pathsep.join(map(str, collections))
    return environment


def _script_folders() -> list[str]:
    """Where ansible-playbook may be: the environment that cloudrun runs in need not be activated."""
    user_scheme = sysconfig.get_preferred_scheme("user")
    folders = [
        sysconfig.get_path("scripts"),
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts", user_scheme),
    ]
    return list(dict.fromkeys(folders))


def ansible_playbook() -> str:
    """The program's path. Raises ProvisionError where this installation has none."""
    found = shutil.which("ansible-playbook", path=ansible_environment(None)["PATH"])
    if found is None:
        raise ProvisionError(
            "ansible-playbook is missing from this installation", next_step="pip install --force-reinstall ansible-core"
        )
    return found


def playbook_file(playbook: Path | None) -> Path:
    """The playbook as an absolute path; None is cloudrun's own. Raises UsageError where there is no such file."""
    path = playbook or playbook_dir() / "unit.yml"
    if not path.is_file():
        raise UsageError(f"there is no playbook {path}")
    return path.resolve()
