"""Settings from flags, variables and files: who wins, and what a mistake is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cloudrun.config import changed, key_of, load, load_with_origins
from cloudrun.core.errors import ConfigError
from cloudrun.core.settings import NAMES, Settings
from cloudrun.plan.setting_values import READERS


@pytest.fixture
def home(tmp_path: Path) -> Mapping[str, str]:
    """Variables under which nothing outside `tmp_path` is read as the user's configuration."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "home")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def user_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "home" / "cloudrun").mkdir(parents=True)
    (tmp_path / "home" / "cloudrun" / "config.toml").write_text(text)


def refusal(project: Path, home: Mapping[str, str], flags: Mapping[str, object] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(project, flags or {}, home)
    assert caught.value.next_step
    assert caught.value.exit_code == 2
    return caught.value


def test_every_setting_has_a_reader() -> None:
    assert tuple(READERS) == NAMES


def test_every_default_is_what_its_reader_makes_of_it() -> None:
    defaults = Settings()
    for name in NAMES:
        if getattr(defaults, name) is not None:
            assert READERS[name](getattr(defaults, name)) == getattr(defaults, name)


def test_without_a_word_from_anybody_the_defaults_hold(project: Path, home: Mapping[str, str]) -> None:
    assert load(project, {"region": None}, home) == Settings()


def test_minimize_belongs_to_the_metric_that_it_was_said_beside(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text('metric = "r2"\nminimize = true\n')
    assert load(project, {}, home).minimize
    assert load(project, {"metric": "r2"}, home).minimize
    assert not load(project, {"metric": "accuracy"}, home).minimize
    assert load(project, {"metric": "cost", "minimize": True}, home).minimize
    settings, origins = load_with_origins(project, {}, {**home, "CLOUDRUN_METRIC": "accuracy"})
    assert (settings.minimize, "minimize" in origins) == (False, False)
    assert changed(load(project, {}, home), {"metric": "r2"}).minimize
    assert not changed(load(project, {}, home), {"metric": "accuracy"}).minimize


def test_a_flag_beats_a_variable_beats_the_project_beats_the_user(
    tmp_path: Path, project: Path, home: Mapping[str, str]
) -> None:
    user_file(tmp_path, 'region = "user"\ninstance_type = "user"\nimage = "user"\nmetric = "user"\n')
    (project / "cloudrun.toml").write_text('region = "file"\ninstance_type = "file"\nimage = "file"\n')
    variables = {**home, "CLOUDRUN_REGION": "variable", "CLOUDRUN_INSTANCE_TYPE": "variable"}
    settings, origins = load_with_origins(project, {"region": "flag"}, variables)
    assert (settings.region, settings.instance_type, settings.image, settings.metric) == (
        "flag",
        "variable",
        "file",
        "user",
    )
    assert origins["region"].origin == "flag"
    assert origins["instance_type"].origin == "CLOUDRUN_INSTANCE_TYPE"
    assert (origins["image"].path, origins["image"].line) == (project / "cloudrun.toml", 3)
    assert (origins["metric"].path, origins["metric"].line) == (tmp_path / "home/cloudrun/config.toml", 4)
    assert "deadline_s" not in origins


def test_the_nearest_file_upward_is_the_project_s(project: Path, home: Mapping[str, str]) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    (project / "cloudrun.toml").write_text('region = "far"\nmetric = "f1"')
    (project / "a" / "pyproject.toml").write_text('[tool.cloudrun]\nregion = "near"')
    settings = load(below, {}, home)
    assert (settings.region, settings.metric) == ("near", None)


def test_cloudrun_toml_wins_over_pyproject_toml_beside_it(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text("")
    (project / "pyproject.toml").write_text('[tool.cloudrun]\nregion = "eu-west-1"')
    assert load(project, {}, home).region is None


def test_a_pyproject_toml_that_is_not_about_us_is_passed_by(project: Path, home: Mapping[str, str]) -> None:
    below = project / "sub"
    below.mkdir()
    (project / "cloudrun.toml").write_text('region = "eu-west-1"')
    (below / "pyproject.toml").write_text("not = TOML at all")
    assert load(below, {}, home).region == "eu-west-1"


def test_durations_and_sizes_are_read_as_people_write_them(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text('deadline = "1h30m"\nship-refuse = "1.5GB"\noutput_max = 10\ngrace_s = 5')
    settings = load(project, {}, {**home, "CLOUDRUN_BOOT_TIMEOUT": "90s"})
    assert (settings.deadline_s, settings.ship_refuse_bytes, settings.output_max_bytes) == (5400, 1_500_000_000, 10)
    assert (settings.grace_s, settings.boot_timeout_s) == (5, 90)


@pytest.mark.parametrize("text", ["deadline = 2", "deadline = '2'"])
def test_a_duration_without_a_unit_is_refused(project: Path, home: Mapping[str, str], text: str) -> None:
    (project / "cloudrun.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"cloudrun\.toml:1: .*no unit.*2h"):
        load(project, {}, home)


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("yes", True), ("False", False), ("off", False)])
def test_a_switch_in_a_variable_is_a_word(project: Path, home: Mapping[str, str], text: str, expected: bool) -> None:
    assert load(project, {}, {**home, "CLOUDRUN_SPOT": text}).spot is expected


def test_an_empty_variable_is_not_set(project: Path, home: Mapping[str, str]) -> None:
    assert load(project, {}, {**home, "CLOUDRUN_REGION": ""}).region is None


def test_variables_that_are_no_settings_are_left_alone(project: Path, home: Mapping[str, str]) -> None:
    others = {"CLOUDRUN_DEBUG": "1", "CLOUDRUN_SANDBOX_IDLE_S": "3", "CLOUDRUN_SERVICE_ACCOUNT": "of another tool"}
    assert load(project, {}, {**home, **others}) == Settings()


def test_a_mistyped_variable_is_told(project: Path, home: Mapping[str, str]) -> None:
    error = refusal(project, {**home, "CLOUDRUN_DEADLNE": "1h"})
    assert "CLOUDRUN_DEADLNE" in str(error)
    assert "did you mean CLOUDRUN_DEADLINE?" in str(error)


def test_an_unknown_key_names_file_line_and_the_nearest_key(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text('region = "eu-west-1"\n\ndeadlin = "4h"\n')
    error = refusal(project, home)
    assert str(error) == f"{project / 'cloudrun.toml'}:3: there is no setting deadlin; did you mean deadline?"
    assert (error.path, error.line) == (project / "cloudrun.toml", 3)


def test_an_unknown_key_in_pyproject_names_the_line_in_our_table(project: Path, home: Mapping[str, str]) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.other]\nregoin = 1\n[tool.cloudrun]\nmetric = "f1"\nregoin = "eu-west-1"\n'
    )
    assert refusal(project, home).line == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("deadline = true", "not a duration"),
        ("deadline = inf", "not a duration"),
        ('deadline = "4 parsecs"', "not a duration"),
        ('deadline = "0s"', "not more than zero"),
        ("deadline = [1]", "not a duration"),
        ('output_max = "much"', "not a size"),
        ("output_max = -1", "less than zero"),
        ("output_max_files = 0", "whole number"),
        ("volume_gib = 1.5", "whole number"),
        ("region = 3", "not a text"),
        ('region = " "', "not a text"),
        ("spot = 1", "neither true nor false"),
        ('provider = "gcp"', "none of sandbox, aws"),
        ('on_exit = "kep"', "did you mean keep?"),
    ],
)
def test_an_unusable_value_names_file_and_line(project: Path, home: Mapping[str, str], text: str, problem: str) -> None:
    (project / "cloudrun.toml").write_text(f"# ours\n{text}\n")
    error = refusal(project, home)
    assert str(error).startswith(f"{project / 'cloudrun.toml'}:2: ")
    assert problem in str(error)


