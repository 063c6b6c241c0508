"""Everything that may be missing before the first run, by what it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from cloudrun import config, wiring
from cloudrun.core.errors import CloudrunError, ConfigError, CredentialsError
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.ledger.home import DATABASE, FOLDER, find_project
from cloudrun.setup import account, computer
from cloudrun.setup.checks import Check, from_error, side_by_side


def examine(start: Path, flags: Mapping[str, object]) -> dict[str, list[Check]]:
    """What was found, by group. Only what the chosen provider needs is looked at. Raises nothing that is about what is
    examined."""
    settings, check = settled(start, flags)
    project = find_project(None)
    groups = {"this computer": [check, *side_by_side(computer.looks(project))]}
    if settings.provider == "aws":
        machine = _one_of_ours(project, settings)
        groups["AWS"] = account.checks(settings, lambda: datetime.now(UTC), machine)
    else:
        groups["sandbox"] = side_by_side([("machines", _machines), ("sandbox", _sandbox)])
    return groups


def exit_code(groups: Mapping[str, Sequence[Check]]) -> int:
    """0 where all is well, 4 where credentials or a permission are among what is not, else 1."""
    problems = [check for checks in groups.values() for check in checks if check.verdict == "problem"]
    if any(check.is_refused for check in problems):
        return CredentialsError.exit_code
    return CloudrunError.exit_code if problems else 0


def settled(start: Path, flags: Mapping[str, object]) -> tuple[Settings, Check]:
    """What holds, and where it was read; a file in which nothing is set, as `init` writes it, is one too."""
    try:
        settings, origins = config.load_with_origins(start, flags)
        files = config.files(start)
    except ConfigError as error:
        return Settings(), from_error("settings", error)
    said = f"{len(origins)} set (cloudrun config show --origin)" if origins else "all at their defaults"
    return settings, Check(
        "settings", "ok", f"{said}; {' and '.join(map(str, files)) or 'no file yet (cloudrun init writes one)'}"
    )


def _machines() -> Check:
    driver, _ = wiring.sandbox_machines()
    if driver == "namespaces":
        return Check("machines", "ok", "user namespaces work: each machine is a container of its own")
    words = "no user namespaces: machines are plain processes, and jobs can read and write your files"
    return Check("machines", "warning", words, namespaces_step(Path("/proc/sys")))


def namespaces_step(sysctls: Path) -> str:
    """What lets this computer have them, by the switch that is off: Debian's, Ubuntu's, the kernel's own."""
    for name, off, on in (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "10000"),
    ):
        with suppress(OSError):
            if (sysctls / name.replace(".", "/")).read_text(encoding="ascii").strip() == off:
                return f"sudo sysctl -w {name}={on}"
    return "cloudrun sandbox status says what is weaker; run what you trust"


def _sandbox() -> Check:
    cloud = wiring.connect("sandbox")
    return Check("sandbox", "ok", f"it runs, as {cloud.place.region}")


def _one_of_ours(project: Path, settings: Settings) -> str | None:
    """A machine of this ledger that EC2 has, in the region that is looked at: permissions scoped by tag show on it."""
    if not (project / FOLDER / DATABASE).exists():
        return None
    with suppress(CloudrunError), closing(Ledger(project)) as ledger:
        for unit in ledger.units():
            in_region = settings.region in (None, unit.place.region)
            if unit.place.provider == "aws" and in_region and unit.state is UnitState.READY:
                return unit.instance_id
    return None
