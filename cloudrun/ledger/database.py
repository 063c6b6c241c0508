"""One SQLite connection, used by one thread at a time, never carried across a fork; SQLite's errors become LedgerError.

A rollback journal lets one writer in at a time anyway, so threads take turns on one connection instead of polling
each other's file locks. What several threads write at the same time is one commit (group commit): whoever has written
lets those in who wait to write, and returns when all of it is on the disk. The lock is held while the process forks.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from cloudrun.core.errors import LedgerError

CACHE_KIB = 32 << 10  # at most: keys of a thousand cells are on as many pages, which are to be written once
JOURNAL_BYTES = 4 << 20  # what stays of the rollback journal's file between transactions
BUSY_TIMEOUT_S = 15.0  # how long one process waits for another's transaction, which takes milliseconds

GROUP_MOST = 64  # transactions in one commit: the first of them waits for the last
GROUP_WAIT_S = 0.5  # for others who are about to write
GROUP_LOOK_S = 0.05  # how soon one that waits for others notices that they have given up

_turn = threading.RLock()
_moved = threading.Condition(_turn)  # whoever waited for the turn has had it
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_open: set[Database] = set()  # those with a group
_blocks = 0  # that whoever has the turn is in, of any database


def _before_fork() -> None:
    """A child never inherits half a transaction: at its end SQLite would take it back, in the parent's file."""
    _turn.acquire()
    for database in list(_open):
        if not database.is_inside:  # a block that forks is not over: what it has written may still be taken back
            database.commit()


def _after_fork() -> None:
    for database in list(_databases):
        database.forked()
    _turn.release()


os.register_at_fork(before=_before_fork, after_in_parent=_turn.release, after_in_child=_after_fork)

# SQLite forbids a child to use its parent's connections, and that includes closing them: they are kept, unused.
_inherited: list[sqlite3.Connection] = []


class _Group:
    """Transactions of several threads that are one of SQLite's. `error`: why none of it is on the disk."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.members = 0
        self.half_written = False  # by a block that goes on, or that an interrupt has kept from taking its part back
        self.committing = False  # the disk was asked; what came of it is not asked for twice
        self.over = False
        self.error: sqlite3.Error | None = None

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child that was forked in one of its blocks, which it is to leave alone."""
        return self.pid != os.getpid()


