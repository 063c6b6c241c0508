"""Loading a model that a run made: its passport first, then joblib."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from cloudrun.core.errors import LedgerError, PassportMismatch
from cloudrun.core.records import Passport

SUFFIXES = (".joblib", ".pkl", ".pickle")
CHECKED_PACKAGES = ("scikit-learn", "numpy")  # their pickles are not made to be read by another minor version


def is_model(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def load_model(file: IO[bytes], name: str, passport: Passport | None, *, allow_version_mismatch: bool) -> Any:
    """Unpickle a model from a file whose digest has been checked.

    Raises PassportMismatch before anything is unpickled, LedgerError where it does not load.
    """
    if not allow_version_mismatch:
        check_passport(passport, name)
    import joblib  # a third of a second, and most runs are never loaded

    try:
        return joblib.load(file)
    except Exception as error:  # a pickle runs code of its own, which may raise anything
        raise LedgerError(
            f"{name} does not load: {type(error).__name__}: {error}",
            next_step="install what the script imports here; a class defined in the script itself has to be"
            " imported from a module instead",
        ) from error


def check_passport(passport: Passport | None, name: str) -> None:
    """Raises PassportMismatch where python, scikit-learn or numpy here differ in major.minor from the passport's."""
    if passport is None:
        raise _mismatch(f"{name} has no passport: nobody knows what it was made with")
    if different := list(differences(passport, _python_here(), _version_here)):
        raise _mismatch(f"{name} was made with {' and '.join(different)}")


def differences(passport: Passport, python: str, version_of: Callable[[str], str | None]) -> Iterator[str]:
    """What differs, as in "numpy 2.1.0 (here 1.26.4)". A package that the passport does not have is not compared."""
    if _minor(passport.python) != _minor(python):
        yield f"python {passport.python} (here {python})"
    for package in CHECKED_PACKAGES:
        made_with = passport.packages.get(package)
        if not made_with:
            continue
        here = version_of(package)
        if here is None or _minor(made_with) != _minor(here):
            yield f"{package} {made_with} (here {here or 'not installed'})"


def _mismatch(message: str) -> PassportMismatch:
    return PassportMismatch(
        message,
        next_step="load it with those versions, or go on anyway with allow_version_mismatch=True"
        " (--allow-version-mismatch)",
    )


def _minor(version_text: str) -> tuple[str, ...]:
    return tuple(version_text.split(".")[:2])


def _python_here() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _version_here(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
