"""Ansible as cloudrun uses it: pipelining, become, files, packages of the unit's own Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: whoami
      register: who
    - ansible.builtin.shell: id -u; echo $HOME
      become: true
      register: root
    - ansible.builtin.copy:
        dest: /etc/cloudrun-test
        content: "by ansible\\n"
        mode: "0640"
      become: true
    - ansible.builtin.copy:
        src: "{{ big }}"
        dest: big
    - ansible.builtin.script: "{{ script }} one"
      register: script_result
    - ansible.builtin.file:
        path: folder/below
        state: directory
    - ansible.builtin.debug:
        msg: "{{ [who.stdout, root.stdout_lines, script_result.stdout_lines] | to_json }}"
"""


def test_a_playbook_with_pipelining_and_become_works(new_unit, tmp_path):
    unit = new_unit().start()
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "big").write_bytes(os.urandom(2_000_000))
    script = tmp_path / "say.sh"
    script.write_text("#!/bin/sh\necho script $1\n")
    words = unit.options()
    variables = {
        "ansible_user": unit.spec.user,
        "ansible_host": unit.spec.address,
        "ansible_port": unit.spec.ssh_port,
        "ansible_python_interpreter": "/usr/local/bin/python3",
        "ansible_ssh_common_args": " ".join(word for word in words if "=" in word or word == "-o"),
        "ansible_ssh_private_key_file": str(unit.folder / "id"),
        "big": str(tmp_path / "big"),
        "script": str(script),
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "unit,", "-e", json.dumps(variables), "play.yml"],
        cwd=tmp_path,
        env=os.environ
        | {
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_REMOTE_TMP": "/tmp/.ansible",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ubuntu" in done.stdout
    assert "script one" in done.stdout
    assert unit.out("cat /etc/cloudrun-test; stat -c %s big; ls folder").split() == [
        "by",
        "ansible",
        "2000000",
        "below",
    ]
