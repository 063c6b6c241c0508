"""What a unit gets beside its Python environment: system packages, and what a playbook of the user's own does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from cloudrun.core.errors import UsageError
from cloudrun.core.records import System
from cloudrun.provisioning.ansible import check_playbook

# where Ansible looks beside a playbook, as "Sample directory layout" of its guide has it
_BESIDE = ("roles", "tasks", "files", "templates", "vars", "handlers", "group_vars", "host_vars", "library")


def system_for(apt: tuple[str, ...], playbook: str | None, *, cache_dir: Path) -> System:
    """`playbook` is looked at by Ansible here, once for each content. Raises UsageError where there is no such file,
    ProvisionError with Ansible's words where it cannot be read."""
    packages = tuple(sorted(set(apt)))
    if playbook is None:
        return System(packages)
    path = Path(playbook)
    if not path.is_file():
        raise UsageError(f"there is no playbook {path}", next_step="correct `playbook`, or leave it out")
    digest = _digest(path)
    good = cache_dir / "playbooks" / digest
    if not good.exists():
        check_playbook(path)
        good.parent.mkdir(parents=True, exist_ok=True)
        good.touch()
    return System(packages, str(path.resolve()), digest)


def _digest(playbook: Path) -> str:
    """Over the playbook and the folders beside it that Ansible looks into; other files that it names do not count."""
    digest = hashlib.sha256()
    for path in (playbook, *_files_beside(playbook.parent)):
        name = path.relative_to(playbook.parent).as_posix()
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _files_beside(folder: Path) -> Iterator[Path]:
    for name in _BESIDE:
        yield from sorted(path for path in (folder / name).rglob("*") if path.is_file())
