"""The user's own tags: in which forms they may be written, and what EC2 or we refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun import config
from cloudrun.core.errors import ConfigError
from cloudrun.plan.tagging import KEY_MAX, OURS_MAX, TAGS_MAX, VALUE_MAX, read_tags, tags_of


@pytest.mark.parametrize(
    "value", [{"team": "ml", "cost": "a=b"}, ["team=ml", "cost=a=b"], ("team=ml", "cost=a=b"), "team=ml, cost=a=b"]
)
def test_every_form_says_the_same(value: object) -> None:
    assert tags_of(read_tags(value)) == {"team": "ml", "cost": "a=b"}


def test_what_is_as_long_as_ec2_allows_is_taken() -> None:
    most = {f"{number:0{KEY_MAX}}": "x" * VALUE_MAX for number in range(TAGS_MAX - OURS_MAX)}
    assert tags_of(read_tags(most)) == most


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"k" * (KEY_MAX + 1): ""}, "129 characters, and EC2 takes 128"),
        ({"k": "v" * (VALUE_MAX + 1)}, "257 characters, and EC2 takes 256"),
        ({str(number): "" for number in range(TAGS_MAX - OURS_MAX + 1)}, "41 are too many"),
        ({"AWS:mine": "1"}, "are AWS's own"),
        ({"cloudrun:expires-at": "never"}, "cloudrun sets itself"),
        ({"Name": "mine"}, "cloudrun sets itself"),
        ({"": "x"}, "has no key"),
        ({"k": 1}, "not a text"),
        (["team"], "as in team=ml"),
        (["a=1", "a=2"], "given twice"),
        (7, "no table of tags"),
    ],
)
def test_what_would_be_refused_is_refused_here(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_tags(value)


def test_a_table_in_the_project_file_and_a_variable_are_read(tmp_path: Path) -> None:
    (tmp_path / "cloudrun.toml").write_text('tags = { team = "ml" }\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert config.load(tmp_path, {}, home).tags == ("team=ml",)
    assert config.load(tmp_path, {}, {**home, "CLOUDRUN_TAGS": "a=1,b=2"}).tags == ("a=1", "b=2")
    with pytest.raises(ConfigError, match="cloudrun sets itself"):
        config.load(tmp_path, {"tags": ["cloudrun:ledger=x"]}, home)
