"""The broker file: messages between processes of one machine, in one SQLite file.

What it guarantees: a message is in the file until somebody acknowledges it. A process takes one by writing
its name beside it (`UPDATE … RETURNING`), so two processes never take the same; a message whose
holder is provably dead, or has been silent for a lease, is free again. A holder renews one row, its
own, however many messages it holds and however long.

This is a broker and not the store: it carries hints that can all be made again from the database, so
the file may be deleted at any time, also under running processes, and one that is damaged says that it
should be; it is readable by its owner alone, and it is written by the `sqlite3`
module of the standard library directly. It is a file apart from the database because each message is
three writes, which would queue up with the writer that the records of the steps need.

Not here: what kombu wants of a transport (`ckworkflow.worker.broker.transport`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckworkflow.background import BackgroundThread
from ckworkflow.engine.detector import FailureDetector, Sign
from ckworkflow.engine.identity import Identity, this_process
from ckworkflow.store.files import identity, make_private
from ckworkflow.worker.broker import bells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["LEASE", "BrokerFile", "BrokerFileDamagedError", "BrokerFileReplacedError", "Claimed"]

LEASE: Final = timedelta(seconds=15)
"""How long a holder may be silent that is stopped, or of which the kernel cannot be asked."""

_LAYOUT: Final = 1
_RENEW_SECONDS: Final = LEASE.total_seconds() / 5
_COLLECT_SECONDS: Final = 0.25
_BUSY_SECONDS: Final = 5.0

_SCHEMA: Final = (
    # AUTOINCREMENT: an id is never used again, so a late acknowledgement cannot hit a stranger.
    """CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, priority INTEGER NOT NULL,
        body TEXT NOT NULL, expires_at REAL, holder TEXT, deliveries INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX messages_ready ON messages (queue, priority DESC, id) WHERE holder IS NULL",
    "CREATE INDEX messages_held ON messages (holder) WHERE holder IS NOT NULL",
    "CREATE INDEX messages_expiring ON messages (expires_at) WHERE expires_at IS NOT NULL",
    """CREATE TABLE holders (
        id TEXT PRIMARY KEY, host TEXT NOT NULL, boot_id TEXT NOT NULL, pid INTEGER NOT NULL,
        pid_started TEXT NOT NULL, namespace TEXT NOT NULL, alive_until REAL NOT NULL)""",
    "CREATE TABLE queues (name TEXT PRIMARY KEY, is_transient INTEGER NOT NULL, ttl_seconds REAL)",
    "CREATE TABLE owners (queue TEXT NOT NULL, holder TEXT NOT NULL, PRIMARY KEY (queue, holder)) WITHOUT ROWID",
    """CREATE TABLE bindings (
        exchange TEXT NOT NULL, routing_key TEXT NOT NULL, pattern TEXT NOT NULL, queue TEXT NOT NULL,
        PRIMARY KEY (exchange, routing_key, pattern, queue)) WITHOUT ROWID""",
)
# ruff: noqa: S608 - statements are put together from these constants only
_READY: Final = "queue = ? AND holder IS NULL AND (expires_at IS NULL OR expires_at > ?)"
_NAMELESS: Final = "holder IS NOT NULL AND holder NOT IN (SELECT id FROM holders)"
_HOLDER: Final = "id, host, boot_id, pid, pid_started"
_PICKED: Final = f"id IN (SELECT id FROM messages WHERE {_READY} ORDER BY priority DESC, id LIMIT ?)"
_RETURNED: Final = "RETURNING -priority, id, body, deliveries"
_PUT: Final = """INSERT INTO messages (queue, priority, body, expires_at)
    VALUES (:queue, :priority, :body, (SELECT :now + ttl_seconds FROM queues WHERE name = :queue))"""


