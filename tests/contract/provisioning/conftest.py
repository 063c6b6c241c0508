"""An SSH host with a home of its own, and tiny wheels in a folder that uv and pip take for their only index."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from uv import find_uv_bin

from cloudrun.core.records import SshTarget
from tests.leftovers import end_all_in

WheelMaker = Callable[..., None]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMaker:
    """Makes a wheel: `wheels("name", "1.0", needs=["other>=2"])`, with one module of that name in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    configuration = folder / "uv.toml"
    configuration.write_text(f"no-index = true\nfind-links = [{str(folder)!r}]\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))

    def make(
        name: str,
        version: str,
        *,
        needs: tuple[str, ...] = (),
        python: str = ">=3.9",
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
        files = {
            f"{name}.py": f"version = {version!r}\n",
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {requirement}\n" for requirement in needs),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            **{f"{name}-{version}.data/scripts/{script}": text for script, text in (scripts or {}).items()},
        }
        record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
                entry = zipfile.ZipInfo(path)
                entry.external_attr = 0o100755 << 16  # installers keep what may be executed
                archive.writestr(entry, text)

    make("joblib", "1.4.0")
    return make


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class Host:
    target: SshTarget
    home: Path
    tools: Path  # first on its PATH; `uv` is in it


@pytest.fixture
def host(tmp_path: Path, wheels: WheelMaker) -> Iterator[Host]:
    """A running SSH host whose uv knows the wheels, with this Python as its `python3`."""
    keys = tmp_path / "some keys"  # a space, since a user's folder may have one
    home, tools = tmp_path / "home", tmp_path / "tools"
    for folder in (keys, home, tools):
        folder.mkdir()
    for name in ("login", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (tools / "uv").symlink_to(find_uv_bin())
    path = f"{tools}:{sys.base_prefix}/bin:/usr/bin:/bin"
    kept = {name: os.environ[name] for name in ("UV_CONFIG_FILE", "UV_CACHE_DIR")}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ssh_host.py")), str(home), f"{keys}/login.pub", f"{keys}/host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**kept, **pip, "PATH": path, "HOME": str(home), "USER": "ubuntu", "UV_PYTHON_DOWNLOADS": "never"},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            target = SshTarget("127.0.0.1", port, "ubuntu", keys / "login", (keys / "host.pub").read_text())
            yield Host(target, home, tools)
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                end_all_in(home)
