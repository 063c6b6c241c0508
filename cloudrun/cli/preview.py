"""`cloudrun submit --dry-run` for people: what would be launched, shipped, built and run."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from cloudrun.cli.display import Display
from cloudrun.cli.printing import columns, folded, print_json, printable
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted, duration_text, size_text
from cloudrun.runs.prepared import Job, command_line
from cloudrun.runs.preview import Preview, Rent, document, preview

if TYPE_CHECKING:
    from cloudrun.grids.preview import GridPreview

NOTHING = "nothing was launched, and nothing was changed"
LABEL = 15  # columns
PACKAGES = 8  # named; the rest is counted


def show_run(job: Job, settings: Settings, instance_id: str | None, *, as_json: bool) -> int:
    """Say what one run would be. Raises CredentialsError, last of all, where AWS could not be asked."""
    with closing(Ledger()) as ledger, Display() as display:
        seen = preview(job, settings, ledger=ledger, observe=display, instance_id=instance_id)
    if as_json:
        print_json(document(seen))
    else:
        print(shown(lines(seen), columns(sys.stdout)), flush=True)
    if seen.problem is not None:
        raise seen.problem
    return 0


def shown(lines: Iterable[str], width: int | None) -> str:
    """The lines on a screen of so many columns (None: it is none), folded beside their labels."""
    if width is None or width < 2 * LABEL:
        return "\n".join(lines)
    return "\n".join(
        line[:LABEL] + folded(line[LABEL:], width - LABEL).replace("\n", f"\n{' ' * LABEL}  ") for line in lines
    )


def lines(seen: Preview) -> Iterator[str]:
    yield f"would run      {_command(seen)}"
    yield from _printable(_launch(seen, 1), _rest(seen))


def grid_lines(seen: GridPreview) -> Iterator[str]:
    """As `lines`, with the cells first."""
    rest = f"{seen.left} to run" if seen.left else "none of them is left to run"
    if seen.under_way:
        rest += f" ({seen.under_way} of them under way, on {counted(seen.machines, 'machine')})"
    done = f", {seen.succeeded} succeeded before" if seen.succeeded else ""
    yield f"would run      {counted(seen.cells, 'cell')}: {rest}{done}"
    if seen.grid_id:
        yield f"               it goes on with {seen.grid_id}"
    if not seen.left:
        yield "would launch   nothing (--again runs them once more)"
        yield NOTHING
        return
    if seen.estimate is not None:
        yield f"               {seen.estimate}"
    if seen.left > seen.under_way:
        yield f"the first      {_command(seen.seen)}"
    yield from _printable(_machines(seen), _rest(seen.seen))


def _machines(seen: GridPreview) -> Iterator[str]:
    if seen.launch:
        yield from _launch(seen.seen, seen.launch, seen.budget_usd or math.inf, is_short=seen.is_short)
    elif seen.estimate is None and not seen.under_way:
        yield from _launch(seen.seen, None, seen.budget_usd or math.inf)
    else:
        yield "would launch   nothing more: its machines go on with it"
    if seen.why:
        yield f"               {seen.why}"


def _printable(*parts: Iterable[str]) -> Iterator[str]:
    yield from (printable(line) for part in parts for line in part)
    yield NOTHING


def _command(seen: Preview) -> str:
    cwd = seen.plan.shipment.cwd
    where = f"in {cwd} of the project" if cwd != "." else "in the project's root"
    return printable(f"python {shlex.join(command_line(seen.plan)[1:])}, {where}")


def _rest(seen: Preview) -> Iterator[str]:
    goods, environment = seen.plan.shipment, seen.plan.environment
    yield f"would ship     {counted(len(goods.entries), 'file')}, {size_text(goods.total_bytes)}, from {goods.root}"
    largest = ", ".join(f"{entry.path} ({size_text(entry.size)})" for entry in seen.largest)
    yield f"               the largest: {largest}"
    for source in seen.settings.data if seen.problem else ():
        yield f"would fetch    {source}"
    for data in seen.plan.data:
        size = f"{counted(len(data.remote) + len(data.entries), 'file')}, {size_text(data.total_bytes)}"
        yield f"would fetch    {data.source}: {size}, found as {data.link}"
    if seen.settings.bucket:
        made = ", which would be made" if seen.bucket_is_there is False else ""
        yield f"would put      outputs into s3://{seen.settings.bucket}{made}"
    known = "as runs of this project have had" if seen.environment_known else "which no run of this project has had yet"
    yield (
        f"would build    Python {environment.python} with {counted(len(environment.requirements), 'package')},"
        f" from {environment.source}, {known}"
    )
    named = [line for line in environment.requirements if not line.startswith("-")]
    more = f" and {len(named) - PACKAGES} more" if len(named) > PACKAGES else ""
    yield f"               {', '.join(named[:PACKAGES])}{more}"
    yield f"               fingerprint {environment.fingerprint}"
    if seen.settings.apt:
        yield f"would install  {', '.join(seen.settings.apt)}"
    if seen.settings.playbook:
        yield f"would play     {seen.settings.playbook}, after cloudrun's own playbook"


def _launch(seen: Preview, count: int | None, budget_usd: float = math.inf, *, is_short: bool = False) -> Iterator[str]:
    """So many machines (None: nobody knows); `is_short`: it is the budget that their deadline comes from."""
    if seen.instance_id:
        yield f"would use      {seen.instance_id}, which is kept ({seen.provider}, {seen.region})"
        return
    market = "spot machine" if seen.settings.spot else "machine"
    market = f"some {market}s" if count is None else f"one {market}" if count == 1 else f"{count} {market}s"
    each = "" if count == 1 else " each"
    for place, rent in enumerate(seen.rents):
        what = f"{market} of {rent.instance_type}" if place == 0 else f"or, where EC2 has none, {rent.instance_type}"
        yield f"{'would launch   ' if place == 0 else ' ' * 15}{what} in {seen.region}: {_price(rent, seen, each)}"
    yield from _where(seen)
    most = f"${min(seen.most_usd, budget_usd):.4f}" if seen.most_usd is not None else "nobody knows what"
    which = "for a machine" if count == 1 else "for each"
    deadline = f"{duration_text(seen.settings.deadline_s)} from its launch"
    yield f"               at most {most} {which} until its deadline, {deadline}{', by the budget' if is_short else ''}"
    if seen.provider == "sandbox":
        yield "               (the sandbox is free: these are prices of the same on AWS)"


def _where(seen: Preview) -> Iterator[str]:
    image = seen.image
    if image is None:
        yield "               in which zone and from which image: only AWS can say"
        return
    zones = ", ".join(seen.rents[0].zones)
    where = f"in {zones}" if seen.settings.zone else f"in whichever zone has one: {zones or 'none offers that type'}"
    yield f"               {where}"
    yield f"               image {image.image_id} ({image.name or 'without a name'}, {image.architecture})"


def _price(rent: Rent, seen: Preview, each: str) -> str:
    if rent.usd_per_hour is None:
        return "of no known price" if seen.problem is None else "only AWS can say at what price"
    if seen.settings.spot:
        text = f"at most ${rent.usd_per_hour:g} an hour{each}"
        if rent.spot_usd:
            zone = min(rent.spot_usd, key=lambda each: rent.spot_usd[each])
            text += f", ${rent.spot_usd[zone]:g} in {zone} now"
        return text
    return f"${rent.usd_per_hour:g} an hour{each} (list price of {rent.as_of})"
