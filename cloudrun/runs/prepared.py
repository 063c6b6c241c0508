"""A job whose every input is checked before anything is launched for it, and what a unit is told to do with it."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloudrun.core import rundir
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import ComingJobs, DataSet, Environment, RunRecord, System, Upload
from cloudrun.core.settings import LEAST_FREE_BYTES, NAMES, Settings
from cloudrun.ledger import Ledger
from cloudrun.plan.fingerprint import code_digest
from cloudrun.plan.imports import ImportScan, scan_imports
from cloudrun.plan.parameters import check_name
from cloudrun.plan.quantities import size_text
from cloudrun.runs.fetched import BESIDE_FILES, DIGITS, may_be_read, say_fetched
from cloudrun.runs.project import Shipment, shipment

# What BLAS, OpenMP and joblib ask for the number of threads, by the names that threadpoolctl and joblib document.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "LOKY_MAX_CPU_COUNT",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What the user wants run. `script` is a path on this computer."""

    script: Path
    arguments: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    cwd: Path | None = None  # where it starts; None is the caller's


@dataclass(frozen=True)
class Prepared:
    """A job whose every input was checked, before anything was launched for it."""

    job: Job
    shipment: Shipment
    environment: Environment
    settings: Settings
    code_digest: str
    search_path: tuple[str, ...] = ()  # folders below the root, beside the script's own, that its modules come from
    third_party: tuple[str, ...] = ()  # dotted names of what it imports
    data: tuple[DataSet, ...] = ()
    code: tuple[str, ...] = ()  # what `code_digest` digests: the script and the local modules it can import
    beside: str = ""  # what the ledger calls the state of the files that travel beside its code
    threads: int | None = None  # that a job is told to compute on; None leaves that to its libraries
    more: bool = False  # jobs like it follow it on its unit


def prepare(
    job: Job, settings: Settings, ledger: Ledger, architecture: str, observe: Observer, goods: Shipment | None = None
) -> Prepared:
    """Check the script, find its files (`goods`, where they were looked for already) and its environment.

    Raises UsageError for what cannot work on a unit.
    """
    from cloudrun.provisioning.environment import environment_for

    goods = goods or inspect(job, settings, ledger, observe)
    environment = environment_for(
        goods.root / goods.script,
        goods.root,
        architecture=architecture,
        cache_dir=ledger.home / "cache",
        system=system_of(settings, ledger),
        index_url=settings.index_url,
    )
    code_files, scan = local_code(goods.root, goods.script)
    third_party = tuple(module.name for module in scan.third_party)
    code = tuple(code_files)
    files = beside(goods, code)
    kept = ledger.keep_beside(files) if 0 < len(files) <= BESIDE_FILES else ""
    digest = code_digest(code_files)
    return Prepared(job, goods, environment, settings, digest, scan.search_path, third_party, code=code, beside=kept)


def beside(goods: Shipment, code: Collection[str]) -> dict[str, str]:
    """Digests by path of what is shipped and is no part of what a run is, though its script may read it."""
    return {
        each.path: each.sha256[:DIGITS] for each in goods.entries if each.path not in code and may_be_read(each.path)
    }


def system_of(settings: Settings, ledger: Ledger) -> System:
    """What units are to have beside Python. Raises UsageError, ProvisionError for a playbook that cannot be used."""
    if not (settings.apt or settings.playbook):
        return System()
    from cloudrun.provisioning.system import system_for

    return system_for(settings.apt, settings.playbook, cache_dir=ledger.home / "cache")


def submission(plan: Prepared) -> dict[str, Any]:
    """All that another process needs to go on with the run from another folder: see `submitted_settings`."""
    data = [each.source if each.remote else str((each.root or Path()) / each.single) for each in plan.data]
    return {"root": str(plan.shipment.root), "settings": {**asdict(plan.settings), "data": data}}


def submitted_settings(run: RunRecord) -> Settings | None:
    """The settings a run was submitted with; None for one of an older cloudrun."""
    settings = run.submission.get("settings", {})
    return settings_from(settings) if any(name in NAMES for name in settings) else None


def settings_from(kept: Mapping[str, Any]) -> Settings:
    """Settings that the ledger has kept."""
    known = {name: value for name, value in kept.items() if name in NAMES}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}  # JSON has no tuples
    return Settings(**{**known, **lists})


