"""Bytes up and down, as one large file and as many small ones: beside scp, sftp and rsync.

Ours counts what makes it safe: digests on both sides, and every file that comes home brought to the disk (fsync).
Each round has contents of its own, so that nobody finds what an earlier round left. Small files stay until the end:
ext4 takes up to ten times as long to make a file where thousands were removed in the last minute, whoever makes it.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core import rundir
from cloudrun.core.records import FileEntry
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.runs.project import shipment
from cloudrun.ssh.agent import Agent
from cloudrun.ssh.session import Session
from tests.bench.rounds import Noise, Row, measure, rows, timed
from tests.bench.server import Line, run

SMALL = (1_000, 8_000)  # bytes of a small file, from and to
FOLDERS = 40
_NO_LIMIT = 1 << 50
_numbers = itertools.count(1)
# What a job that makes files does; its last act is to say when it had made them.
_MAKE = "import shutil, sys, time; shutil.copytree(sys.argv[1], 'made'); open(sys.argv[2], 'w').write(str(time.time()))"


@dataclass(frozen=True)
class Tree:
    """A folder of files to move, made anew for every round."""

    what: str
    files: int
    size: int | None  # of each, in bytes; None: small ones

    def make(self, root: Path) -> None:
        root.mkdir(parents=True)
        (root / "main.py").write_bytes(os.urandom(8).hex().encode())
        for number in range(self.files):
            folder = root / f"part{number % FOLDERS:02d}" if self.files > 1 else root
            folder.mkdir(exist_ok=True)
            size = random.randint(*SMALL) if self.size is None else self.size
            with (folder / f"file{number:05d}.bin").open("wb") as stream:
                for start in range(0, size, 1 << 24):
                    stream.write(os.urandom(min(1 << 24, size - start)))


class Field:
    """One line, our agent on it, and folders of this comparison's own."""

    def __init__(self, line: Line, agent: Agent, folder: Path) -> None:
        self.line = line
        self.agent = agent
        self.folder = folder
        self.tree = folder
        folder.mkdir(exist_ok=True)

    def new_tree(self, tree: Tree) -> None:
        if tree.files == 1 and self.tree != self.folder:
            shutil.rmtree(self.tree)
        self.tree = self.folder / f"tree{next(_numbers)}"
        tree.make(self.tree)

    def done_with(self, place: Path) -> None:
        """Large files would fill the disk."""
        if sum(1 for _ in place.iterdir()) <= 2:
            shutil.rmtree(place)

    def destination(self) -> Path:
        return self.folder / f"there{next(_numbers)}"

    # -- ours

    def entries(self) -> tuple[FileEntry, ...]:
        found = shipment(self.tree / "main.py", warn_bytes=_NO_LIMIT, refuse_bytes=_NO_LIMIT, caller_cwd=self.tree)
        return found.entries

    def ship(self) -> Path:
        """As `submit` does: find the files, make their digests, send them. Returns where they are."""
        place = rundir.run_dir(f"r-bench{next(_numbers)}", 1)
        self.agent.ship(place, self.tree, self.entries())
        return self.line.server.home / place

    def ship_once(self) -> float:
        places: list[Path] = []
        took = timed(lambda: places.append(self.ship()))
        (places[0] / "shipped.json").unlink()  # a run that is home is gone from its unit, and not looked into again
        self.done_with(places[0] / "work")
        return took

    def ship_again(self) -> float:
        """The ship of a further run on an open unit: the job before it has ended and is home, as after `send_run`."""
        run_id = f"r-bench{next(_numbers)}"
        place = rundir.run_dir(run_id, 1)
        took = timed(lambda: self.agent.ship(place, self.tree, self.entries()))
        self.agent.start(place, rundir.spec(run_id, 1, ["/bin/true"], ".", {}, _NO_LIMIT, 1_000_000, 5.0))
        assert self.agent.follow(place, lambda *_: None).exit_code == 0
        self.agent.home(place)
        return took

    def bring(self) -> tuple[float, float]:
        """Seconds from asking what the job made to all of it home, and from the job's own end to the same."""
        run_id = f"r-bench{next(_numbers)}"
        place = rundir.run_dir(run_id, 1)
        stamp = self.folder / "made-at"
        argv = ["/usr/bin/env", "python3", "-c", _MAKE, str(self.tree), str(stamp)]
        self.agent.ship(place, self.folder, [])
        self.agent.start(place, rundir.spec(run_id, 1, argv, ".", {}, _NO_LIMIT, 1_000_000, 5.0))
        status = self.agent.follow(place, lambda *_: None)
        assert status.exit_code == 0, status
        store = ArtifactStore(self.folder / f"store{next(_numbers)}")
        began = time.time()
        outputs = self.agent.outputs(place)
        with store.batch() as open_writer:
            self.agent.fetch(place, outputs.entries, open_writer)
        ended = time.time()
        assert not outputs.left_out
        self.done_with(store.root)
        self.done_with(self.line.server.home / place / "work" / "made")
        return ended - began, ended - float(stamp.read_text())

    # -- theirs

    def _cleared(self, work: Callable[[Path], object]) -> float:
        place = self.destination()
        took = timed(lambda: work(place))
        assert place.exists()
        self.done_with(place)
        return took

    def scp(self, *, up: bool, shared: bool = False) -> float:
        def work(place: Path) -> None:
            ends = [str(self.tree), f"{self.line.remote}:{place}"]
            if not up:
                ends = [f"{self.line.remote}:{self.tree}", str(place)]
            run(["scp", "-q", "-r", *self.line.options(shared=shared), *ends])

        return self._cleared(work)

    def sftp(self, *, up: bool) -> float:
        def work(place: Path) -> None:
            if up:
                batch = f"mkdir {place}\nput -r {self.tree}/* {place}/\n"
            else:
                place.mkdir()
                batch = f"get -r {self.tree}/* {place}/\n"
            run(["sftp", "-q", "-b", "-", *self.line.options(), self.line.remote], text=batch)

        return self._cleared(work)

    def rsync(self, *, up: bool, shared: bool = False) -> float:
        return self._cleared(lambda place: self.rsync_to(place, up=up, shared=shared))

    def rsync_to(self, place: Path, *, up: bool = True, shared: bool = False) -> None:
        ends = [f"{self.tree}/", f"{self.line.remote}:{place}/"]
        if not up:
            ends = [f"{self.line.remote}:{self.tree}/", f"{place}/"]
        run(["rsync", "-a", "-e", self.line.rsync_shell(shared=shared), *ends])


