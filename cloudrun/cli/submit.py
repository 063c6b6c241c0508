"""`cloudrun submit`: one script on one rented machine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cloudrun.cli.display import Display
from cloudrun.cli.early import taken
from cloudrun.cli.gridding import grid_of
from cloudrun.cli.parser import Json
from cloudrun.cli.printing import print_json
from cloudrun.cli.summary import closing_lines, detached_lines, exit_code
from cloudrun.core.errors import UsageError, before_launch
from cloudrun.units.costs import bill_of_run


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
            help="A parameter: it reaches the script as --NAME VALUE and in CLOUDRUN_PARAMS. Once for each. Several "
            "values, with commas, make a grid; beside --grid they are in place of the file's. "
            "Example: --set alpha=0.1,1 --set seed=7",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        Parameter(
            help="A file of parameters (TOML, YAML, JSON): lists are crossed; --set adds to them, or replaces. "
            "Example: --grid grid.toml"
        ),
    ] = None,
    sample: Annotated[
        int | None, Parameter(help="Draw so many cells of the grid, or of its distributions. Example: --sample 100")
    ] = None,
    seed: Annotated[int | None, Parameter(help="What --sample draws with; 0 by default. Example: --seed 7")] = None,
    units: Annotated[
        int | None, Parameter(help="How many machines work on a grid; 1 by default. Example: --units 4")
    ] = None,
    max_units: Annotated[
        int | None, Parameter(help="As many machines as are worth it, up to this. Example: --max-units 16")
    ] = None,
    slots: Annotated[
        int | None,
        Parameter(help="Cells at a time on a machine; its vCPUs divided by --cpus by default. Example: --slots 2"),
    ] = None,
    cpus: Annotated[int, Parameter(help="How many vCPUs one cell computes on. Example: --cpus 2")] = 1,
    budget: Annotated[
        float | None,
        Parameter(help="US dollars that a grid's machines cannot cost more than, at list prices. Example: --budget 5"),
    ] = None,
    retries: Annotated[
        int, Parameter(help="How often a cell whose script failed is tried again. Example: --retries 1")
    ] = 0,
    keep_going: Annotated[
        bool, Parameter(help="Go on with a grid whose first cells all failed alike. Example: --keep-going")
    ] = False,
    again: Annotated[bool, Parameter(help="Run also the cells that have succeeded before. Example: --again")] = False,
    yes: Annotated[bool, Parameter(help="A grid of over 100,000 cells is meant. Example: --yes")] = False,
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
    fallback_types: Annotated[
        str | None,
        Parameter(help="What else to rent where EC2 has none of that. Example: --fallback-types m6i.large,m5.large"),
    ] = None,
    image: Annotated[
        str | None,
        Parameter(help="An AMI; by default Canonical's current Ubuntu LTS. Example: --image ami-0123456789abcdef0"),
    ] = None,
    user: Annotated[
        str | None, Parameter(help="Who may log in to that image; by default its maker's user. Example: --user admin")
    ] = None,
    volume_gib: Annotated[
        int | None, Parameter(help="The size of the machine's disk in GiB; 20 by default. Example: --volume-gib 200")
    ] = None,
    volume_type: Annotated[
        str | None, Parameter(help="Its type: gp3 (the default), gp2, io1 or io2. Example: --volume-type io2")
    ] = None,
    volume_iops: Annotated[
        int | None, Parameter(help="Its operations a second, for gp3, io1 and io2. Example: --volume-iops 6000")
    ] = None,
    volume_throughput: Annotated[
        int | None, Parameter(help="Its MiB a second, for gp3. Example: --volume-throughput 500")
    ] = None,
    tag: Annotated[
        list[str] | None,
        Parameter(
            help="A tag of your own for the machine and what belongs to it. Once for each. Example: --tag team=ml"
        ),
    ] = None,
    instance_profile: Annotated[
        str | None,
        Parameter(
            help="The role that jobs have on the machine; none by default. Example: --instance-profile reads-my-bucket"
        ),
    ] = None,
    index_url: Annotated[
        str | None,
        Parameter(
            help="A package index in place of PyPI; who you are to it stays in ~/.netrc or CLOUDRUN_INDEX_CREDENTIALS. "
            "Example: --index-url https://packages.example.com/simple"
        ),
    ] = None,
    apt: Annotated[
        str | None,
        Parameter(help="Debian packages that the script needs on the machine. Example: --apt libgomp1,ffmpeg"),
    ] = None,
    playbook: Annotated[
        str | None,
        Parameter(
            help="An Ansible playbook of your own, run once on each machine after ours. Example: --playbook gpu.yml"
        ),
    ] = None,
    spot: Annotated[
        bool | None,
        Parameter(negative="--no-spot", help="Rent spot capacity: cheaper, may be taken back. Example: --spot"),
    ] = None,
    max_price: Annotated[
        float | None,
        Parameter(help="US dollars an hour that a spot machine may cost. Example: --spot --max-price 0.05"),
    ] = None,
    zone: Annotated[
        str | None, Parameter(help="The availability zone; by default where EC2 has room. Example: --zone us-east-1b")
    ] = None,
    vpc: Annotated[
        str | None, Parameter(help="The VPC; by default the default one. Example: --vpc vpc-0123456789abcdef0")
    ] = None,
    subnet: Annotated[
        str | None, Parameter(help="The subnet, in any VPC. Example: --subnet subnet-0123456789abcdef0")
    ] = None,
    security_group: Annotated[
        str | None,
        Parameter(
            help="A security group of your own, used as it is; by default one is made that lets this computer in. "
            "Example: --security-group sg-0123456789abcdef0"
        ),
    ] = None,
    address: Annotated[
        str | None,
        Parameter(
            help="Log in at the machine's public or private address; by default public, private behind a jump host. "
            "Example: --address private"
        ),
    ] = None,
    ssh_from: Annotated[
        str | None,
        Parameter(
            help="The network that may log in; by default this computer's address. Example: --ssh-from 203.0.113.0/24"
        ),
    ] = None,
    ssh_jump: Annotated[
        str | None,
        Parameter(help="The host that machines are reached through. Example: --ssh-jump me@bastion.example.com:2222"),
    ] = None,
    instance_id: Annotated[
        str | None,
        Parameter(help="Use this machine, kept or stopped before. Example: --instance-id i-0123 --on-exit keep"),
    ] = None,
    deadline: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="When the machine powers itself off whatever happens; 4h by default. Example: --deadline 90m",
        ),
    ] = None,
    on_exit: Annotated[
        str | None,
        Parameter(help="What becomes of the machine: terminate (the default), stop or keep. Example: --on-exit stop"),
    ] = None,
    detach: Annotated[
        bool,
        Parameter(
            help="Return as soon as the script runs, or a grid's machines have its cells; cloudrun attach comes back. "
            "Example: --detach"
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        Parameter(help="Say what would be launched, shipped and built, and what it may cost. Example: --dry-run"),
    ] = False,
    bucket: Annotated[
        str | None,
        Parameter(help="S3: where the machine puts outputs that nobody fetches. Example: --detach --bucket my-results"),
    ] = None,
    data: Annotated[
        list[str] | None,
        Parameter(help="What the script reads: a path, or S3. Once for each. Example: --data s3://my-data/iris.csv"),
    ] = None,
    idle: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="End the machine after this long without run and client; 10m by default. Example: --idle 30m",
        ),
    ] = None,
    wall_time: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True, help="End the script when it runs longer than this. Example: --wall-time 90m"
        ),
    ] = None,
    memory: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True, help="End the script when it takes more memory than this. Example: --memory 6GB"
        ),
    ] = None,
    disk: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="End the script when it writes more to the disk than this. Example: --disk 20GB",
        ),
    ] = None,
    grace: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Between asking the script to end and killing it; 30s by default. Example: --grace 2m",
        ),
    ] = None,
    fresh: Annotated[
        bool | None,
        Parameter(help="Start a new Python, never a copy of one that has imported the libraries. Example: --fresh"),
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
    """Run a script on a rented machine, bring its outputs, scores and logs home, and
    end the machine.

    Type, for example:
        cloudrun submit train.py
        cloudrun submit train.py --set alpha=0.1 --set seed=7
        cloudrun submit train.py --provider aws --deadline 2h -- --epochs 3
        cloudrun submit train.py --provider aws --dry-run
        cloudrun submit train.py --detach
        cloudrun submit train.py --set alpha=0.1,1,10 --units 3 --detach

    Several cells are a grid, and so is one with --units, --max-units, --slots,
    --cpus, --budget, --retries, --keep-going or --again: what it prints is in its
    logs.

    Every option is a setting too: in cloudrun.toml (deadline = "2h") or the
    environment (CLOUDRUN_DEADLINE=2h). The job's own output goes to stdout, or
    with --json to stderr. Exit code 5 says that the script failed.
    """
    with before_launch(instance_id):  # the imports alone take their time
        from cloudrun import config
        from cloudrun.ledger import Ledger
        from cloudrun.runs.doubts import check_names
        from cloudrun.runs.submit import Job
        from cloudrun.runs.submit import submit as submit_job

        if units is not None and max_units is not None:
            raise UsageError(
                f"--units {units} is so many machines, --max-units {max_units} as many as are worth it, up to that",
                next_step="keep one of the two",
            )
        cells = grid_of(set_ or (), grid, sample, seed, yes=yes)
        flags = {
            "provider": provider,
            "region": region,
            "profile": profile,
            "instance_type": instance_type,
            "fallback_types": fallback_types,
            "image": image,
            "user": user,
            "volume_gib": volume_gib,
            "volume_type": volume_type,
            "volume_iops": volume_iops,
            "volume_throughput": volume_throughput,
            "tags": tag,
            "instance_profile": instance_profile,
            "index_url": index_url,
            "apt": apt,
            "playbook": playbook,
            "spot": spot,
            "max_price": max_price,
            "zone": zone,
            "vpc": vpc,
            "subnet": subnet,
            "security_group": security_group,
            "address": address,
            "ssh_from": ssh_from,
            "ssh_jump": ssh_jump,
            "deadline": deadline,
            "on_exit": on_exit,
            "bucket": bucket,
            "data": data,
            "idle": idle,
            "wall_time": wall_time,
            "memory": memory,
            "disk": disk,
            "grace": grace,
            "fresh": fresh,
            "metric": metric,
            "minimize": minimize,
        }
        settings, origins = config.load_with_origins(Path.cwd(), flags)
    with before_launch(instance_id), closing(Ledger()) as ledger, Display() as display:
        names = {name: None for table in cells.tables for name in table}
        metric_set_in = origins["metric"].where if metric is None and settings.metric is not None else ""
        check_names(script, names, settings.metric, ledger, display, arguments=arguments, metric_set_in=metric_set_in)
    only_grids = {  # a single run knows nothing of them: one is a grid of one cell then
        "--grid": grid is not None,
        "--units": units is not None,
        "--max-units": max_units is not None,
        "--slots": slots is not None,
        "--cpus": cpus != 1,
        "--budget": budget is not None,
        "--retries": retries != 0,
        "--keep-going": keep_going,
        "--again": again,
    }
    makes_grid = [flag for flag, is_given in only_grids.items() if is_given]
    if cells.size > 1 or makes_grid:
        if instance_id is not None:
            why = f" by {', '.join(makes_grid)}" if makes_grid else ""
            raise UsageError(
                f"--instance-id is for one run, and this is a grid{why}",
                next_step="leave out --instance-id",
            )
        from cloudrun.cli.grid import submit_grid
        from cloudrun.cli.preferred import preferred_by
        from cloudrun.grids.grid import Wishes

        most_usd = settings.budget if budget is None else budget
        wishes = Wishes(1 if units is None else units, max_units, slots, cpus, most_usd, retries, keep_going, again)
        if dry_run:
            from cloudrun.cli.grid import show_grid

            return show_grid(Job(script, arguments, {}, name), cells, settings, wishes, as_json=as_json)
        return submit_grid(
            script, arguments, cells, name, settings, wishes,
            asked=preferred_by(settings, origins), minimize=minimize, detach=detach, verbose=verbose, as_json=as_json,
        )  # fmt: skip
    params = next(cells.cells())
    if dry_run:
        from cloudrun.cli.preview import show_run

        return show_run(Job(script, arguments, params, name), settings, instance_id, as_json=as_json)

    with closing(Ledger()) as ledger, Display(verbose=verbose, job_stdout=not as_json) as display:
        job = Job(script, arguments, params, name)
        run = submit_job(
            job,
            settings,
            ledger=ledger,
            observe=display,
            detach=detach,
            instance_id=instance_id,
            early=taken(instance_id),
        )
        if detach:
            display.say("\n".join(detached_lines(run, ledger.unit(run.instance_id or ""))))
        else:
            lines = closing_lines(run, ledger.artifacts.path, bill_of_run(ledger, run.run_id))
            display.close(lines, good=exit_code(run) == 0)
        if as_json:
            print_json(run.to_dict())
        elif detach:
            print(run.run_id)
    return 0 if detach else exit_code(run)
