"""Environments that the region keeps: the next machine has them, and nothing that a job did to its own is in them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from cloudrun import process_unit
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.sandbox.environments import KEPT_MEANWHILE, Environments
from tests.sandbox.conftest import Project, wait_for

PYTHON = "{}.{}".format(*sys.version_info)
PINS = ("joblib==1.5.0",)
FINGERPRINT = environment_fingerprint(PYTHON, "x86_64", PINS)


def record(home: Path, name: str, **changes: object) -> Path:
    """A machine's home with the record of one environment, as the playbook writes it."""
    folder = home / ".cloudrun" / "envs" / name
    folder.mkdir(parents=True)
    values = {"python": PYTHON, "architecture": "x86_64", "requirements": list(PINS), **changes}
    (folder / ".ready").write_text(json.dumps(values))
    return folder


def test_a_second_machine_boots_with_the_environment_of_the_first(project: Project) -> None:
    # A version that no other test asks for, so that this one sees it being built.
    script = project.write(
        "job.py", "# /// script\n# dependencies = ['joblib==1.4.2']\n# ///\nimport joblib; print(joblib.__version__)\n"
    )
    spoil = (
        "echo 'raise SystemExit(\"spoiled\")' > $(echo .cloudrun/envs/*/lib/python3*/site-packages/joblib/__init__.py)"
    )
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        first = unit.send_run(script)
        unit.run(spoil)
    fingerprint = first.environment_digest
    kept = Path(os.environ["CLOUDRUN_SANDBOX_DIR"]) / "cache" / "environments" / fingerprint
    wait_for(kept.exists, "the region to build the environment")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        second = unit.send_run(script)
        written = unit.run(f"touch .cloudrun/envs/{fingerprint}/lib/new")
    assert first.timings.provision_s > 0
    assert second.timings.provision_s == 0
    assert second.log() == first.log() == "1.4.2\n"
    assert written.exit_code != 0, "machines see it read-only"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("0" * 32, {}),  # not what it says it is
        (environment_fingerprint(PYTHON, "x86_64", ["joblib @ file:///tmp/evil"]), {"requirements": ["joblib @ file:///tmp/evil"]}),
        (environment_fingerprint(PYTHON, "x86_64", ["--index-url=x"]), {"requirements": ["--index-url=x"]}),
        (FINGERPRINT, {"requirements": None}),
    ],
)  # fmt: skip
def test_a_record_that_is_not_exact_pins_of_its_own_name_builds_nothing(
    tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    record(tmp_path / "home", name, **changes)
    kept = Environments(tmp_path / "kept", None, {}, None)
    assert kept.learn(tmp_path, "home") == []
    kept.stop()


def test_a_record_of_exact_pins_is_learnt_once(tmp_path: Path) -> None:
    record(tmp_path / "home", FINGERPRINT)
    kept = Environments(tmp_path / "kept", None, {}, None)
    assert kept.learn(tmp_path, "home") == [FINGERPRINT]
    (tmp_path / "kept" / FINGERPRINT).mkdir()
    assert kept.learn(tmp_path, "home") == []
    kept.stop()


@pytest.mark.parametrize("trap", ["fifo", "link", "huge", "binary", "folder"])
def test_traps_in_a_machines_home_are_passed_over(tmp_path: Path, trap: str) -> None:
    marker = record(tmp_path / "home", FINGERPRINT) / ".ready"
    marker.unlink()
    match trap:
        case "fifo":
            os.mkfifo(marker)
        case "link":
            marker.symlink_to("/etc/passwd")
        case "huge":
            marker.write_bytes(b"[" * 5_000_000)
        case "binary":
            marker.write_bytes(b"\xff\xfe")
        case "folder":
            marker.mkdir()
    kept = Environments(tmp_path / "kept", None, {}, None)
    assert kept.learn(tmp_path, "home") == []
    kept.stop()


@pytest.mark.parametrize(
    "trap", ["home", "home/.cloudrun", "home/.cloudrun/envs", f"home/.cloudrun/envs/{FINGERPRINT}"]
)
def test_no_link_of_a_machines_disk_is_followed(tmp_path: Path, trap: str) -> None:
    """Where the region runs as root, it could read what the machine may not."""
    record(tmp_path / "disk" / "home", FINGERPRINT)
    linked = tmp_path / "disk" / trap
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    kept = Environments(tmp_path / "kept", None, {}, None)
    assert kept.learn(tmp_path / "disk", "home") == []
    kept.stop()


def test_the_mirrors_address_is_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it can use the index that the user logs in to; command lines are everybody's to read."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example")
    uv = tmp_path / "uv"
    # What it was told is there before its words are: a reader who sees the words finds both.
    uv.write_text(f'#!/bin/sh\nenv >> {tmp_path}/told; echo "$@" >> {tmp_path}/words; mkdir -p {tmp_path}/done\n')
    uv.chmod(0o755)
    record(tmp_path / "home", FINGERPRINT)
    kept = Environments(tmp_path / "kept", uv, {PYTHON: Path("/bin/true")}, "http://127.0.0.1:1/secret/simple/")
    assert kept.learn(tmp_path, "home") == [FINGERPRINT]
    wait_for(lambda: "install" in (tmp_path / "words").read_text() if (tmp_path / "done").exists() else False, "uv")
    kept.stop()
    assert "secret" not in (tmp_path / "words").read_text()
    told = (tmp_path / "told").read_text()
    assert "UV_DEFAULT_INDEX=http://127.0.0.1:1/secret/simple/" in told
    assert "proxy.example" not in told


def test_no_more_are_built_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine can name any number of them."""
    built: list[str] = []
    kept = Environments(tmp_path / "kept", None, {}, None)

    def build(folder: Path, record: object) -> bool:
        folder.mkdir()
        built.append(folder.name)
        return True

    def has_room() -> bool:
        asked.append(has_it := room())
        return has_it

    asked: list[bool] = []
    room = kept._has_room
    monkeypatch.setattr("cloudrun.sandbox.environments.ROOM_BYTES", 0)
    monkeypatch.setattr(kept, "_has_room", has_room)
    monkeypatch.setattr(kept, "_build", build)
    for number in range(KEPT_MEANWHILE + 4):
        pins = [f"joblib==1.0.{number}"]
        home = tmp_path / str(number)
        record(home / "home", environment_fingerprint(PYTHON, "x86_64", pins), requirements=pins)
        kept.learn(home, "home")
    wait_for(lambda: len(asked) == KEPT_MEANWHILE + 4, "all that was asked for")
    assert asked[-4:] == [False] * 4
    assert len(built) == len(kept.ready()) == KEPT_MEANWHILE
    kept.stop()


def test_half_built_environments_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / f"building-{FINGERPRINT}" / "lib").mkdir(parents=True)
    (tmp_path / FINGERPRINT).mkdir()
    kept = Environments(tmp_path, None, {}, None)
    kept.stop()
    assert [folder.name for folder in tmp_path.iterdir()] == [FINGERPRINT]
    assert kept.ready() == {FINGERPRINT: tmp_path / FINGERPRINT}
