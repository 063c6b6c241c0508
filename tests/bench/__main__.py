"""The benchmarks: what cloudrun takes beside the tools that do the same, measured in turn on this computer.

    python -m tests.bench                 everything, some minutes
    python -m tests.bench --quick         fewer rounds, smaller files
    python -m tests.bench --only noop,unchanged

  noop       a no-op job on an open unit: shipped, run, home, recorded durably; against `ssh host python3 noop.py`,
             fresh and over a ControlMaster
  submit     the whole `cloudrun submit` of it to a kept unit, against the same fresh ssh
  large      256 MB up and down, against scp, sftp and rsync; ours with digests on both sides, and fsync at home
  small      2,000 files of 1 to 8 kB up and down, against the same
  unchanged  the second ship of 2,000 unchanged files, against rsync over a ControlMaster, and fresh
  warm       `cloudrun submit` from nothing where the environment is known, against a script with boto3,
             ansible-playbook, scp and ssh
  cold       the same where no package was ever fetched
  flat       from submit to 1, 2, 4, 8, 16 units at work, and the CPU time of cloudrun itself for each further one: the
             environment built once and copied from unit to unit, built on every unit, or there from the boot; ten
             minutes. A TMPDIR in memory (not below /dev) with 6 GB keeps the disk out of it
  cells      64 cells of a second on two slots of one unit: the makespan, and what is added to each
  progressive  the 144 cells of jobs/progressive.toml, a cell and a feature space a run, through cloudrun, against a
             notebook that does it with dictionaries, a process a core; some ten minutes and 3 GB of disk
  simulation  100,000 cells on 1,000 units by a clock, with the real planner and ledger; some minutes
  ledger     the ledger with a million runs: rankings, cells, durable commits, against a number of milliseconds each;
             some minutes and 4 GB of disk

The first five talk to one private OpenSSH server on loopback, directly and with 40 ms of added round-trip time; `warm`,
`cold`, `cells` and `progressive` run in a sandbox of their own, `flat` in several, `simulation` and `ledger` in none.
Ours uses the connection of a unit that is open already, unless it says otherwise; each tool makes its own, unless it
says "over a ControlMaster". A ratio is our time by theirs: of the medians, and in brackets the lowest and highest of
all rounds. It needs sshd, ssh, scp, sftp and rsync.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.rounds import Cost, Noise, Row, Spread
from tests.bench.server import run

NAMES = (
    "noop",
    "submit",
    "large",
    "small",
    "unchanged",
    "warm",
    "cold",
    "flat",
    "cells",
    "progressive",
    "simulation",
    "ledger",
)
LINES = ("loopback", "40 ms")
SERVED = {"noop", "submit", "large", "small", "unchanged"}
SANDBOXED = SERVED | {"warm", "cold", "cells", "progressive"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller files")
    parser.add_argument("--only", help=f"a comma between each: {','.join(NAMES)}", default=",".join(NAMES))
    parser.add_argument("--line", choices=LINES, help="only this one")
    parser.add_argument("--rounds", type=int, help="of everything, instead of each one's own number")
    parser.add_argument("--machines", help="the sandbox's driver of machines; by default the sandbox's own")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for program in ("ssh", "scp", "sftp", "rsync", "ssh-keygen"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends, also then
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        document = _measure(Path(name), arguments, wanted)
    if arguments.json:
        print(json.dumps(document, default=dataclasses.asdict, indent=2))


def _measure(folder: Path, arguments: argparse.Namespace, wanted: Sequence[str]) -> dict[str, Any]:
    from tests.bench import cells, files, flat, jobs, kept, ledger, progressive, server, whole

    _forget_the_users_settings(folder)
    quick = arguments.quick
    noise = Noise(folder)
    show = _Show(sys.stderr if arguments.json else sys.stdout)
    phases: dict[str, whole.Phases] = {}
    facts: dict[str, Any] = {}
    spread: list[dict[str, Any]] = []

    def rounds(usual: int) -> int:
        return int(arguments.rounds or (max(2, usual // 3) if quick else usual))

    small = files.Tree(f"{200 if quick else 2000:,} small files", 200 if quick else 2000, None)
    large = files.Tree(f"{64 if quick else 256} MB", 1, (64 if quick else 256) * 10**6)
    with ExitStack() as stack:
        driver = "none"
        if SANDBOXED.intersection(wanted):
            driver = stack.enter_context(whole.sandbox(folder / "sandbox", arguments.machines))
        show.head(driver)
        if SERVED.intersection(wanted):
            private = stack.enter_context(server.private_server(folder / "server"))
            unit = kept.kept_unit(folder, private) if {"noop", "submit"}.intersection(wanted) else None
            names = [arguments.line] if arguments.line else list(LINES)
            for line in stack.enter_context(server.lines(private, names)):
                if unit is not None and "noop" in wanted:
                    show.rows(jobs.noop_on_an_open_unit(unit, line, rounds(20), noise))
                if unit is not None and "submit" in wanted:
                    show.rows(jobs.noop_submitted(unit, line, rounds(8), noise))
                place = folder / "files"
                if "large" in wanted:
                    targets: dict[str, float | None] = {"scp": 1 / 1.2} if line.name == "loopback" else {"rsync": 1.0}
                    show.rows(files.transfers(large, line, place, rounds(5), noise, targets))
                if "small" in wanted:
                    show.rows(files.transfers(small, line, place, rounds(5), noise, {"scp": 1 / 3}))
                if "unchanged" in wanted:
                    show.rows(files.unchanged(small, line, place, rounds(9), noise))
        if "warm" in wanted:
            made, phases["warm"] = whole.warm(folder, rounds(5), noise)
            show.rows(made)
        if "cold" in wanted:
            made, phases["cold"] = whole.cold(folder, 1 if quick else rounds(2), noise, arguments.machines)
            show.rows(made)
        if "flat" in wanted:
            spread = flat.measured(folder, noise, arguments.machines, quick=quick)
            show.text(flat.table(spread))
        if "cells" in wanted:
            (folder / "cells").mkdir()
            show.costs(cells.short_cells(folder / "cells", rounds(3), noise))
        if "progressive" in wanted:
            made, facts = progressive.compared(folder, arguments.rounds or 1, noise, quick=quick)
            show.rows(made)
            show.facts(facts)
        if "simulation" in wanted:
            size = ["--cells", "10000", "--units", "100"] if quick else []
            show.text(run([sys.executable, "-m", "tests.bench.simulation", *size]))  # its memory is its own
        if "ledger" in wanted:
            show.costs(ledger.costs(folder / "ledger", 100_000 if quick else 1_000_000, rounds(20), noise))
    show.phases(phases)
    noise.look()
    show.noise(noise)
    return {
        "schema_version": 1,
        "driver": driver,
        "rows": [{**dataclasses.asdict(row), "met": row.met} for row in show.shown],
        "costs": [{**dataclasses.asdict(cost), "met": cost.met} for cost in show.shown_costs],
        "phases": phases,
        "flat": spread,
        "progressive": facts,
        "noise": {"cpu_loop_s": Spread.of(noise.cpu), "fsync_s": Spread.of(noise.fsync)},
    }


def _forget_the_users_settings(folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "CLOUDRUN_"))]:
        if name != "AWS_CA_BUNDLE":
            del os.environ[name]
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # the commands are this checkout's too
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


class _Show:
    """The table, line by line as it comes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.shown: list[Row] = []
        self.shown_costs: list[Cost] = []

    def _line(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)

    def head(self, driver: str) -> None:
        self._line(
            f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}; sandbox: {driver}"
        )
        self._line("times: median (lowest .. highest) in milliseconds; ratio: ours by theirs")
        self._line()
        ours, theirs, ratio = "ours", "theirs", "ratio"
        self._line(f"{'':<44}{'line':<10}{ours:>24}  {'against':<33}{theirs:>24}  {ratio:>20}  target")

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.shown.append(row)
            ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} .. {row.ratio.high:.2f})"
            target = "" if row.target is None else f"{row.target:.2f} {'met' if row.met else 'MISSED'}"
            self._line(
                f"{row.what:<44}{row.line:<10}{_ms(row.ours):>24}  {row.against:<33}{_ms(row.theirs):>24}"
                f"  {ratio:>20}  {target}"
            )

    def costs(self, costs: Sequence[Cost]) -> None:
        self._line()
        for cost in costs:
            self.shown_costs.append(cost)
            target = "" if cost.target_s is None else f"{1000 * cost.target_s:g} {'met' if cost.met else 'MISSED'}"
            self._line(f"{cost.what:<78}{_ms(cost.taken):>24}  {target}")

    def text(self, text: str) -> None:
        self._line(f"\n{text.rstrip()}")

    def phases(self, phases: dict[str, Any]) -> None:
        for name, sides in phases.items():
            for side, spreads in sides.items():
                parts = ", ".join(f"{phase} {spread.median:.2f}" for phase, spread in spreads.items())
                self._line(f"\n{name}, {side}, seconds: {parts}")

    def facts(self, facts: dict[str, Any]) -> None:
        for name, each in facts.items():
            self._line(
                f"{name}: {each['cells']} cells, {each['cpu_s']:.1f} s of CPU,"
                f" {each['models_bytes']:,} bytes of models, scores within {each['scores_differ_by']:.1e}"
            )

    def noise(self, noise: Noise) -> None:
        self._line(f"\nthis machine meanwhile: a fixed loop of Python {_ms(Spread.of(noise.cpu))} ms,")
        self._line(f"64 kB brought to the disk {_ms(Spread.of(noise.fsync))} ms, looked at {len(noise.cpu)} times")


def _ms(spread: Spread) -> str:
    low, median, high = (
        f"{1000 * each:,.{0 if each >= 0.1 else 1}f}" for each in (spread.low, spread.median, spread.high)
    )
    return f"{median} ({low} .. {high})"


if __name__ == "__main__":
    main()
