"""The file that `cloudrun init` writes: our own parser takes it, as it is and with every line of it in force."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.config import key_of, load
from cloudrun.core.errors import UsageError
from cloudrun.core.settings import NAMES, Settings
from cloudrun.setup.template import ENTRIES, SECTIONS, toml_text, value_text

NOBODY = {"XDG_CONFIG_HOME": "/nonexistent"}


def loaded(folder: Path, text: str) -> Settings:
    (folder / "cloudrun.toml").write_text(text)
    return load(folder, {}, NOBODY)


def test_every_setting_is_in_it_once() -> None:
    counted = Counter(entry.field for _, entries in SECTIONS for entry in entries)
    assert counted == Counter(NAMES), "a new setting needs an Entry in cloudrun/setup/template.py"
    assert all(entry.meaning for entry in ENTRIES.values())


def test_without_a_choice_the_defaults_hold(tmp_path: Path) -> None:
    assert loaded(tmp_path, toml_text({})) == Settings()


def test_every_line_of_it_could_be_in_force(tmp_path: Path) -> None:
    settings = [line.removeprefix("# ") for line in toml_text({}).splitlines() if " = " in line]
    assert len(settings) == len(NAMES)
    assert loaded(tmp_path, "\n".join(settings)).deadline_s == Settings().deadline_s


def test_what_is_chosen_is_in_force_in_the_words_it_was_chosen_in(tmp_path: Path) -> None:
    text = toml_text({"provider": "aws", "deadline": "2h30m", "spot": True, "memory": "6GB", "fallback_types": "a,b"})
    assert 'deadline = "2h30m"' in text
    settings = loaded(tmp_path, text)
    assert (settings.provider, settings.deadline_s, settings.spot) == ("aws", 9000, True)
    assert (settings.memory_bytes, settings.fallback_types) == (6_000_000_000, ("a", "b"))


@pytest.mark.parametrize(("key", "value"), [("deadline", "soon"), ("deadline", "2"), ("provider", "gcp")])
def test_an_unusable_choice_is_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=key):
        toml_text({key: value})


@given(st.text(min_size=1).filter(lambda text: bool(text.strip()) and text.isprintable()))
def test_any_text_survives_the_file(text: str) -> None:
    import tomllib

    assert tomllib.loads(toml_text({"region": text}))["region"] == text.strip()


@pytest.mark.parametrize("field", NAMES)
def test_a_default_for_people_is_one_that_a_file_takes(field: str, tmp_path: Path) -> None:
    default = getattr(Settings(), field)
    text = value_text(field, default)
    assert bool(text) == (default not in (None, ()))
    if text and field.endswith(("_s", "_bytes")):
        assert getattr(loaded(tmp_path, f'{key_of(field)} = "{text}"'), field) == default
