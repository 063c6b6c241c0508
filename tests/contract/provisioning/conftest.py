"""Tiny wheels in a folder that uv takes for its only index: real resolutions and installations without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

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

    def make(name: str, version: str, *, needs: tuple[str, ...] = (), python: str = ">=3.9") -> None:
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
        files = {
            f"{name}.py": f"version = {version!r}\n",
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {requirement}\n" for requirement in needs),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
                archive.writestr(path, text)

    make("joblib", "1.4.0")
    return make


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
