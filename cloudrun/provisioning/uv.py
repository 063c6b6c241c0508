"""Resolving requirements to exact versions for a unit's platform: `uv pip compile` and `uv export`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cloudrun.core.errors import ProvisionError, UsageError
from cloudrun.provisioning.indexes import local_netrc, without_logins

_TIMEOUT_S = 600.0  # some packages are built only to learn what they need
_PLATFORMS = {"x86_64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}
_NO_VARIABLES: Mapping[str, str] = {}
_NETWORK_WORDS = ("failed to fetch", "error sending request", "dns error", "timed out", "connection refused")


def resolve(
    sources: Sequence[Path],
    extra: Iterable[str],
    *,
    python: str,
    architecture: str,
    root: Path,
    preferences: Iterable[str] = (),
    named: str,
    index_url: str | None = None,
) -> tuple[str, ...]:
    """Exact requirement lines for a unit, sorted, from requirement files or scripts and `extra` requirement lines.

    `preferences` are pins that are kept where the requirements allow them. `root` is where uv looks for its
    configuration, and what relative places are relative to. `index_url` is asked in place of the usual index. Raises
    UsageError with uv's own reason where `named` (for people) does not resolve, ProvisionError where an index could not
    be reached.
    """
    with tempfile.TemporaryDirectory(prefix="cloudrun-resolve-") as folder:
        output = Path(folder) / "requirements.txt"  # uv keeps to the versions that an existing output file names
        output.write_text("".join(f"{line}\n" for line in preferences), encoding="utf-8")
        command = [
            *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-python-downloads"),
            *("--python", sys.executable, "--python-version", python, "--python-platform", _PLATFORMS[architecture]),
            *(("--default-index", index_url) if index_url else ()),
            *("--output-file", str(output), *map(str, sources), "-"),
        ]
        with local_netrc(index_url) as variables:
            run_uv(command, root=root, stdin="".join(f"{line}\n" for line in extra), named=named, variables=variables)
        return exact_lines(output.read_text(encoding="utf-8"))


def exact_lines(text: str) -> tuple[str, ...]:
    """The requirement lines of uv's output, sorted. Raises UsageError where one lies on this computer and is no wheel,
    which could travel."""
    lines = sorted(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in lines:
        local = line.startswith(("-e ", "./", "../", "/")) or "file://" in line
        if local and not line.partition(" ;")[0].endswith(".whl"):
            raise UsageError(
                f"{line} lies on this computer, where a unit cannot fetch it",
                next_step="put its modules into the project, or name a released version or a wheel",
            )
    return tuple(lines)


def run_uv(
    arguments: Sequence[str], *, root: Path, stdin: str = "", named: str, variables: Mapping[str, str] = _NO_VARIABLES
) -> str:
    """Run uv and return what it prints. Raises UsageError with its own words, ProvisionError where none can run."""
    environment = {**os.environ, "NO_COLOR": "1", **variables}
    try:
        done = subprocess.run(
            [_uv_path(), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=root,
            env=environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise ProvisionError(
            f"uv could not be started: {error}", next_step="pip install --force-reinstall uv"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ProvisionError(f"uv has not resolved {named} within {_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    reason = without_logins(_plain(done.stderr)) or f"uv ended with {done.returncode}"
    if any(word in reason.lower() for word in _NETWORK_WORDS):
        raise ProvisionError(
            f"{named} could not be resolved: {reason}", next_step="check the network, then type the same command again"
        )
    raise UsageError(f"{named} does not resolve: {reason}", next_step=f"change the requirement in {named}")


def _uv_path() -> str:
    from uv import find_uv_bin

    return find_uv_bin()


def _plain(stderr: str) -> str:
    """uv's message on one line, without the frame it draws."""
    words = re.sub("[\u00d7\u2500-\u257f\u25b6]", " ", stderr).split()
    text = " ".join(words).removeprefix("error: ")
    return text.replace(" cause: ", ": ")
