"""Many files brought to the disk: together where that can be relied on, each of its own elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun.ledger import syncing


@pytest.fixture(params=[frozenset(), syncing.FILE_SYSTEMS], ids=["each of its own", "together"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "FILE_SYSTEMS", request.param)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("count", [0, 1, syncing.TOGETHER_FROM - 1, syncing.TOGETHER_FROM + 1])
def test_any_number_of_files_and_folders_can_be_brought_to_the_disk(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / str(number)).write_bytes(b"x" * number)
    syncing.sync_all(tmp_path / str(number) for number in range(count))
    syncing.sync_all([tmp_path] * count)


@pytest.mark.usefixtures("_way")
def test_what_is_not_there_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        syncing.sync_all(tmp_path / str(number) for number in range(syncing.TOGETHER_FROM + 1))


def test_a_file_system_that_nobody_vouches_for_is_not_synced_as_a_whole(tmp_path: Path) -> None:
    place = Path("/proc/self")
    if not place.exists():
        pytest.skip("not Linux")
    with (place / "status").open() as file:
        assert syncing._file_system_of(file.fileno()) == "proc"
    assert not syncing._sync_file_system(place)
