"""Ports for servers that are told which one to listen at, and so are started after it was chosen."""

from __future__ import annotations

import random
import socket


def free_port(address: str = "127.0.0.1") -> int:
    """Below the range that systems hand out by themselves (from 32768 on Linux): no connection that is made meanwhile
    can take it; and not where the sandbox's machines have theirs."""
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
