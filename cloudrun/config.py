"""Settings, from wherever they are said: flag > CLOUDRUN_* > cloudrun.toml or [tool.cloudrun] > user file > default."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from cloudrun.core.errors import ConfigError
from cloudrun.core.settings import NAMES, Settings
from cloudrun.plan.setting_values import READERS
from cloudrun.plan.toml_lines import error_line, line_of, table_at

# Read elsewhere, or set for jobs: variables of ours that are no settings.
_PATHS = frozenset({"playbook"})
OTHER_VARIABLES = frozenset(
    {"CACHE_DIR", "DEBUG", "INDEX_CREDENTIALS", "SANDBOX_DIR", "SANDBOX_IDLE_S", "RUN_ID", "PARAMS"}
)


def key_of(field: str) -> str:
    """A setting's name in files, flags and variables: `deadline_s` is `deadline`, for the value says its own unit."""
    return field.removesuffix("_bytes").removesuffix("_s")


def is_setting(name: str) -> bool:
    return name in _FIELDS


def field_of(name: str) -> str:
    """The field of `Settings` for a setting's name. Raises ConfigError that names the nearest."""
    return _field(Given(name, None, "flag"))


def read(key: str, value: object) -> object:
    """One setting's value as `Settings` has it. Raises ValueError that says what is wrong with it."""
    field = _FIELDS[key]
    _require_unit(Given(key, value, "flag"), field)
    return READERS[field](value)


# both spellings are understood, with hyphens as well
_FIELDS = {key_of(field): field for field in NAMES} | {field: field for field in NAMES}


Origin = Literal["flag", "keyword"]


# -- where values come from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """One value as it was found. `origin` is for people: an `Origin`, "CLOUDRUN_DEADLINE", or the file's path."""

    key: str
    value: object
    origin: str
    path: Path | None = None
    text: str = ""  # the whole file, to find the line when it is needed
    table: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """What a path in it is relative to: its file's folder, or where one stands."""
        return Path.cwd() if self.path is None else self.path.parent

    @property
    def line(self) -> int | None:
        return line_of(self.text, self.table, self.key) if self.path else None

    @property
    def kind(self) -> str:
        """For programs: "flag", "variable" or "file"."""
        return "file" if self.path else "variable" if self.origin.startswith("CLOUDRUN_") else "flag"

    @property
    def where(self) -> str:
        """For people: a flag, a variable's name, or the file and line."""
        return f"{self.path}:{self.line}" if self.path else self.origin

    @property
    def name(self) -> str:
        """What the user typed to set it: a flag is called as the keyword and the key are."""
        return self.origin if self.origin.startswith("CLOUDRUN_") else self.key

    def error(self, problem: str, next_step: str) -> ConfigError:
        return ConfigError(problem, path=self.path, line=self.line, next_step=next_step)


def load(
    start: Path, flags: Mapping[str, object], environ: Mapping[str, str] | None = None, *, origin: Origin = "flag"
) -> Settings:
    """The settings for work begun in the folder `start`. A flag that is None was not given. With the origin "keyword"
    they are Python's, and a number is a duration in seconds.

    Raises ConfigError, naming file and line, for a file that cannot be read, an unknown key or an unusable value.
    """
    settings, _ = load_with_origins(start, flags, environ, origin=origin)
    return settings


def changed(settings: Settings, keywords: Mapping[str, object]) -> Settings:
    """Those settings with what these keywords of Python's say instead. Raises ConfigError as `load` does."""
    values, _ = _read_layer(_flags(keywords, "keyword"))
    if _is_of_another_metric(values, settings.metric):
        values["minimize"] = Settings.minimize
    return replace(settings, **values)


def load_with_origins(
    start: Path, flags: Mapping[str, object], environ: Mapping[str, str] | None = None, *, origin: Origin = "flag"
) -> tuple[Settings, Mapping[str, Given]]:
    """As `load`, and for each setting's name where its value was found; a setting at its default is not among them."""
    variables = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, Given] = {}
    user, project = _from_file(_user_path(variables), ()) or (), _project_file(start)[1]
    for layer in (user, project, _environment(variables), _flags(flags, origin)):
        in_layer, given = _read_layer(layer)
        if _is_of_another_metric(in_layer, values.get("metric")):
            values.pop("minimize", None)
            origins.pop("minimize", None)
        values |= in_layer
        origins |= given
    return Settings(**values), origins


def _is_of_another_metric(layer: Mapping[str, Any], metric: str | None) -> bool:
    """Whether what was said of `minimize` beside that metric says nothing of the one that this layer names: its own
    name, or its own `minimize`, does."""
    return "metric" in layer and layer["metric"] != metric and "minimize" not in layer


