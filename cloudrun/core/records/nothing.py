"""The mapping with nothing in it that records hold by default."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[str, Any] = MappingProxyType({})


def empty() -> Mapping[str, Any]:
    return EMPTY  # as a plain default it is refused on Python 3.11, where a mapping proxy has no hash
