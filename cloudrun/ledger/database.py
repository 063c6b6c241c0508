"""One SQLite connection, used by one thread at a time, never carried across a fork; SQLite's errors become LedgerError.

A rollback journal lets one writer in at a time anyway, so threads take turns on one connection instead of polling
each other's file locks. The same lock is held while the process forks: a child never inherits half a transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cloudrun.core.errors import LedgerError

CACHE_KIB = 32 << 10  # at most: keys of a thousand cells are on as many pages, which are to be written once
BUSY_TIMEOUT_S = 15.0  # how long one process waits for another's transaction, which takes milliseconds

_turn = threading.RLock()
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)

# SQLite forbids a child to use its parent's connections, and that includes closing them: they are kept, unused.
_inherited: list[sqlite3.Connection] = []


class Database:
    """A file and the connection to it, opened at first use: `before` makes the file, `after` its tables."""

    def __init__(self, path: Path, before: Callable[[], None], after: Callable[[sqlite3.Connection], None]) -> None:
        self.path = path
        self._before = before
        self._after = after
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._closer: weakref.finalize[..., Database] | None = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for as many queries as the block makes."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing, on the disk when it returns. A block inside another one is part of that one: it
        is on the disk when that one is, and where it fails and the error is caught, the rest of that one is kept.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        with _turn:
            if self._closer is not None:
                self._closer()
            self._connection = None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with _turn, translated(self.path):
            connection = self._opened()
            with atomic(connection, begin):
                yield connection

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        self._before()
        connection = connect(self.path)
        try:
            self._after(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._pid = connection, os.getpid()
        self._closer = weakref.finalize(self, _close, connection, self._pid)
        # Not at exit: units end there with the ledger's help, and a thread of theirs may be in the middle of a query.
        self._closer.atexit = False
        return connection


def sqlite_version() -> str:
    """As in "3.40.1"."""
    return sqlite3.sqlite_version


def connect(path: Path) -> sqlite3.Connection:
    """A connection that starts no transaction by itself, waits for other writers, and commits to the disk.

    Never WAL: before 3.51.3 two writing connections can corrupt it, and one ledger meets many versions of SQLite.
    TRUNCATE syncs the journal's end, which DELETE does not: a power cut does not take the last transaction back.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone stops at the drive's cache
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def atomic(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """All of the block or nothing; inside another such block, a part of that one."""
    inside_another = connection.in_transaction
    if inside_another:
        with _nested(connection) if begin == "BEGIN IMMEDIATE" else nullcontext():
            yield
        return
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # the block, or the commit, did not get through
            connection.execute("ROLLBACK")


@contextmanager
def _nested(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("SAVEPOINT nested")
    try:
        yield
        connection.execute("RELEASE nested")
    except BaseException:
        if connection.in_transaction:  # a full disk takes the whole transaction back by itself
            connection.execute("ROLLBACK TO nested")
            connection.execute("RELEASE nested")
        raise


def _close(connection: sqlite3.Connection, pid: int) -> None:
    if pid == os.getpid():
        connection.close()
    else:
        _inherited.append(connection)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as LedgerError with what to do about them."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        raise LedgerError(f"the ledger {path}: {error}", next_step=_next_step(code, path)) from error


def _next_step(code: str, path: Path) -> str:
    if code == "SQLITE_FULL":
        return "free some space on that disk and try again"
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another process is writing to it for a long time; look for one that hangs, then try again"
    if code == "SQLITE_READONLY_DBMOVED":
        return "it was moved or deleted while open; run the command again"
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return f"make {path.parent} and what is in it readable and writable for you"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"move {path} away (its artifacts stay) or put a backup in its place"
    if code.startswith("SQLITE_IOERR"):
        return "check the disk, then try again"
    return "run the command again; if it stays, report it with this message"
