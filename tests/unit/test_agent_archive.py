"""The agent as it travels: the same bytes every time, and nothing in it that a plain Python 3.9 does not know."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cloudrun.ssh.archive import archive

MEMBERS = zipfile.ZipFile(io.BytesIO(archive().data))
SOURCES = [name for name in MEMBERS.namelist() if MEMBERS.read(name)]


def test_it_is_the_same_in_another_process() -> None:
    code = "from cloudrun.ssh.archive import archive; print(archive().digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == archive().digest


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_is_python_3_9(name: str) -> None:
    ast.parse(MEMBERS.read(name), feature_version=(3, 9))


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_imports_only_the_standard_library_and_the_archive(name: str) -> None:
    inside = {member.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for member in MEMBERS.namelist()}
    for node in ast.walk(ast.parse(MEMBERS.read(name))):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        else:
            continue
        for module in imported:
            assert module in inside or module.partition(".")[0] in sys.stdlib_module_names, f"{name} imports {module}"


def test_it_starts_without_site_packages_and_says_hello(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(archive().data)
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    assert done.stdout.startswith(b"H")
    assert done.stderr == b""


def test_rubbish_on_its_input_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(archive().data)
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(path)]
    done = subprocess.run(command, input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
