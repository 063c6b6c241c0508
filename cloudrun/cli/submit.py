"""`cloudrun submit`: one script on one rented machine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.display import Display
from cloudrun.cli.parser import Json, RunId, parse_params
from cloudrun.cli.printing import print_json
from cloudrun.cli.summary import closing_lines, exit_code


def submit(
    script: Annotated[Path, Parameter(help="The Python script, unmodified. Example: train.py")],
    /,
    *arguments: Annotated[
        str, Parameter(help="The script's own arguments, after --. Example: -- --epochs 3 --fast", show=True)
    ],
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            metavar="NAME=VALUE",
            help="A parameter: it reaches the script as --NAME VALUE and in CLOUDRUN_PARAMS. Once for each. "
            "Example: --set alpha=0.1 --set seed=7",
        ),
    ] = None,
    name: Annotated[str | None, Parameter(help="What to call the run. Example: --name baseline")] = None,
    provider: Annotated[
        str | None,
        Parameter(help="sandbox (this computer, the default) or aws (spends money). Example: --provider aws"),
    ] = None,
    region: Annotated[
        str | None, Parameter(help="The AWS region; by default what AWS resolves. Example: --region eu-west-1")
    ] = None,
    profile: Annotated[str | None, Parameter(help="A profile of ~/.aws. Example: --profile research")] = None,
    instance_type: Annotated[
        str | None, Parameter(help="What to rent; m7i.large by default. Example: --instance-type c7i.4xlarge")
    ] = None,
    image: Annotated[
        str | None,
        Parameter(help="An AMI; by default Canonical's current Ubuntu LTS. Example: --image ami-0123456789abcdef0"),
    ] = None,
    spot: Annotated[
        bool | None,
        Parameter(negative="--no-spot", help="Rent spot capacity: cheaper, may be taken back. Example: --spot"),
    ] = None,
    deadline: Annotated[
        str | None,
        Parameter(help="When the machine powers itself off whatever happens; 4h by default. Example: --deadline 90m"),
    ] = None,
    on_exit: Annotated[
        str | None,
        Parameter(help="What becomes of the machine: terminate (the default), stop or keep. Example: --on-exit stop"),
    ] = None,
    metric: Annotated[
        str | None, Parameter(help="The score that ranks the run; by default its first. Example: --metric f1")
    ] = None,
    minimize: Annotated[
        bool | None,
        Parameter(negative="--maximize", help="Smaller is better; said by names like loss. Example: --minimize"),
    ] = None,
    verbose: Annotated[
        bool, Parameter(name=("--verbose", "-v"), help="Show Ansible's output and other details too. Example: -v")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run a script on a rented machine, bring its outputs, scores and logs home, and end the machine.

    Type, for example:
        cloudrun submit train.py
        cloudrun submit train.py --set alpha=0.1 --set seed=7
        cloudrun submit train.py --provider aws --deadline 2h -- --epochs 3

    Every option is a setting too: in cloudrun.toml (deadline = "2h") or the environment (CLOUDRUN_DEADLINE=2h).
    The job's own output goes to stdout, or with --json to stderr. Exit code 5 says that the script failed.
    """
    from cloudrun import config

    params = parse_params(set_ or ())
    flags = {
        "provider": provider,
        "region": region,
        "profile": profile,
        "instance_type": instance_type,
        "image": image,
        "spot": spot,
        "deadline": deadline,
        "on_exit": on_exit,
        "metric": metric,
        "minimize": minimize,
    }
    settings = config.load(Path.cwd(), flags)

    from cloudrun.ledger import Ledger
    from cloudrun.submit import Job
    from cloudrun.submit import submit as submit_job

    with closing(Ledger()) as ledger, Display(verbose=verbose, job_stdout=not as_json) as display:
        run = submit_job(Job(script, arguments, params, name), settings, ledger=ledger, observe=display)
        display.say("\n".join(closing_lines(run, ledger.artifacts.path)))
        if as_json:
            print_json(run.to_dict())
    return exit_code(run)


def pull(
    run: RunId,
    /,
    *,
    profile: Annotated[
        str | None, Parameter(help="A profile of ~/.aws, for a unit on AWS. Example: --profile research")
    ] = None,
    as_json: Json = False,
) -> int:
    """Bring home the outputs of a run that could not come home (a full disk, say) and wait on their machine.

    The machine is ended then, unless it was launched to be kept.

    Type, for example:
        cloudrun pull baseline
    """
    from cloudrun.ledger import Ledger
    from cloudrun.pulling import pull as pull_run

    with closing(Ledger()) as ledger, Display() as display:
        found = pull_run(ledger, run, observe=display, profile=profile).record
        display.say("\n".join(closing_lines(found, ledger.artifacts.path)))
        if as_json:
            print_json(ledger.get(found.run_id).to_dict())
    return exit_code(found)