class Database:
    """A file and the connection to it, opened at first use: `before` makes the file, `after` its tables."""

    def __init__(self, path: Path, before: Callable[[], None], after: Callable[[sqlite3.Connection], None]) -> None:
        self.path = path
        self._before = before
        self._after = after
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._closer: weakref.finalize[..., Database] | None = None
        self._group: _Group | None = None  # what is written and not committed
        self._inside = False  # whoever has the turn is in a block
        self._waiting: set[int] = set()  # threads that are about to write
        self._forked_inside = False
        _databases.add(self)

    @property
    def is_inside(self) -> bool:
        """Whether the thread that has the turn is in a block."""
        return self._inside

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for as many queries as the block makes: of what is on the disk, and nothing else."""
        with _turn, translated(self.path):
            connection = self._opened()
            if self._inside:
                yield connection
                return
            self.commit()
            self._commit_others()
            with atomic(connection, "BEGIN"), self._block():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing, on the disk when it returns. A block inside another one is part of that one: it
        is on the disk when that one is, and where it fails and the error is caught, the rest of that one is kept.
        """
        group: _Group | None = None
        try:
            self._waiting.add(threading.get_ident())
            with _turn, translated(self.path):
                connection = self._opened()
                self._waiting.discard(threading.get_ident())
                if self._inside:
                    with _nested(connection):
                        yield connection
                    return
                group = self._joined(connection)
                with self._member(connection, group), self._block():
                    yield connection
        finally:
            self._waiting.discard(threading.get_ident())
            if group is not None:
                self._settle(group)
        if group.error is not None:
            raise _told(self.path, group.error) from group.error  # to each of them its own

    def close(self) -> None:
        with _turn:
            if self._pid == os.getpid() and not self._inside:
                self.commit()
            if self._closer is not None:
                self._closer()
            self._connection = None

    def forked(self) -> None:
        """In the child. Its SQLite takes the locks of its parent's transaction for its own, and keeps them for ever."""
        self._forked_inside = self._forked_inside or self._inside

    # -- a group, by whoever has the turn

    def _joined(self, connection: sqlite3.Connection) -> _Group:
        group = self._group
        if group is not None and (group.members >= GROUP_MOST or group.error or not self._is_open(group, connection)):
            self.commit()
        if self._group is None:
            self._commit_others()
            if connection.in_transaction:  # an interrupt came between this and the next line, once
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            self._group = _Group()
            _open.add(self)
        return self._group

    def _commit_others(self) -> None:
        """Of the same file, by other objects of this process: who waits for their lock would wait with the turn in his
        hand, which they need to commit."""
        for other in list(_open):
            if other is not self and other.path == self.path and not other.is_inside:
                other.commit()

    @staticmethod
    def _is_open(group: _Group, connection: sqlite3.Connection) -> bool:
        """Whether all is in the transaction that its members have written, and nothing else."""
        return connection.in_transaction and not (group.committing or group.half_written)

    @contextmanager
    def _member(self, connection: sqlite3.Connection, group: _Group) -> Iterator[None]:
        """What fails takes back its own part only. Where that is all there is, or SQLite has taken back the whole
        transaction (a full disk), the group is over."""
        is_first = not group.members
        group.half_written = True
        if not is_first:
            connection.execute("SAVEPOINT part")
        try:
            yield
            if group.is_inherited:
                return
            if not connection.in_transaction:  # the block has caught the error with which SQLite took it all back
                raise sqlite3.OperationalError("the transaction was taken back")
        except BaseException as failure:
            if group.is_inherited:
                raise
            if is_first or not connection.in_transaction:
                group.error = failure if isinstance(failure, sqlite3.Error) else sqlite3.OperationalError("interrupted")
                self.commit()
            else:
                connection.execute("ROLLBACK TO part")
                connection.execute("RELEASE part")
                group.half_written = False
            raise
        if not is_first:
            connection.execute("RELEASE part")
        group.members += 1
        group.half_written = False

    def _settle(self, group: _Group) -> None:
        """Let those in who wait to write, then see to it that the group is committed: by whoever gets to it first."""
        if group.is_inherited:
            return
        with _turn:
            _moved.notify_all()
            try:
                # inside a block of another database nobody else is let in: that one would be let in there, too
                give_up_at = time.monotonic() + GROUP_WAIT_S
                while not (group.over or _blocks) and self._waiting and group.members < GROUP_MOST:
                    if time.monotonic() >= give_up_at:  # one that was interrupted, perhaps: it does not come
                        break
                    _moved.wait(GROUP_LOOK_S)
            finally:
                if not group.over:
                    self.commit()

    def commit(self) -> None:
        """For whoever has the turn: what others have written so far is on the disk, or they hear why not.

        An interrupt may come between any two of these steps, and whoever comes next goes on with them: what is on the
        disk is there for all members, also where the one who has put it there did not come to say so.
        """
        group, connection = self._group, self._connection
        if group is None or connection is None or group.is_inherited:
            return
        try:
            if self._is_open(group, connection) and group.error is None:
                group.committing = True
                connection.execute("COMMIT")
            elif not group.committing:
                group.error = group.error or sqlite3.OperationalError("interrupted")
        except sqlite3.Error as failure:
            group.error = failure
        finally:
            if connection.in_transaction:  # the commit did not get through
                group.error = group.error or sqlite3.OperationalError("interrupted")
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            group.over = True
            self._group = None
            _open.discard(self)
            _moved.notify_all()

    @contextmanager
    def _block(self) -> Iterator[None]:
        global _blocks
        self._inside = True
        _blocks += 1
        try:
            yield
        finally:
            _blocks -= 1
            self._inside = False

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        if self._forked_inside:
            raise LedgerError(
                f"the ledger {self.path}: this process was forked in the middle of a transaction",
                next_step="fork before the block, or after it",
            )
        if self._pid != os.getpid():  # what threads of the parent were doing is the parent's
            self._group, self._inside, self._waiting = None, False, set()
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
    PERSIST ends a transaction by writing over the journal's head, and syncs that, which DELETE does not with its file's
    end: a power cut does not take the last transaction back. TRUNCATE does too, but each commit then changes the sizes
    of two files, and the file system has to write its own journal for that.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = PERSIST")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
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
    """All of the block or nothing; inside another such block, a part of that one. A child that was forked in it leaves
    it to its parent."""
    inside_another, pid = connection.in_transaction, os.getpid()
    if inside_another:
        with _nested(connection) if begin == "BEGIN IMMEDIATE" else nullcontext():
            yield
        return
    connection.execute(begin)
    try:
        yield
        if pid == os.getpid():
            connection.execute("COMMIT")
    finally:
        if pid == os.getpid() and connection.in_transaction:  # the block, or the commit, did not get through
            connection.execute("ROLLBACK")


@contextmanager
def _nested(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("SAVEPOINT nested")
    pid = os.getpid()
    try:
        yield
        if pid == os.getpid():
            connection.execute("RELEASE nested")
    except BaseException:
        if pid == os.getpid() and connection.in_transaction:  # a full disk takes the whole transaction back by itself
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
        raise _told(path, error) from error


def _told(path: Path, error: sqlite3.Error) -> LedgerError:
    code = getattr(error, "sqlite_errorname", "") or ""
    return LedgerError(f"the ledger {path}: {error}", next_step=_next_step(code, path))


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