@contextmanager
def field(line: Line, folder: Path) -> Iterator[Field]:
    with Session.open(line.target, timeout_s=20) as session:
        agent = Agent(session)
        agent.install()
        try:
            yield Field(line, agent, folder)
        finally:
            agent.close()
            shutil.rmtree(folder, ignore_errors=True)


def transfers(
    tree: Tree, line: Line, folder: Path, rounds: int, noise: Noise, targets: dict[str, float | None]
) -> list[Row]:
    made: list[Row] = []
    with field(line, folder) as here:

        def anew(work: Callable[[], float]) -> Callable[[], float]:
            def once() -> float:
                here.new_tree(tree)
                os.sync()
                return work()

            return once

        up = {
            "ours": anew(here.ship_once),
            "scp": anew(lambda: here.scp(up=True)),
            "scp over a ControlMaster": anew(lambda: here.scp(up=True, shared=True)),
            "sftp": anew(lambda: here.sftp(up=True)),
            "rsync": anew(lambda: here.rsync(up=True)),
        }
        made += rows(f"{tree.what} up", line.name, measure(up, rounds, noise), targets)
        whole: list[float] = []

        def bring() -> float:
            alone, since_the_end = here.bring()
            whole.append(since_the_end)
            return alone

        down = {
            "ours": anew(bring),
            "scp": anew(lambda: here.scp(up=False)),
            "scp over a ControlMaster": anew(lambda: here.scp(up=False, shared=True)),
            "sftp": anew(lambda: here.sftp(up=False)),
            "rsync": anew(lambda: here.rsync(up=False)),
        }
        taken = measure(down, rounds, noise)
        made += rows(f"{tree.what} down", line.name, taken, targets)
        taken = {"ours": whole[-rounds:], "scp": taken["scp"]}
        made += rows(f"{tree.what} down, since the job's end", line.name, taken, {})
    return made


def unchanged(tree: Tree, line: Line, folder: Path, rounds: int, noise: Noise) -> list[Row]:
    """The second ship of a tree that has not changed."""
    with field(line, folder) as here:
        here.new_tree(tree)
        (here.tree / ".cloudrun").mkdir()  # as a project has it in which something was submitted before
        here.ship_again()
        theirs = here.destination()
        here.rsync_to(theirs)
        sides = {
            "ours": here.ship_again,
            "rsync over a ControlMaster": lambda: timed(lambda: here.rsync_to(theirs, shared=True)),
            "rsync": lambda: timed(lambda: here.rsync_to(theirs)),
        }
        taken = measure(sides, rounds, noise)
        shutil.rmtree(theirs)
    return rows(f"{tree.what} unchanged", line.name, taken, {"rsync over a ControlMaster": 1.0})
