"""Data of the user's own computer: which folders and files it may be, and what of them is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.runs import datasets
from cloudrun.runs.project import shipment


def goods(root: Path, *data: str, refuse_bytes: int = 1_000_000) -> Any:
    return shipment(root / "train.py", warn_bytes=refuse_bytes, refuse_bytes=refuse_bytes, data=data)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "big" / "deep").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "cloudrun.toml").touch()
    (root / "train.py").write_text("print(1)")
    (root / "big" / "a.csv").write_text("1,2,3\n" * 1000)
    (root / "big" / "deep" / "b.csv").write_text("4")
    monkeypatch.chdir(root)
    return root


def test_data_inside_the_project_may_be_larger_than_what_is_shipped(root: Path) -> None:
    with pytest.raises(UsageError, match="to ship"):
        goods(root, refuse_bytes=1000)
    small = goods(root, "big", refuse_bytes=1000)
    assert [entry.path for entry in small.entries] == ["cloudrun.toml", "train.py"]


@pytest.mark.parametrize("said", ["../big", "../sub/../big", "{root}/big", "{link}/big"])
def test_data_is_where_it_is_however_it_is_said(root: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root / "sub")
    source = said.format(root=root, link=root.parent / "link")
    (data,) = datasets.resolve([source], goods(root, source), cast("Any", None))
    assert data.link == "big"
    assert [entry.path for entry in data.entries] == ["a.csv", "deep/b.csv"]


def test_links_in_a_data_folder_are_what_they_lead_to(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "c.csv").write_text("7")
    (root / "big" / "far").symlink_to(root.parent / "elsewhere")
    (root / "big" / "one.csv").symlink_to(root.parent / "elsewhere" / "c.csv")
    (data,) = datasets.resolve(["big"], goods(root, "big"), cast("Any", None))
    assert [entry.path for entry in data.entries] == ["a.csv", "deep/b.csv", "far/c.csv", "one.csv"]


@pytest.mark.parametrize(
    ("link", "leads_to", "words"), [("nowhere", "absent", "leads nowhere"), ("ring", "..", "above it")]
)
def test_a_link_that_is_no_data_is_said(root: Path, link: str, leads_to: str, words: str) -> None:
    (root / "big" / "deep" / link).symlink_to(leads_to)
    with pytest.raises(UsageError, match=words):
        datasets.resolve(["big"], goods(root, "big"), cast("Any", None))


def test_data_that_cannot_be_read_is_the_users_to_mend(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = root / "big" / "loop"
    loop.symlink_to("loop")
    with pytest.raises(UsageError):
        datasets.resolve(["big"], goods(root, "big"), cast("Any", None))
    with pytest.raises(UsageError, match="there is no"):
        datasets.resolve(["big/" + "x" * 300], goods(root, "big"), cast("Any", None))


def test_a_script_is_not_data(root: Path) -> None:
    with pytest.raises(UsageError, match="the script is in"):
        datasets.resolve(["train.py"], goods(root), cast("Any", None))