class BrokerFileReplacedError(OSError):
    """The file was deleted or replaced under this process; what it had declared is to be declared again."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"The broker file {path} was deleted or replaced while this process used it. Messages in the old "
            f"file are gone and are published again from the database; queues are declared anew."
        )


class BrokerFileDamagedError(OSError):
    """The file is no longer a database, or a damaged one."""

    def __init__(self, path: str, error: Exception) -> None:
        reason = "its text cannot be read" if isinstance(error, UnicodeDecodeError) else str(error)
        super().__init__(
            f"The broker file {path} is damaged ({reason}). Delete it, with its -wal and -shm: messages are published "
            f"again from the database, and no run is lost. Processes that use it need not be restarted."
        )


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message as it was taken."""

    id: int
    queue: str
    body: str
    is_redelivered: bool


class BrokerFile:
    """One broker file as one process sees it. Safe to use from every thread of that process.

    All threads share one connection behind a lock: SQLite has one writer anyway, and two hundred pool
    threads with a connection each would use up the file descriptors of the process.
    """

    _open: dict[str, BrokerFile] = {}  # noqa: RUF012 - the registry of this process
    _open_lock = threading.Lock()

    def __init__(self, path: str) -> None:
        """Use `BrokerFile.at`, which gives all users of one process the same object."""
        self.path = path
        self.generation = 0
        self._version = 0
        self._opened = 0
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], object]] = []
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._keeper: threading.Thread | None = None
        self._is_holder = False
        self._unreleased: set[int] = set()
        # It tells nothing: the engine's own, which watches the same processes, does.
        self._detector = FailureDetector(LEASE, timedelta(seconds=_RENEW_SECONDS), tells=False)

    @classmethod
    def at(cls, path: str) -> BrokerFile:
        """Return this process's view of a broker file, which is created when it is first used.

        Args:
            path: The file; a relative path is relative to the directory of the first call.
        """
        key = str(Path(path).absolute())
        with cls._open_lock:
            return cls._open.setdefault(key, cls(key))

    # --- messages ------------------------------------------------------------------------------------

    def put(self, queues: Sequence[str], body: str, *, priority: int = 0) -> None:
        """Append a message to queues, in all of them or in none."""
        what = {"priority": priority, "body": body, "now": time.time()}
        with self._cursor() as db:
            if len(queues) == 1:
                db.execute(_PUT, {"queue": queues[0], **what})
            else:
                with self._transaction(db):
                    db.executemany(_PUT, [{"queue": queue, **what} for queue in queues])
        self._ring()

    def claim(self, queues: Sequence[str], limit: int, *, keep: bool) -> list[Claimed]:
        """Take ready messages of the first of these queues that has any.

        Args:
            queues: The queues in the order in which to look.
            limit: The most to take.
            keep: Hold them until `ack` or `release`; without it they are deleted as they are taken.

        Returns:
            The messages, those of higher priority first, then in order of publication.
        """
        now = time.time()
        with self._cursor() as db:
            if self._unreleased:
                self._release(db)
            for queue in queues:
                # A plain read first: an idle consumer must not take the write lock fifty times a second.
                if not db.execute(
                    f"SELECT 1 FROM messages WHERE {_READY} LIMIT 1", (queue, now)
                ).fetchone():
                    continue
                if rows := self._take(db, queue, limit, now, keep=keep):
                    return [
                        Claimed(id_, queue, body, deliveries > 1) for _, id_, body, deliveries in rows
                    ]
        return []

    def _take(
        self, db: sqlite3.Connection, queue: str, limit: int, now: float, *, keep: bool
    ) -> list[tuple[int, int, str, int]]:
        if keep:
            self._hold(db)
            cursor = db.execute(
                f"UPDATE messages SET holder = ?, deliveries = deliveries + 1 WHERE {_PICKED} {_RETURNED}",
                (this_process().process_id, queue, now, limit),
            )
        else:
            cursor = db.execute(f"DELETE FROM messages WHERE {_PICKED} {_RETURNED}", (queue, now, limit))
        # fetchall ends the statement, and with it the transaction; RETURNING promises no order.
        return sorted(cursor.fetchall())

    def ack(self, message_id: int) -> None:
        """Delete a message: it has been dealt with. Call `notify` once there is room for the next."""
        with self._cursor() as db:
            db.execute("DELETE FROM messages WHERE id = ?", (message_id,))

    def release(self, message_id: int) -> None:
        """Give back a message that this process holds; it goes where it was in its queue.

        While the file cannot be written, which is often why a message is given back, that waits for the next `claim`.
        """
        self._unreleased.add(message_id)
        with contextlib.suppress(sqlite3.Error, OSError), self._cursor() as db:
            self._release(db)
        self._ring()

    def _release(self, db: sqlite3.Connection) -> None:
        for message_id in list(self._unreleased):
            db.execute(
                "UPDATE messages SET holder = NULL WHERE id = ? AND holder = ?",
                (message_id, this_process().process_id),
            )
            self._unreleased.discard(message_id)

    def size(self, queue: str) -> int:
        """Count the messages of a queue that nobody holds."""
        with self._cursor() as db:
            row = db.execute(
                f"SELECT count(*) FROM messages WHERE {_READY}", (queue, time.time())
            ).fetchone()
        return int(row[0])

    def purge(self, queue: str) -> int:
        """Delete the messages of a queue that nobody holds; return how many there were."""
        with self._cursor() as db:
            return db.execute(
                "DELETE FROM messages WHERE queue = ? AND holder IS NULL", (queue,)
            ).rowcount

    # --- queues and bindings -------------------------------------------------------------------------

    def declare(self, queue: str, *, is_transient: bool, ttl_seconds: float | None) -> None:
        """Make a queue known.

        Args:
            queue: Its name.
            is_transient: It goes, with its messages, when the last process that declared it has left or
                died; the mailboxes of remote control and of monitors are such.
            ttl_seconds: How long a message stays in it.
        """
        with self._cursor() as db, self._transaction(db):
            db.execute(
                """INSERT INTO queues VALUES (?, ?, ?)
                    ON CONFLICT (name) DO UPDATE SET is_transient = excluded.is_transient,
                        ttl_seconds = excluded.ttl_seconds""",
                (queue, is_transient, ttl_seconds),
            )
            if is_transient:
                self._hold(db)
                db.execute(
                    "INSERT OR IGNORE INTO owners VALUES (?, ?)", (queue, this_process().process_id)
                )

    def is_declared(self, queue: str) -> bool:
        """Tell whether somebody has declared this queue."""
        with self._cursor() as db:
            return db.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone() is not None

    def leave(self, queue: str) -> None:
        """Stop being an owner of a transient queue."""
        with self._cursor() as db, self._transaction(db):
            db.execute(
                "DELETE FROM owners WHERE queue = ? AND holder = ?", (queue, this_process().process_id)
            )
            self._sweep_queues(db)

    def delete_queue(self, queue: str) -> None:
        """Delete a queue, its bindings, and its messages."""
        with self._cursor() as db, self._transaction(db):
            for sql in (
                "DELETE FROM messages WHERE queue = ? AND holder IS NULL",
                "DELETE FROM bindings WHERE queue = ?",
                "DELETE FROM owners WHERE queue = ?",
                "DELETE FROM queues WHERE name = ?",
            ):
                db.execute(sql, (queue,))

    def bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue to an exchange."""
        with self._cursor() as db:
            db.execute(
                "INSERT OR IGNORE INTO bindings VALUES (?, ?, ?, ?)",
                (exchange, routing_key, pattern, queue),
            )

    def unbind(self, exchange: str, routing_key: str, queue: str) -> None:
        """Remove a binding."""
        with self._cursor() as db:
            db.execute(
                "DELETE FROM bindings WHERE exchange = ? AND routing_key = ? AND queue = ?",
                (exchange, routing_key, queue),
            )

    def bindings(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return routing key, pattern and queue of every binding of an exchange."""
        with self._cursor() as db:
            return db.execute(
                "SELECT routing_key, pattern, queue FROM bindings WHERE exchange = ?", (exchange,)
            ).fetchall()

    # --- waking up -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """A number that changes with every change that a waiting consumer of this process may care about."""
        return self._version

    def mark(self) -> tuple[int, ...]:
        """Return a mark that stays the same only if nothing has changed: after an empty look, no other is needed."""
        with self._cursor() as db:
            version = self._version
            # Counts the changes of other connections, anew with each connection of ours; and it costs less
            # than a look at each queue.
            foreign: int = db.execute("PRAGMA data_version").fetchone()[0]
            return self.generation, self._opened, version, foreign

    def notify(self) -> None:
        """Wake the consumers of this process: there is a message, or room for one."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()
        for listener in tuple(self._listeners):
            listener()

    def _ring(self) -> None:
        """Wake the consumers of every process: there is a message."""
        self.notify()
        if self._inode is not None:
            bells.ring(self._inode)

    def hang_bell(self) -> bells.Bell | None:
        """Hang a bell that rings when another process puts a message into the file; `None` where that cannot be had."""
        return None if self._inode is None else bells.hang(self._inode)

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call back at every `notify`, on any thread; return what ends this."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def wait(self, seen: int, seconds: float) -> None:
        """Wait until `version` is no longer `seen`, but no longer than this.

        Other processes cannot be heard here: a caller that waits for their messages looks again after it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, seconds)

    # --- holders -------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Free what dead holders held, and forget queues that nobody owns and messages out of date."""
        now = time.time()
        with self._cursor() as db:
            rows = db.execute(f"SELECT {_HOLDER}, alive_until FROM holders").fetchall()
            me = this_process().process_id
            signs = [Sign(Identity(*row[:5]), row[5]) for row in rows if row[0] != me]
            gone = [dead.process.process_id for dead in self._detector.look(signs)]
            expired = db.execute(
                "SELECT 1 FROM messages WHERE expires_at < ? LIMIT 1", (now,)
            ).fetchone()
            # A holder that was taken for dead and took more before it found out is in no row.
            nameless = db.execute(f"SELECT 1 FROM messages WHERE {_NAMELESS} LIMIT 1").fetchone()
            if not gone and not expired and not nameless:
                return
            with self._transaction(db):
                db.executemany("DELETE FROM holders WHERE id = ?", [(holder,) for holder in gone])
                db.execute(f"UPDATE messages SET holder = NULL WHERE {_NAMELESS}")
                db.execute(f"DELETE FROM owners WHERE {_NAMELESS}")
                db.execute("DELETE FROM messages WHERE expires_at < ?", (now,))
                self._sweep_queues(db)
        self.notify()

    def _hold(self, db: sqlite3.Connection) -> None:
        """Register this process before anything is marked with its name."""
        if self._is_holder:
            return
        self._renew(db)
        if self._keeper is None:
            self._keeper = BackgroundThread(
                self._keep, name="ckworkflow-broker-lease",
                loss="messages that this process holds are delivered again",
            )  # fmt: skip
            try:
                self._keeper.start()
            except RuntimeError:  # the system gives no more threads: nothing may be held
                self._keeper = None
                raise
        self._is_holder = True

    def _renew(self, db: sqlite3.Connection) -> None:
        me = this_process()
        db.execute(
            f"""INSERT INTO holders ({_HOLDER}, namespace, alive_until) VALUES (?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until""",
            (me.process_id, me.host, me.boot_id, me.pid, me.pid_started, _namespace(),
             time.time() + LEASE.total_seconds()),
        )  # fmt: skip

    def _keep(self) -> None:
        """Renew this process's lease and look for dead ones, for as long as the file is there."""
        renewed = time.monotonic()
        while True:
            time.sleep(_COLLECT_SECONDS)
            with self._lock:
                if identity(self.path) is None:
                    # Deleted: who next takes a message from the new file starts over.
                    self._keeper, self._is_holder = None, False
                    return
            # A locked or broken file is for those to report who use it; the next round tries again.
            with contextlib.suppress(sqlite3.Error, OSError):
                if time.monotonic() - renewed > _RENEW_SECONDS:
                    with self._cursor() as db:
                        self._renew(db)
                    renewed = time.monotonic()
                self.collect()

    @staticmethod
    def _sweep_queues(db: sqlite3.Connection) -> None:
        lost = db.execute(
            "SELECT name FROM queues WHERE is_transient AND name NOT IN (SELECT queue FROM owners)"
        ).fetchall()
        for sql in (
            "DELETE FROM messages WHERE queue = ?",
            "DELETE FROM bindings WHERE queue = ?",
            "DELETE FROM queues WHERE name = ?",
        ):
            db.executemany(sql, lost)

    # --- the connection ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._inode is not None and identity(self.path) != self._inode:
                    self._close()
                    self._is_holder = False
                    self.generation += 1
                if self._db is None:
                    self._db = _connect(self.path)
                    self._opened += 1
                    self._inode = identity(self.path)
                    self.collect()  # what a killed predecessor held is free before the first look
                yield self._db
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_damage(error):
                    raise
                self._close()
                raise BrokerFileDamagedError(self.path, error) from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @staticmethod
    @contextlib.contextmanager
    def _transaction(db: sqlite3.Connection) -> Iterator[None]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    # SQLite must have no connection open in the moment of a fork; see `ckworkflow.store.forks`.

    @classmethod
    def _before_fork(cls) -> None:
        cls._open_lock.acquire()
        for file in cls._open.values():
            file._lock.acquire()  # noqa: SLF001 - the same class
            file._close()  # noqa: SLF001

    @classmethod
    def _after_fork_in_parent(cls) -> None:
        for file in cls._open.values():
            file._lock.release()  # noqa: SLF001
        cls._open_lock.release()

    @classmethod
    def _after_fork_in_child(cls) -> None:
        cls._open_lock = threading.Lock()
        for file in cls._open.values():
            file._reset()  # noqa: SLF001 - the child is another holder, with locks of its own