def test_an_unusable_flag_or_variable_is_named(project: Path, home: Mapping[str, str]) -> None:
    assert str(refusal(project, home, {"deadline": "soon"})).startswith("deadline: 'soon'")
    assert str(refusal(project, {**home, "CLOUDRUN_DEADLINE": "soon"})).startswith("CLOUDRUN_DEADLINE: 'soon'")


def test_one_setting_under_two_names_is_refused(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text('deadline = "4h"\ndeadline_s = 3600\n')
    error = refusal(project, home)
    assert "twice" in str(error)
    assert error.line == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'region = "eu\nx = 1', 1),
        (b'region = "a"\nregion = "b"\n', 2),
        (b'region = "a"\nmetric = [1,\n', 2),
        (b'region = "a"\n\xff\xfe', 2),
        (b"volume_gib = " + b"9" * 5000, 1),
    ],
)
def test_malformed_toml_names_file_and_line(project: Path, home: Mapping[str, str], content: bytes, line: int) -> None:
    (project / "cloudrun.toml").write_bytes(content)
    error = refusal(project, home)
    assert str(error).startswith(f"{project / 'cloudrun.toml'}:{line}: this is not ")


def test_a_deeply_nested_file_is_refused(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").write_text("x = " + "[" * 20_000)
    assert "nested" in str(refusal(project, home))


def test_a_section_that_is_no_table_is_refused(project: Path, home: Mapping[str, str]) -> None:
    (project / "pyproject.toml").write_text("[tool]\ncloudrun = 3\n")
    error = refusal(project, home)
    assert "not a table" in str(error)
    assert error.line == 2


def test_a_folder_in_the_file_s_place_is_refused(project: Path, home: Mapping[str, str]) -> None:
    (project / "cloudrun.toml").mkdir()
    assert "cannot be read" in str(refusal(project, home))


def test_a_key_is_called_without_its_unit() -> None:
    assert [key_of(name) for name in ("deadline_s", "ship_warn_bytes", "volume_gib")] == [
        "deadline",
        "ship_warn",
        "volume_gib",
    ]
