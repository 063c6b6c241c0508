"""The command line in a folder of its own, with nothing of the user's around it: as a process, or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloudrun.cli.main import main

WAIT_S = 120


@dataclass
class Cli:
    """Called with words; `environ` may be changed before."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name != "CLOUDRUN_DEBUG"}
        self.environ = {
            **kept,
            "TMPDIR": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "home"),
            **self.environ,
        }

    def __call__(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cloudrun", *words],
            cwd=self.folder,
            env=self.environ,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )


class CliHere(Cli):
    """The same in this process, for commands that wait for nothing and to which a process of their own adds nothing but
    half a second of imports."""

    def __call__(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        assert stdin is None
        return call_here(self.folder, self.environ, words)


def call_here(folder: Path, environ: Mapping[str, str], words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """What `python -m cloudrun WORDS...` does."""
    told = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with (
        _as_it_was(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(told[0]),
        contextlib.redirect_stderr(told[1]),
    ):
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["cloudrun", *words]
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    out, err = (bytes(stream.buffer.getvalue()).decode() for stream in told)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(sys.argv, code, out, err)


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """What a command changes of its process is put back."""
    environ, argv = dict(os.environ), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
