"""Functions and their arguments as bytes, and which modules these speak of.

cloudpickle writes a function of `__main__`, of a notebook, a closure or a lambda by value, one of a module by that
module's name, which has to be in the project or installed. A module that is neither is written by value here too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from cloudrun.core.errors import UsageError
from cloudrun.functions.needs import MAIN, file_of, is_installed


def pickled(what: Any, name: str, root: Path) -> tuple[bytes, frozenset[str]]:
    """The bytes, and the names of all modules that are in them. Raises UsageError where that cannot be; `name` is for
    people, `root` the project's."""
    file = io.BytesIO()
    with _by_value() as register:
        pickler = _Noting(file, root, register)
        try:
            pickler.dump(what)
        except Exception as error:  # a class may raise anything here
            raise UsageError(
                f"{name} cannot be pickled: {error}",
                next_step="open files, locks and connections inside the function, not outside",
            ) from error
    return file.getvalue(), frozenset(pickler.named)


class _Noting(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Is asked about every object but the plain ones, before it is written."""

    def __init__(self, file: io.BytesIO, root: Path, register: Any) -> None:
        super().__init__(file)
        self.named: set[str] = set()
        self._root = root
        self._register = register
        self._looked_at: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        self._note(obj.__name__ if isinstance(obj, ModuleType) else getattr(obj, "__module__", None))
        self._note(type(obj).__module__)
        return super().reducer_override(obj)

    def _note(self, name: Any) -> None:
        if not isinstance(name, str) or name in self.named:
            return
        self.named.add(name)
        module = sys.modules.get(name)
        if module is None or name == MAIN or name.partition(".")[0] in sys.stdlib_module_names:
            return
        file = file_of(name)
        if file is not None and not is_installed(file) and not file.is_relative_to(self._root):
            self._register(module)


@contextmanager
def _by_value() -> Iterator[Any]:
    """Gives what registers a module, for as long as this lasts: whoever else pickles here is not to notice."""
    before = set(cloudpickle.list_registry_pickle_by_value())
    added: list[ModuleType] = []

    def register(module: ModuleType) -> None:
        if module.__name__ not in before:
            cloudpickle.register_pickle_by_value(module)
            added.append(module)

    try:
        yield register
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
