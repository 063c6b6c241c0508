"""A commented cloudrun.toml: what the user has chosen, and every other setting with its default or an example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloudrun.config import key_of, read
from cloudrun.core.errors import UsageError
from cloudrun.core.settings import IDLE_S, NAMES, Settings
from cloudrun.plan.quantities import duration_text, size_text

HEAD = """\
# What cloudrun does in this project. A flag beats a CLOUDRUN_* variable, which beats this file, which beats
# ~/.config/cloudrun/config.toml. A line behind a # is a default, or an example where there is none.
# `cloudrun config show --origin` says what holds, and why.

"""
_COMMENTS_AT = 40  # the column


@dataclass(frozen=True)
class Entry:
    """`meaning` completes "it is ..."; `unset` is what holds where there is no default; `example` is for that too."""

    field: str
    meaning: str
    unset: str = ""
    example: object = None

    @property
    def key(self) -> str:
        return key_of(self.field)


SECTIONS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "where, and on what",
        (
            Entry("provider", "sandbox (this computer), or aws, which spends money"),
            Entry("region", "the AWS region", "as AWS resolves it, else us-east-1", "eu-west-1"),
            Entry("profile", "a profile of ~/.aws", "as AWS resolves it", "research"),
            Entry("instance_type", "what to rent"),
            Entry("fallback_types", "what else to rent where EC2 has none of that", "", ("m6i.large", "m5.large")),
            Entry("image", "an AMI id", "Canonical's current Ubuntu LTS", "ami-0123456789abcdef0"),
            Entry("user", "who may log in there", "the image's own", "ubuntu"),
            Entry("spot", "cheaper capacity that may be taken back"),
            Entry("max_price", "US dollars an hour that a spot machine may cost", "the on-demand price", 0.05),
            Entry("zone", "the availability zone", "where EC2 has room", "us-east-1a"),
            Entry("budget", "US dollars that a run's machine, or a grid's, cannot cost more than", "no limit", 5.0),
            Entry("volume_gib", "the size of its disk"),
            Entry("volume_type", "gp3, gp2, io1 or io2"),
            Entry("volume_iops", "its operations a second", "the type's own", 6000),
            Entry("volume_throughput", "its MiB a second, of gp3", "the type's own", 250),
            Entry("tags", "tags of your own, for all that is launched", "", ("team=ml",)),
            Entry("instance_profile", "the role that jobs have: a profile's name or ARN", "none", "my-profile"),
        ),
    ),
    (
        "the way to it",
        (
            Entry("vpc", "another one of the account's", "the default VPC", "vpc-0123456789abcdef0"),
            Entry("subnet", "the subnet", "one of the VPC's", "subnet-0123456789abcdef0"),
            Entry("security_group", "one of your own", "made for each launch", "sg-0123456789abcdef0"),
            Entry("address", "where to log in: public or private", "public; private behind a jump host", "private"),
            Entry("ssh_from", "the network that may log in", "this computer's address", "203.0.113.0/24"),
            Entry("ssh_jump", "the host that machines are reached through", "none", "me@bastion.example.com"),
        ),
    ),
    (
        "what is on it",
        (
            Entry("index_url", "a package index", "PyPI", "https://packages.example.com/simple"),
            Entry("apt", "Debian packages that jobs need", "", ("libgomp1",)),
            Entry("playbook", "an Ansible playbook of your own, run after cloudrun's", "none", "setup.yml"),
        ),
    ),
    (
        "how long",
        (
            Entry("deadline_s", "when the machine powers itself off whatever happens, from its launch"),
            Entry("idle_s", "and after so long without a run or a client", f"{duration_text(IDLE_S)}", "30m"),
            Entry("grace_s", "between asking a job to end and killing it"),
            Entry("on_exit", "what becomes of the machine: terminate, stop or keep"),
            Entry("boot_timeout_s", "how long a machine may take to let us in"),
            Entry("provision_timeout_s", "how long its environment may take"),
            Entry("terminate_timeout_s", "how long its end may take before that is an error"),
        ),
    ),
    (
        "a run",
        (
            Entry("wall_time_s", "a run that takes longer is ended", "no limit", "90m"),
            Entry("memory_bytes", "as is one that takes more memory", "no limit", "6GB"),
            Entry("disk_bytes", "or writes more to the disk", "no limit", "20GB"),
            Entry("fresh", "start every job in a new interpreter"),
            Entry("metric", "the score that ranks a run", "its first", "accuracy"),
            Entry("minimize", "whether smaller of that metric is better; said by names like loss"),
        ),
    ),
    (
        "what travels",
        (
            Entry("data", "paths and S3 addresses that runs read", "", ("s3://my-data/iris.csv",)),
            Entry("bucket", "S3: where machines put outputs that nobody fetches", "none", "my-results"),
            Entry("ship_warn_bytes", "warn when more than this is shipped"),
            Entry("ship_refuse_bytes", "refuse to ship more"),
            Entry("output_max_bytes", "the most a run may bring home"),
            Entry("output_max_files", "in the most files"),
        ),
    ),
)
ENTRIES = {entry.field: entry for _, entries in SECTIONS for entry in entries}


def toml_text(chosen: Mapping[str, object]) -> str:
    """The whole file. `chosen`: values by setting, as flags give them. Raises UsageError for one that is unusable."""
    values = {key: checked(key, value) for key, value in chosen.items()}
    lines = [HEAD]
    for title, entries in SECTIONS:
        lines.append(f"# -- {title} --\n")
        for entry in entries:
            if entry.key in values:
                said = chosen[entry.key]  # "2h30m" stays what the user has written
                in_words = isinstance(said, str) and entry.field.endswith(("_s", "_bytes"))
                assignment = f"{entry.key} = {_toml(entry.field, said if in_words else values[entry.key])}"
            else:
                assignment = f"# {entry.key} = {_toml(entry.field, _usual(entry))}"
            remark = entry.meaning + (f" (without: {entry.unset})" if entry.unset else "")
            lines.append(f"{assignment:<{_COMMENTS_AT}}  # {remark}\n")
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n"


def checked(key: str, value: object) -> object:
    """The value, as the setting has it. Raises UsageError."""
    try:
        return read(key, value)
    except ValueError as problem:
        raise UsageError(f"{key}: {problem}", next_step=f"give another {key}") from problem


def value_text(field: str, value: object) -> str:
    """A setting's value for people, in the words that a file or a flag takes; "" where it has none."""
    if value is None or value == ():
        return ""
    if field.endswith("_s") and isinstance(value, float):
        return duration_text(value)
    if field.endswith("_bytes") and isinstance(value, int):
        return size_text(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _usual(entry: Entry) -> object:
    """Its default; an example where there is none."""
    default = getattr(Settings(), entry.field)
    return entry.example if entry.example is not None and default in (None, ()) else default


def _toml(field: str, value: object) -> str:
    """A TOML literal. Durations and sizes are written so that nothing is rounded."""
    if isinstance(value, tuple):
        return f"[{', '.join(_string(str(each)) for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if field.endswith("_s") and isinstance(value, float):
        return _string(_exactly(value, ((3600, "h"), (60, "m"), (1, "s"))))
    if field.endswith("_bytes") and isinstance(value, int):
        return _string(_exactly(value, ((10**9, "GB"), (10**6, "MB"), (1000, "kB"), (1, "B"))))
    return _string(value) if isinstance(value, str) else str(value)


def _exactly(value: float, units: tuple[tuple[int, str], ...]) -> str:
    """In the largest unit of which it is a whole number."""
    size, unit = next((each for each in units if value % each[0] == 0), units[-1])
    return f"{value / size:g}{unit}" if value % size else f"{int(value // size)}{unit}"


def _string(text: str) -> str:
    """JSON's escapes are TOML's too, but for the one character (DEL) that JSON lets through."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def missing() -> set[str]:
    """Settings that have no entry here."""
    return set(NAMES) - set(ENTRIES)
