"""Imports moto in less than half of its time, which is most of what a sandbox takes to start.

Left alone, moto makes five boto3 sessions to ask each for the names of AWS's regions, from files that every one of them
reads anew, and reads which instance types all regions of the world offer. With moto 5.2: 1.8 s, and 0.8 with this.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OFFERINGS = "instance_type_offerings"


@contextmanager
def moto_of(region: str) -> Iterator[None]:
    """What is imported of moto in here shares a boto3 session, and knows the instance types of `region` alone.

    For a process that serves one region; no other thread may use boto3 meanwhile.
    """
    from moto.core import base_backend, models
    from moto.utilities import utils

    read = utils.load_resource

    def read_what_is_needed(resource: str) -> Any:
        elsewhere = OFFERINGS in resource and f"/{region}." not in resource
        return [] if elsewhere else read(resource)

    boto3: Any = vars(models)["boto3"]
    session = functools.cache(boto3.Session)
    changed = [
        (boto3, "Session", session),
        (base_backend, "Session", session),
        (utils, read.__name__, read_what_is_needed),
    ]
    kept = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, kept, strict=True):
            setattr(module, name, value)
