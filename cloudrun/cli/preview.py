"""`cloudrun submit --dry-run` for people: what would be launched, shipped, built and run."""

from __future__ import annotations

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

LABEL = 15  # columns
PACKAGES = 8  # named; the rest is counted


def show_run(job: Job, settings: Settings, instance_id: str | None, *, as_json: bool) -> int:
    """Say what one run would be. Raises CredentialsError, last of all, where AWS could not be asked."""
    with closing(Ledger()) as ledger, Display() as display:
        seen, _ = preview(job, settings, ledger=ledger, observe=display, instance_id=instance_id)
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
    yield from _rest(seen)


def _rest(seen: Preview) -> Iterator[str]:
    yield from (printable(line) for line in _lines(seen))
    yield "nothing was launched, and nothing was changed"


def grid_lines(seen: GridPreview) -> Iterator[str]:
    """As `lines`, with the cells first."""
    rest = f"{seen.left} to run"
    if seen.under_way:
        rest += f" ({seen.under_way} of them are under way)"
    done = f", {seen.succeeded} have succeeded before" if seen.succeeded else ""
    yield f"would run      {counted(seen.cells, 'cell')}: {rest}{done}"
    if seen.grid_id:
        yield f"               it goes on with {seen.grid_id}"
    if seen.estimate is not None:
        yield f"               {seen.estimate}"
    yield f"the first      {_command(seen.seen)}"
    yield from _rest(seen.seen)


def _command(seen: Preview) -> str:
    cwd = seen.plan.shipment.cwd
    where = f"in {cwd} of the project" if cwd != "." else "in the project's root"
    return printable(f"python {shlex.join(command_line(seen.plan)[1:])}, {where}")


def _lines(seen: Preview) -> Iterator[str]:
    goods, environment = seen.plan.shipment, seen.plan.environment
    yield from _launch(seen)
    yield f"would ship     {counted(len(goods.entries), 'file')}, {size_text(goods.total_bytes)}, from {goods.root}"
    largest = ", ".join(f"{entry.path} ({size_text(entry.size)})" for entry in seen.largest)
    yield f"               the largest: {largest}"
    for source in seen.settings.data if seen.problem else ():
        yield f"would fetch    {source}"
    for data in seen.plan.data:
        files = counted(len(data.remote) + len(data.entries), "file")
        yield f"would fetch    {data.source}: {files}, {size_text(data.total_bytes)}, found as {data.link}"
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


def _launch(seen: Preview) -> Iterator[str]:
    if seen.instance_id:
        where = ", ".join(filter(None, (seen.provider, seen.region)))
        yield f"would use      {seen.instance_id}, which is kept ({where})"
        return
    market = "a spot machine" if seen.settings.spot else "one machine"
    for place, rent in enumerate(seen.rents):
        what = f"{market} of {rent.instance_type}" if place == 0 else f"or, where EC2 has none, {rent.instance_type}"
        yield f"{'would launch   ' if place == 0 else ' ' * 15}{what} in {seen.region}: {_price(rent, seen)}"
    if seen.image is None:
        types = ", else ".join(dict.fromkeys((seen.settings.instance_type, *seen.settings.fallback_types)))
        yield f"would launch   {market} of {types}{f' in {seen.region}' if seen.region else ''}"
        yield "               in which zone, from which image and at what price: only AWS can say"
        return
    zones = ", ".join(seen.rents[0].zones)
    where = f"in {zones}" if seen.settings.zone else f"in whichever zone has one: {zones or 'none offers that type'}"
    yield f"               {where}"
    image = seen.image
    yield f"               image {image.image_id} ({image.name or 'without a name'}, {image.architecture})"
    deadline = duration_text(seen.settings.deadline_s)
    most = f"${seen.most_usd:.4f}" if seen.most_usd is not None else "nobody knows what"
    yield f"               at most {most} for a machine until its deadline, {deadline} from its launch"
    if seen.provider == "sandbox":
        yield "               (the sandbox is free: these are prices of the same on AWS)"


def _price(rent: Rent, seen: Preview) -> str:
    if rent.usd_per_hour is None:
        return "of no known price"
    if seen.settings.spot:
        text = f"at most ${rent.usd_per_hour:g} an hour"
        if rent.spot_usd:
            zone = min(rent.spot_usd, key=lambda each: rent.spot_usd[each])
            text += f", ${rent.spot_usd[zone]:g} in {zone} now"
        return text
    return f"${rent.usd_per_hour:g} an hour (list price of {rent.as_of})"
