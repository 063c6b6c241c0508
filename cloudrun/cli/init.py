"""`cloudrun init`: a commented cloudrun.toml for this project, or the IAM policy that cloudrun needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.parser import Json
from cloudrun.cli.printing import is_terminal, print_json
from cloudrun.core.errors import UsageError

# What is asked on a terminal, in this order; the flags of the same names are not asked for again.
QUESTIONS: Mapping[str, str] = {
    "provider": "Where shall scripts run: sandbox (this computer, free) or aws (spends money)?",
    "region": "Which AWS region (empty: as AWS resolves it)?",
    "profile": "Which profile of ~/.aws (empty: as AWS resolves it)?",
    "instance_type": "Which instance type?",
    "deadline": "When shall a machine power itself off, whatever happens?",
    "budget": "How many US dollars may a run's machine cost, or a grid's machines (empty: no limit)?",
    "spot": "Spot machines, which are cheaper and may be taken back (yes or no)?",
}
WITHOUT_QUESTIONS = "cloudrun init --yes asks nothing"
ONLY_AWS = ("region", "profile", "budget", "spot")


def init(
    *,
    provider: Annotated[str | None, Parameter(help="sandbox or aws. Example: --provider aws")] = None,
    region: Annotated[str | None, Parameter(help="The AWS region. Example: --region eu-west-1")] = None,
    profile: Annotated[str | None, Parameter(help="A profile of ~/.aws. Example: --profile research")] = None,
    instance_type: Annotated[str | None, Parameter(help="What to rent. Example: --instance-type c7i.4xlarge")] = None,
    deadline: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="When a machine powers itself off. Example: --deadline 2h"),
    ] = None,
    idle: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="And after so long without a run. Example: --idle 30m"),
    ] = None,
    budget: Annotated[
        float | None,
        Parameter(help="US dollars that a run's machine, or a grid's, cannot cost more than. Example: --budget 5"),
    ] = None,
    spot: Annotated[
        bool | None, Parameter(negative="--no-spot", help="Cheaper, may be taken back. Example: --spot")
    ] = None,
    bucket: Annotated[
        str | None, Parameter(help="S3: where outputs wait; the policy covers it. Example: --bucket my-results")
    ] = None,
    instance_profile: Annotated[
        str | None, Parameter(help="The role that jobs have, for the policy too. Example: --instance-profile trainer")
    ] = None,
    yes: Annotated[bool, Parameter(help="Ask nothing: what is not said stays a default. Example: --yes")] = False,
    force: Annotated[bool, Parameter(help="Write over a cloudrun.toml that is there. Example: --force")] = False,
    iam_policy: Annotated[
        bool,
        Parameter(help="Print the IAM policy that cloudrun needs, and write nothing. Example: --iam-policy > p.json"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a cloudrun.toml with every setting in it, explained; on a terminal it
    asks for the important ones.

    Type, for example:
        cloudrun init
        cloudrun init --provider aws --region eu-west-1 --deadline 2h
        cloudrun init --iam-policy --bucket my-results > policy.json
    """
    from cloudrun.setup import project

    if iam_policy:
        document = project.iam_policy(bucket=bucket, region=region, instance_profile=instance_profile)
        if as_json:
            print_json({"policy": document})
        else:
            import json

            print(json.dumps(document, indent=2))
        return
    chosen: dict[str, object] = {
        "provider": provider,
        "region": region,
        "profile": profile,
        "instance_type": instance_type,
        "deadline": deadline,
        "idle": idle,
        "budget": budget,
        "spot": spot,
        "bucket": bucket,
        "instance_profile": instance_profile,
    }
    chosen = {key: value for key, value in chosen.items() if value is not None}
    folder = Path.cwd()
    project.check_target(folder, force=force)  # before anybody answers questions in vain
    if not yes and not as_json and sys.stdin.isatty() and is_terminal(sys.stderr):
        with _nothing_written():
            chosen = asked(chosen, _answer, lambda words: print(words, file=sys.stderr))
    path, notes = project.write_file(folder, chosen, force=force)
    for note in notes:
        print(f"  note: {note}", file=sys.stderr)
    if as_json:
        print_json({"path": str(path), "settings": chosen, "notes": notes})
    else:
        print(f"wrote {path}\n  next: cloudrun doctor", file=sys.stderr)


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Whoever leaves in the middle of the questions is told that this has done nothing."""
    try:
        yield
    except EOFError as error:
        print(file=sys.stderr)
        raise UsageError("the answers ended, and nothing was written", next_step=WITHOUT_QUESTIONS) from error
    except KeyboardInterrupt as error:
        print(file=sys.stderr)
        error.add_note("nothing was written")
        error.next_step = WITHOUT_QUESTIONS  # type: ignore[attr-defined]
        raise


def _answer(question: str) -> str:
    print(question, end=" ", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def asked(chosen: Mapping[str, object], answer: Callable[[str], str], say: Callable[[str], None]) -> dict[str, object]:
    """`chosen` and what the user answers to the other questions; one whose answer is unusable is asked again. Raises
    EOFError where the answers end."""
    from cloudrun.core.settings import Settings
    from cloudrun.setup.template import ENTRIES, checked, value_text

    answers = dict(chosen)
    fields = {entry.key: field for field, entry in ENTRIES.items()}
    for key, question in QUESTIONS.items():
        if key in answers or (key in ONLY_AWS and answers.get("provider") != "aws"):
            continue
        usual = value_text(fields[key], getattr(Settings(), fields[key]))
        while text := answer(f"{question} [{usual}]" if usual else question):
            try:
                checked(key, text)
            except UsageError as error:
                say(f"  {error}")
            else:
                answers[key] = text
                break
    return answers
