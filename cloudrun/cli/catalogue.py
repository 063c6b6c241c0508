"""Every command by name: where its code is, what it does, what to type. The front page needs nothing else imported."""

from __future__ import annotations

from dataclasses import dataclass

from cloudrun.cli.printing import folded


@dataclass(frozen=True)
class Command:
    name: str
    target: str  # "module:attribute", imported when the command is used
    summary: str
    example: str


GROUPS = (
    (
        "Run",
        (
            Command(
                "submit",
                "cloudrun.cli.submit:submit",
                "run a script, or a grid of cells, on rented machines",
                "cloudrun submit train.py",
            ),
        ),
    ),
    (
        "While it runs",
        (
            Command("ps", "cloudrun.cli.runs:ps", "the runs that are not over", "cloudrun ps"),
            Command("logs", "cloudrun.cli.runs:logs", "what a run has printed, or prints", "cloudrun logs -f RUN"),
            Command(
                "attach", "cloudrun.cli.runs:attach", "come back to a run and bring it home", "cloudrun attach RUN"
            ),
            Command("cancel", "cloudrun.cli.runs:cancel", "end a run, bring home what it has", "cloudrun cancel RUN"),
            Command("pull", "cloudrun.cli.runs:pull", "bring home outputs that wait elsewhere", "cloudrun pull RUN"),
            Command("extend", "cloudrun.cli.runs:extend", "give a machine more time", "cloudrun extend RUN 2h"),
            Command("units", "cloudrun.cli.units:units", "the machines that are alive", "cloudrun units"),
            Command("ssh", "cloudrun.cli.ssh:ssh", "a shell on a machine", "cloudrun ssh RUN"),
            Command("reap", "cloudrun.cli.units:reap", "end the machines that nobody needs", "cloudrun reap --dry-run"),
        ),
    ),
    (
        "Afterwards",
        (
            Command("results", "cloudrun.cli.results:results", "rank the runs, best first", "cloudrun results"),
            Command("show", "cloudrun.cli.show:show", "one run in full, or its logs", "cloudrun show RUN --log"),
            Command(
                "compare",
                "cloudrun.cli.compare:compare",
                "what differs between runs, their code too",
                "cloudrun compare RUN RUN",
            ),
            Command("get", "cloudrun.cli.show:get", "copy a file of a run out", "cloudrun get RUN model.joblib"),
            Command(
                "report",
                "cloudrun.cli.report:report",
                "all runs as one HTML file with charts",
                "cloudrun report --open",
            ),
            Command(
                "export",
                "cloudrun.cli.export:export",
                "a run as plain files, or runs to MLflow",
                "cloudrun export RUN DIR",
            ),
            Command("rm", "cloudrun.cli.removing:rm", "forget runs that are over", "cloudrun rm RUN"),
            Command("gc", "cloudrun.cli.removing:gc", "free what nothing refers to", "cloudrun gc --dry-run"),
        ),
    ),
    (
        "Set up",
        (
            Command("init", "cloudrun.cli.init:init", "write a commented cloudrun.toml", "cloudrun init"),
            Command(
                "config",
                "cloudrun.cli.config:app",
                "every setting, its value, and who says so",
                "cloudrun config show --origin",
            ),
            Command("doctor", "cloudrun.cli.doctor:doctor", "what is missing, and what mends it", "cloudrun doctor"),
            Command(
                "completion",
                "cloudrun.cli.completion:completion",
                "complete commands and ids in your shell",
                "cloudrun completion bash",
            ),
            Command(
                "sandbox",
                "cloudrun.cli.sandbox:app",
                "the region on localhost, to try everything",
                "cloudrun sandbox status",
            ),
        ),
    ),
)
COMMANDS = tuple(command for _, commands in GROUPS for command in commands)

WHAT_FOR = "cloudrun rents an EC2 machine for exactly as long as a training script needs it.\n"

START = """
Type this first (in the sandbox on your own computer: no account, no money):

    cloudrun submit train.py
    cloudrun results

With an AWS account, the same on a real machine:

    cloudrun doctor --provider aws
    cloudrun submit train.py --provider aws --deadline 2h
"""

MORE = """
    cloudrun --help             every command, with an example
    cloudrun COMMAND --help     every option of a command, each with an example
"""

MORE_HELP = """
    cloudrun COMMAND --help     every option of a command, each with an example
    cloudrun --version          the version; --verbose: what a bug report needs
    cloudrun ... --debug        with an error also its traceback
"""


def first_page(width: int | None = None) -> str:
    """What `cloudrun` alone prints, on any screen at once: what it is for, what to type first, which commands there
    are. `width`: the columns there are; None is as many as it takes."""
    groups = [f"    {title:<15}{' '.join(command.name for command in commands)}" for title, commands in GROUPS]
    return _fitting("\n".join([WHAT_FOR + START, *groups, MORE]), width)


def help_page(width: int | None = None) -> str:
    """What `cloudrun --help` prints: every command with what it does and an example; `width` as for `first_page`."""
    longest = max(len(command.example) for command in COMMANDS)
    fits = width is None or width >= 4 + longest + 2 + max(len(command.summary) for command in COMMANDS)
    lines = [WHAT_FOR]
    for title, commands in GROUPS:
        lines += [title]
        for command in commands:
            if fits:
                lines.append(f"    {command.example:<{longest}}  {command.summary}")
            else:
                lines += [f"    {command.example}", f"        {command.summary}"]
        lines.append("")
    return _fitting("\n".join(lines) + MORE_HELP, width)


def _fitting(text: str, width: int | None) -> str:
    """Lines that are too long go on in the next; what stands in two columns is one below the other then."""
    if width is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        first, gap, rest = line.lstrip().partition("  ")
        if len(line) > width and indent and gap:
            lines += [indent + first, indent * 2 + rest.strip()]
        else:
            lines.append(line)
    return folded("\n".join(lines), width) + "\n"
