"""Projects as a diff: what is in work/ is the tree that was shipped, whatever was there, was edited, or was cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cloudrun.core import rundir
from cloudrun.core.errors import CloudrunError, ConnectionLost, TransferError
from cloudrun.core.records import DataSet, FileEntry
from cloudrun.core.rundir import RunDir, read_json, write_json
from cloudrun.ssh.agent import Agent
from tests.pipes import PipeSession

from .conftest import LARGE, agent_of, entries_of, place, remove, run, work, write

TREE = {"a.py": b"print(1)", "deep/er/b.bin": bytes(range(256)) * 20, "empty": b"", "again": b"print(1)"}


def test_a_tree_that_another_run_had_is_not_sent_again(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, {**TREE, "large": os.urandom(LARGE)})
    agent.ship(place(1), root, entries)
    remove(root)
    agent.ship(place(2), root, entries)
    assert entries_of(work(unit, 1)) == entries_of(work(unit, 2)) == entries


def test_the_same_content_under_two_names_is_sent_once(unit: PipeSession, agent: Agent, root: Path) -> None:
    content = os.urandom(LARGE)
    entries = write(root, {"one": content, "two": content})
    agent.ship(place(1), root, entries)
    assert entries_of(work(unit, 1)) == entries
    assert unit.sent < 1.5 * LARGE


def test_the_tree_of_a_run_that_is_home_is_taken_over_and_made_right(
    unit: PipeSession, agent: Agent, root: Path
) -> None:
    entries = write(root, {**TREE, **{f"many/{n}": b"%d" % n for n in range(50)}})
    agent.ship(place(1), root, entries)
    made = run(
        agent,
        place(1),
        "import os\nopen('a.py', 'w').write('print(2)')\nos.remove('many/3')\nos.link('many/4', 'many/four')\n"
        "os.mkdir('made'); open('made/x', 'w').write('x')\nos.symlink('/etc', 'link')\nos.chmod('many/5', 0o777)\n"
        "os.mkfifo('pipe')\nos.chmod('made', 0o500)\nos.chmod('deep', 0o777)",
    )
    assert {entry.path for entry in made.entries} >= {"a.py", "made/x"}
    agent.home(place(1))
    (root / "new").write_bytes(b"new")
    entries = entries_of(root)
    agent.ship(place(2), root, entries)
    assert not work(unit, 1).exists(), "its files were taken, not copied"
    assert entries_of(work(unit, 2)) == entries
    assert not list(work(unit, 2).rglob("link")) + list(work(unit, 2).rglob("pipe")) + list(work(unit, 2).rglob("made"))
    assert run(agent, place(2), "open('out', 'w')").entries[0].path == "out"
    assert [entry.path for entry in agent.outputs(place(2)).entries] == ["out"]


def test_a_run_that_is_not_home_keeps_its_files(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, TREE)
    agent.ship(place(1), root, entries)
    run(agent, place(1), "open('out', 'w').write('x')")
    agent.ship(place(2), root, entries)
    assert (work(unit, 1) / "out").read_text() == "x"
    assert entries_of(work(unit, 2)) == entries


def test_an_edit_on_the_unit_that_keeps_size_and_time_is_not_taken_for_the_file(
    unit: PipeSession, agent: Agent, root: Path
) -> None:
    entries = write(root, {"large": bytes(LARGE), "small": b"before"})
    agent.ship(place(1), root, entries)
    for name, content in (("small", b"behind"), ("large", b"\1" * LARGE)):
        path = work(unit, 1) / name
        info = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    agent.ship(place(2), root, entries)
    assert entries_of(work(unit, 2)) == entries


def test_a_ship_that_was_cut_goes_on_where_it_was(unit: PipeSession, root: Path) -> None:
    entries = write(root, {"large": os.urandom(LARGE), "other": os.urandom(LARGE)})
    unit.cut_after = LARGE + LARGE // 2
    with pytest.raises(ConnectionLost):
        agent_of(unit).ship(place(1), root, entries)
    assert not (work(unit, 1) / "other").exists(), "nothing half has its name"
    unit.cut_after, unit.sent = None, 0
    agent_of(unit).ship(place(1), root, entries)
    assert entries_of(work(unit, 1)) == entries
    assert unit.sent < LARGE * 3 // 4 + 300_000  # half of one file, and what a pipe and a chunk hold
    assert not (unit.home / place(1) / "incoming").exists()


def test_a_partial_file_that_was_spoilt_is_noticed_and_sent_anew(unit: PipeSession, root: Path) -> None:
    entries = write(root, {"large": os.urandom(LARGE)})
    unit.cut_after = LARGE // 2
    with pytest.raises(ConnectionLost):
        agent_of(unit).ship(place(1), root, entries)
    unit.cut_after = None
    (partial,) = (unit.home / place(1) / "incoming").iterdir()
    partial.write_bytes(bytes(partial.stat().st_size))
    with pytest.raises(TransferError, match="large"):
        agent_of(unit).ship(place(1), root, entries)
    agent_of(unit).ship(place(1), root, entries)
    assert entries_of(work(unit, 1)) == entries


def test_a_run_that_was_started_is_left_alone(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, {"a": b"before"})
    agent.ship(place(1), root, entries)
    run(agent, place(1), "open('a', 'w').write('behind')")
    agent.ship(place(1), root, entries)
    assert (work(unit, 1) / "a").read_text() == "behind"
    assert [entry.path for entry in agent.outputs(place(1)).entries] == ["a"]


def test_what_an_earlier_attempt_made_is_an_output_again(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, {"a": b"project", "b": b"project too"})
    agent.ship(place(1), root, entries)
    other = root / "earlier"
    agent.ship(place(1), other, write(other, {"a": b"changed", "model": os.urandom(LARGE)}), area="outputs")
    assert [entry.path for entry in run(agent, place(1), "pass").entries] == ["a", "model"]


def test_data_is_shared_read_only_and_no_output(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, {"x/rows.csv": b"1,2", "y": os.urandom(LARGE)})
    data = DataSet("k1", "data/rows", "here", root=root, entries=tuple(entries))
    assert not agent.has_data("k1")
    agent.bring_data(data)
    assert agent.has_data("k1")
    remove(root)
    agent.bring_data(data)  # nothing is sent for what is there
    one = DataSet("k2", "in/one.csv", "here", root=root, entries=tuple(write(root, {"one.csv": b"3"})))
    agent.bring_data(one)
    agent.ship(place(1), root, [])
    made = run(
        agent,
        place(1),
        "assert open('data/rows/x/rows.csv').read() + open('in/one.csv').read() == '1,23'; open('out', 'w')",
        data={"data/rows": "k1", "in/one.csv": "k2"},
    )
    assert [entry.path for entry in made.entries] == ["out"]
    assert made.left_out == ()
    assert (unit.home / rundir.data_dir("k1") / "y").stat().st_mode & 0o222 == 0


def test_data_that_is_not_there_or_in_the_projects_way_is_refused(agent: Agent, root: Path) -> None:
    with pytest.raises(CloudrunError, match="not on the unit"):
        run(agent, place(1), "pass", data={"rows": "absent"})
    agent.bring_data(DataSet("k", "rows", "here", root=root, entries=tuple(write(root, {"rows": b"1"}))))
    agent.ship(place(2), root, entries_of(root))
    with pytest.raises(TransferError, match="in the project already"):
        run(agent, place(2), "pass", data={"rows": "k"})


def test_a_manifest_of_very_many_files_is_no_single_frame(unit: PipeSession, agent: Agent, root: Path) -> None:
    digest = hashlib.sha256().hexdigest()
    entries = [FileEntry(f"d{n % 100}/{n}", 0, digest) for n in range(20_000)]
    agent.ship(place(1), root, entries)
    assert sum(len(names) for _, _, names in os.walk(work(unit, 1))) == 20_000


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
contents = st.one_of(
    st.binary(max_size=40), st.just(b"x" * 70_000), st.integers(0, 3).map(lambda n: b"%d" % n * 1_200_000)
)


def _tree(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without files that are folders of others."""
    return {
        name: content for name, content in files.items() if not any(other.startswith(name + "/") for other in files)
    }


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # an example takes a second: shrinking one would take an hour
)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(names, contents, max_size=6).map(_tree),
            st.lists(st.integers(1, 3_000_000), max_size=2),  # after how many bytes it is cut, try by try
            st.lists(st.tuples(names, st.binary(max_size=5)), max_size=3),  # what the job does to its files
            st.booleans(),  # whether it is home before the next is shipped
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_was_edited_and_cut_work_is_the_shipped_tree(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        unit = PipeSession(home)
        for number, (files, cuts, edits, is_home) in enumerate(steps):
            root = Path(folder, f"project{number}")
            root.mkdir()
            entries = write(root, files)
            for cut in cuts:
                unit.cut_after = cut
                with contextlib.suppress(ConnectionLost):
                    agent_of(unit).ship(place(number), root, entries)
            unit.cut_after = None
            agent_of(unit).ship(place(number), root, entries)
            assert entries_of(work(unit, number)) == entries
            directory = RunDir(home / place(number))
            assert set(read_json(directory.shipped) or {}) == {entry.path for entry in entries}
            for name, content in edits:
                with contextlib.suppress(OSError):
                    (work(unit, number) / name).write_bytes(content)
            write_json(directory.status, {"state": "exited"})
            if is_home:
                write_json(directory.home, {})
        unit.close()


def test_a_full_disk_on_the_unit_is_said_and_the_ship_goes_on_when_there_is_room(tmp_path: Path, root: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f"mount -t tmpfs -o size=6m none {small} && echo mounted && exec sleep 600"
    holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("no user namespaces here")
        into = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid))
        inside = PipeSession(small, before=(*into, "--wd=" + str(small)))
        entries = write(root, {"a": os.urandom(LARGE), "b": os.urandom(2 * LARGE)})
        with pytest.raises(TransferError, match="No space left"):
            agent_of(inside).ship(place(1), root, entries)
        found = subprocess.run(
            [*into, "ls", str(small / place(1) / "work")], capture_output=True, text=True, check=True
        )
        assert found.stdout.split() == ["a"]
        subprocess.run([*into, "mount", "-o", "remount,size=40m", str(small)], check=True)
        inside.sent = 0
        agent_of(inside).ship(place(1), root, entries)
        assert inside.sent < LARGE * 3 // 2, "it went on from where the disk was full"
        inside.close()
    finally:
        holder.kill()
        holder.communicate()