def _read_layer(layer: Iterable[Given]) -> tuple[dict[str, Any], dict[str, Given]]:
    """The value of each setting that is among them, and where it was found. Raises ConfigError."""
    values: dict[str, Any] = {}
    origins: dict[str, Given] = {}
    for given in layer:
        field = _field(given)
        if field in origins:
            raise given.error(f"{given.name} is set twice, also as {origins[field].name}", "keep one of the two")
        try:
            _require_unit(given, field)
            values[field] = READERS[field](given.value)
            if field in _PATHS:  # also when one stands elsewhere later
                values[field] = str(given.folder / Path(values[field]).expanduser())
        except ValueError as problem:
            raise given.error(f"{given.name}: {problem}", f"correct {given.name}, or leave it out") from problem
        origins[field] = given
    return values, origins


def _require_unit(given: Given, field: str) -> None:
    """`deadline = 2` in a file may be meant in hours. A number is clear only where the name says its unit."""
    named_with_unit = given.key.replace("-", "_") == field or given.origin == "keyword"
    value = given.value
    a_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if field.endswith("_s") and a_number and not named_with_unit:
        raise ValueError(f'{value} has no unit: write {given.key} = "{value}s", "{value}m" or "{value}h"')


def _field(given: Given) -> str:
    name = given.key.replace("-", "_")
    if name in _FIELDS:
        return _FIELDS[name]
    near = get_close_matches(name, [key_of(field) for field in NAMES], n=1)
    prefix = "CLOUDRUN_" if given.name.startswith("CLOUDRUN_") else ""
    meant = [f"{prefix}{key.upper()}" if prefix else key for key in near]
    hint = f"; did you mean {meant[0]}?" if meant else ""
    next_step = (
        f"write {meant[0]}, or leave it out" if meant else f"use one of {', '.join(key_of(field) for field in NAMES)}"
    )
    error = given.error(f"there is no setting {given.name}{hint}", next_step)
    error.instead = (given.name, meant[0]) if meant else None
    raise error


def _flags(flags: Mapping[str, object], origin: Origin) -> Iterator[Given]:
    for key, value in flags.items():
        if value is not None:
            yield Given(key, value, origin)


def _environment(variables: Mapping[str, str]) -> Iterator[Given]:
    for variable, value in sorted(variables.items()):
        key = variable.removeprefix("CLOUDRUN_")
        if key == variable or not value or key in OTHER_VARIABLES:
            continue
        # Google's Cloud Run tooling uses the prefix too: what is not even near a setting of ours is left alone.
        if key.lower() in _FIELDS or get_close_matches(key.lower(), _FIELDS, n=1, cutoff=0.8):
            yield Given(key.lower(), value, variable)


def table_in_pyproject(folder: Path) -> bool:
    """Whether the folder's pyproject.toml speaks of cloudrun. Raises ConfigError for one that nobody can read."""
    return _from_file(folder / "pyproject.toml", ("tool", "cloudrun")) is not None


def files(start: Path, environ: Mapping[str, str] | None = None) -> list[Path]:
    """The files that are read for work begun in `start`, also where nothing is set in them. Raises ConfigError."""
    user = _user_path(os.environ if environ is None else environ)
    own = [] if _from_file(user, ()) is None else [user]
    path, _ = _project_file(start)
    return own if path is None else [*own, path]


def _user_path(variables: Mapping[str, str]) -> Path:
    base = variables.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - no error without a home
    return Path(base) / "cloudrun" / "config.toml"


def _project_file(start: Path) -> tuple[Path | None, Sequence[Given]]:
    """The nearest file at or above `start`, and what it says; in one folder cloudrun.toml wins over pyproject.toml."""
    folder = start.absolute()
    for place in (folder, *folder.parents):
        for path, table in ((place / "cloudrun.toml", ()), (place / "pyproject.toml", ("tool", "cloudrun"))):
            said = _from_file(path, table)
            if said is not None:
                return path, said
    return None, ()


def _from_file(path: Path, table: tuple[str, ...]) -> Sequence[Given] | None:
    """The values in one table of a file; None where there is no such file or table."""
    text = _read(path)
    # A pyproject.toml that never says our name is none of our business, not even when it is malformed.
    if text is None or (table and table[-1] not in text):
        return None
    found = table_at(_parse(path, text), table)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        line = line_of(text, table[:-1], table[-1])
        raise ConfigError(f"{table[-1]} is not a table", path=path, line=line, next_step=f"write [{'.'.join(table)}]")
    return [Given(key, value, str(path), path, text, table) for key, value in found.items()]


def _read(path: Path) -> str | None:
    """The file's text; None where there is no file."""
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError("this is not UTF-8 text", path=path, line=line, next_step=f"save {path} as UTF-8") from error
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        raise ConfigError(problem, path=path, next_step=f"make {path} readable, or move it away") from error


def _parse(path: Path, text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib lets int()'s own ValueError and deep nesting through
        line = error_line(error, text) if isinstance(error, ValueError) else None
        problem = str(error).partition(" (at ")[0] or "it is nested too deeply"
        raise ConfigError(
            f"this is not valid TOML: {problem}", path=path, line=line, next_step=f"correct {path}, then type it again"
        ) from error