def local_code(root: Path, script: str) -> tuple[dict[str, bytes], ImportScan]:
    """The script and the local modules it can import, by path below the root, and what else they import. Not the whole
    tree: a note beside them changes nothing of what a run is. Raises UsageError for what is not Python."""

    def read(path: str) -> bytes | None:
        file = root / path
        return file.read_bytes() if file.is_file() else None

    scan = scan_imports(script, read)
    return {path: read(path) or b"" for path in scan.local_files}, scan


def inspect(job: Job, settings: Settings, ledger: Ledger, observe: Observer, root: Path | None = None) -> Shipment:
    """The part of `prepare` that needs nothing but the disk. `root`: the project's, where it is not the script's."""
    if job.name is not None and not job.name.strip():
        raise UsageError(f"{job.name!r} is no name", next_step="leave it out: the run is called as its script then")
    _checked_params(job.params)
    _checked_room(ledger)
    goods = shipment(
        job.script,
        warn_bytes=settings.ship_warn_bytes,
        refuse_bytes=settings.ship_refuse_bytes,
        caller_cwd=job.cwd,
        data=settings.data,
        root=root,
    )
    for path, why in goods.left_out:
        observe(Note(f"{path!r} is not shipped: {why}" if path else why, "warning"))
    _say_secrets(goods, observe)
    say_fetched(goods, ledger, observe)
    return goods


def _say_secrets(goods: Shipment, observe: Observer) -> None:
    from cloudrun.provisioning import locks
    from cloudrun.provisioning.indexes import has_secret

    file = locks.root_file(goods.root)
    shipped = {goods.root / each.path for each in goods.entries}
    for path, text in (locks.contents(file) if file else {}).items():
        if path in shipped and has_secret(text):
            words = "is shipped with the credentials in it, which stay on the machine: ${TOKEN} or ~/.netrc avoids that"
            observe(Note(f"{path.name} {words}", "warning"))


def _checked_params(params: Mapping[str, Any]) -> None:
    for name in params:
        check_name(name)
    try:
        json.dumps(dict(params))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the parameters are not JSON: {error}", next_step="use numbers, strings, lists and dicts"
        ) from error


def _checked_room(ledger: Ledger) -> None:
    ledger.check_writable()  # makes it, or says why it cannot be made
    free = shutil.disk_usage(ledger.project).free
    if free < LEAST_FREE_BYTES:
        needed = size_text(LEAST_FREE_BYTES)
        raise UsageError(
            f"only {size_text(free)} are free under {ledger.project}, and results need some {needed}",
            next_step="free some space, then submit again",
        )


def command_line(plan: Prepared) -> list[str]:
    """What the unit runs: the environment's Python, the script, `--name value` for each parameter, the arguments."""
    script = posixpath.relpath(plan.shipment.script, plan.shipment.cwd)
    words = [rundir.env_python(plan.environment.fingerprint), script]
    for name, value in plan.job.params.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words + list(plan.job.arguments)


def job_environment(plan: Prepared, run_id: str) -> dict[str, str]:
    """The variables a job finds beside the machine's own."""
    variables = {"CLOUDRUN_PARAMS": json.dumps(dict(plan.job.params)), "CLOUDRUN_RUN_ID": run_id}
    if plan.threads is not None:
        variables |= dict.fromkeys(THREAD_VARIABLES, str(plan.threads))
    if plan.search_path:
        # Relative to where the job starts; Python makes them absolute before the script's first line.
        folders = [posixpath.relpath(folder or ".", plan.shipment.cwd) for folder in plan.search_path]
        variables["PYTHONPATH"] = ":".join(folders)
    return variables


def coming_jobs(plan: Prepared) -> ComingJobs:
    """What jobs of this plan are like, whatever their parameters."""
    return ComingJobs(plan.environment.fingerprint, job_spec(plan, "", 0, None))


def job_spec(plan: Prepared, run_id: str, number: int, upload: Upload | None) -> dict[str, Any]:
    """What the unit's agent is told of the job; see `rundir.spec`."""
    settings = plan.settings
    return rundir.spec(
        run_id=run_id,
        attempt=number,
        argv=command_line(plan),
        cwd=plan.shipment.cwd,
        env=job_environment(plan, run_id),
        output_max_bytes=settings.output_max_bytes,
        output_max_files=settings.output_max_files,
        grace_s=settings.grace_s,
        wall_time_s=settings.wall_time_s,
        memory_bytes=settings.memory_bytes,
        disk_bytes=settings.disk_bytes,
        fresh=settings.fresh,
        preload=list(plan.third_party),
        more=plan.more,
        data={data.link: data.key for data in plan.data},
        upload=None if upload is None else {**asdict(upload), "fields": dict(upload.fields)},
    )