@functools.cache
def _namespace() -> str:
    """Name the pid namespace of this process, for older releases: `Identity.host` contains it, too."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it names no file
    except OSError:
        return ""


def _is_damage(error: Exception) -> bool:
    """Whether an error means that the file is damaged. Then even SQLite's message about it cannot always be read."""
    words = ("not a database", "malformed", "decode to UTF-8")
    return isinstance(error, UnicodeDecodeError) or any(word in str(error) for word in words)


def _connect(path: str) -> sqlite3.Connection:
    make_private(path)
    try:
        db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise sqlite3.OperationalError(f"the broker file {path} cannot be opened: {error}") from error
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: str) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # SQLite does not wait by itself when several processes turn a new file to WAL at once.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    # A power cut may take the last messages; they are hints, and the database gives them again.
    db.execute("PRAGMA synchronous = NORMAL")
    if _layout_of(db) == _LAYOUT:
        return
    db.execute("BEGIN IMMEDIATE")
    layout = _layout_of(db)
    if layout == 0:
        for sql in _SCHEMA:
            db.execute(sql)
        # Ids go on from the clock, so that those of a deleted file never come back in the next.
        db.execute(
            "INSERT INTO sqlite_sequence (name, seq) VALUES ('messages', ?)", (time.time_ns() // 1000,)
        )
        db.execute(f"PRAGMA user_version = {_LAYOUT}")
    db.execute("COMMIT")
    if layout not in {0, _LAYOUT}:
        raise sqlite3.OperationalError(
            f"the broker file {path} was made by another version of ckworkflow (layout {layout}, this one "
            f"reads {_LAYOUT}): stop the processes that use it and delete it; no run is lost"
        )


def _layout_of(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=BrokerFile._before_fork,  # noqa: SLF001 - same module
        after_in_parent=BrokerFile._after_fork_in_parent,  # noqa: SLF001
        after_in_child=BrokerFile._after_fork_in_child,  # noqa: SLF001
    )
