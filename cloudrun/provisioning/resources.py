"""Where the playbooks and the inventory are: at the top of a checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

from cloudrun.core.errors import ProvisionError

_PACKAGE = Path(__file__).resolve().parent.parent


def playbook_dir() -> Path:
    """The folder with `unit.yml`. Raises ProvisionError where the installation lacks it."""
    return _folder("playbooks", "unit.yml")


def inventory_dir() -> Path:
    """The folder with `unit.yml` and `group_vars`. Raises ProvisionError where the installation lacks it."""
    return _folder("inventory", "unit.yml")


def _folder(name: str, holds: str) -> Path:
    for folder in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if (folder / holds).is_file():
            return folder
    raise ProvisionError(
        f"this installation of cloudrun has no {name}/{holds}",
        next_step="install it again: pip install --force-reinstall cloudrun",
    )
