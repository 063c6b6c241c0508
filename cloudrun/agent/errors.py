"""The one error the agent tells its client about."""

from __future__ import annotations


class AgentError(Exception):
    """`kind` is "transfer", "usage" or "internal"; the client makes its own error of it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
