"""Points: the places at which a process can be killed, counted in the process under test.

A point is the moment before or after something that others will see: the commit of a database transaction
that wrote, a message put into the broker, taken from it, or acknowledged. `install` puts itself around the
lowest doors there are (the connections of `sqlite3` and psycopg, the engine's pipelines, the commands of redis-py, the channel of
py-amqp), so the code above may group, batch and pipeline as it likes and is counted still.

Each point is a line of fixed length appended to a file that all processes of the experiment share; its place
in the file is its number. So the count needs no lock that a killed process could keep, and the file tells
afterwards what happened. Which number is deadly the harness writes into a few bytes of shared memory.

Left out, since they change nothing that a run could depend on and come by the clock: the rows by which a
process says that it lives, and Celery's events and remote control.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import signal
import sqlite3
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

LINE = 96
"""Bytes of a line in the trace."""
COUNT_ONLY = 2**40
"""A number that is never reached: points are counted and nobody dies."""

_CONTROL = struct.Struct("<qqq")
_WRITTEN = re.compile(
    r"(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|DELETE\s+FROM|MERGE\s+INTO|COPY|(?<!FOR )(?<!KEY )(?<!DO )UPDATE)"
    r'\s+(?:ONLY\s+)?"?(\w+)',
    re.IGNORECASE,
)
_SIGNS_OF_LIFE = frozenset({"processes", "holders"})
_MAILBOXES = ("celeryev", "pidbox", "_kombu")


# -- what the harness and the processes share ---------------------------------------------------------


class Control:
    """Which point is deadly, for whom. Made by the harness, mapped by every process of an experiment.

    Args:
        folder: Where the control and the trace are.
    """

    def __init__(self, folder: Path) -> None:
        self.trace_file = folder / "points.trace"
        path = folder / "points.control"
        if not path.exists():
            path.write_bytes(bytes(_CONTROL.size))
            self.trace_file.touch()
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _CONTROL.size)

    def arm(self, deadly: int, *, role: int, is_group: bool = True) -> None:
        """Count from 1 anew, in processes of a role; number `deadly` kills.

        Args:
            deadly: The number, or `COUNT_ONLY`.
            role: Whose points are counted.
            is_group: Whether the whole group of processes dies, or only the one that came there.
        """
        self.disarm()
        os.truncate(self.trace_file, 0)
        self._memory[:] = _CONTROL.pack(deadly, role, is_group)

    def disarm(self) -> None:
        """Stop counting."""
        self._memory[:] = _CONTROL.pack(0, 0, 0)

    def read(self) -> tuple[int, int, int]:
        """The deadly number (0: nothing is counted), the role, and whether the group dies."""
        found = _CONTROL.unpack(self._memory[:])
        return found[0], found[1], found[2]

    @property
    def is_busy(self) -> bool:
        """Whether a process that is counted is between a point and the one behind it, or about to die."""
        deadly = self.read()[0]
        if not deadly:
            return False
        lines = self.trace()
        return len(lines) >= deadly or bool(under_way(lines))

    def trace(self) -> list[str]:
        """What was reached since `arm`, in order."""
        data = self.trace_file.read_bytes()
        return [data[at : at + LINE].decode().rstrip() for at in range(0, len(data), LINE)]


def under_way(lines: list[str]) -> Counter[str]:
    """What has begun and not ended. An end whose beginning came before `arm` is none of theirs."""
    begun = Counter[str]()
    for line in lines:
        word, _, what = line.partition(" ")
        begun[what] += 1 if word == "before" else -min(begun[what], 1)
    return +begun


class Points:
    """The points of this process.

    Args:
        control: See there.
        role: The role of this process.
    """

    def __init__(self, control: Control, role: int) -> None:
        self._control, self._role = control, role
        self._lock = threading.Lock()
        self._file = self._open()
        os.register_at_fork(after_in_child=self._begin_again)

    def _open(self) -> int:
        return os.open(self._control.trace_file, os.O_WRONLY | os.O_APPEND)

    def _begin_again(self) -> None:
        """In the child of a fork: the lock may be held by a thread that is not there; and what is opened once
        has one place for all, so `lseek` would tell of a line that another process has written since."""
        self._lock = threading.Lock()
        os.close(self._file)
        self._file = self._open()

    def reach(self, what: str) -> None:
        """Come to a point, and perhaps not further."""
        deadly, role, is_group = self._control.read()
        if not deadly or role != self._role:
            return
        with self._lock:
            os.write(self._file, what[: LINE - 1].ljust(LINE - 1).encode() + b"\n")
            number = os.lseek(self._file, 0, os.SEEK_CUR) // LINE
            if number == deadly:
                if is_group:
                    os.killpg(0, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()


_points: Points | None = None


def begin(control: Control, role: int) -> None:
    """Count in this process from now on."""
    global _points
    _points = Points(control, role)


def reach(what: str) -> None:
    """Come to a point, if this process counts."""
    if _points is not None:
        _points.reach(what)


# -- what statements write ----------------------------------------------------------------------------


@functools.lru_cache(4096)
def tables_written(sql: str) -> frozenset[str]:
    """The tables that a statement writes."""
    return frozenset(name.lower() for name in _WRITTEN.findall(sql))


def _verb(sql: str) -> str:
    return sql.split(None, 1)[0].rstrip(";").upper() if sql.strip() else ""


def _named(tables: set[str] | frozenset[str]) -> str:
    return "+".join(sorted(tables))


# -- sqlite3 ------------------------------------------------------------------------------------------


class _Cursor(sqlite3.Cursor):
    _is_open: str | None = None
    """What an `... RETURNING` in autocommit mode writes: it is committed when its rows are read."""

    def execute(self, sql: str, *args: Any) -> Any:
        return self.connection._through(sql, lambda: super(_Cursor, self).execute(sql, *args), self)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self.connection._through(sql, lambda: super(_Cursor, self).executemany(sql, *args), self)

    def _read(self, rows: Any) -> Any:
        what, self._is_open = self._is_open, None
        if what is not None:
            reach(f"after {what}")
        return rows

    def fetchall(self) -> Any:
        return self._read(super().fetchall())


class _Connection(sqlite3.Connection):
    _seen = 0
    _tables: frozenset[str] = frozenset()

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, *args: Any) -> Any:
        return self.cursor().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self.cursor().executemany(sql, *args)

    def commit(self) -> None:
        self._commit(super().commit)

    def rollback(self) -> None:
        super().rollback()
        self._forget()

    def _forget(self) -> None:
        self._seen, self._tables = self.total_changes, frozenset()

    def _commit(self, call: Any) -> Any:
        wrote = self.in_transaction and self.total_changes != self._seen
        if not wrote or self._tables <= _SIGNS_OF_LIFE:
            answer = call()
            self._forget()
            return answer
        try:
            return _around(f"commit {_named(self._tables)}", call)
        finally:
            if not self.in_transaction:
                self._forget()

    def _through(self, sql: str, call: Any, cursor: _Cursor) -> Any:
        verb = _verb(sql)
        if verb in {"COMMIT", "END"}:
            return self._commit(call)
        if verb == "ROLLBACK" and " TO " not in sql.upper():
            answer = call()
            self._forget()
            return answer
        tables = tables_written(sql)
        if not tables:
            return call()
        if self.in_transaction or self.isolation_level is not None:
            self._tables |= tables
            return call()
        if tables <= _SIGNS_OF_LIFE:
            return call()
        # Each such statement is a transaction of its own.
        what = f"commit {verb.lower()} {_named(tables)}"
        if "RETURNING" not in sql:
            return _around(what, call)
        reach(f"before {what}")
        try:
            answer = call()
        except BaseException:
            reach(f"failed {what}")
            raise
        cursor._is_open = what
        return answer


def _install_sqlite() -> None:
    connect = sqlite3.connect

    def connecting(*args: Any, **kwargs: Any) -> Any:
        if len(args) < 6:
            kwargs.setdefault("factory", _Connection)
        return connect(*args, **kwargs)

    sqlite3.connect = sqlite3.dbapi2.connect = connecting


# -- psycopg ------------------------------------------------------------------------------------------

_IDLE = 0


def _install_psycopg() -> None:
    import psycopg

    wait = psycopg.Connection.wait

    def waiting(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Everything that a connection says to its server goes through here, pipelines too."""
        name, sql = gen.__name__, _text_of(gen)
        written: set[str] = self.__dict__.setdefault("_ckw_written", set())
        tables = tables_written(sql)
        written |= tables
        if _verb(sql) == "BEGIN":
            self.__dict__["_ckw_begun"] = True
        # Without a word for its end, a transaction of a pipeline ends with the pipeline or its next sync.
        ends_so = name == "_commit_gen" or (
            name in {"_sync_gen", "_exit_gen"} and "_ckw_begun" not in self.__dict__
        )
        is_single = bool(tables) and self.autocommit and self.pgconn.transaction_status == _IDLE
        # In a pipeline the end comes in several pieces, and is still one.
        if written and not written <= _SIGNS_OF_LIFE and "_ckw_commits" not in self.__dict__:
            if ends_so or _verb(sql) in {"COMMIT", "END"} or (is_single and not self._pipeline):
                self.__dict__["_ckw_commits"] = what = f"commit {_named(written)}"
                reach(f"before {what}")
        try:
            answer = wait(self, gen, *args, **kwargs)
        except BaseException:
            if (failed := self.__dict__.pop("_ckw_commits", None)) is not None:
                reach(f"failed {failed}")
            raise
        if self.pgconn.transaction_status == _IDLE:
            committed = self.__dict__.pop("_ckw_commits", None)
            self.__dict__.pop("_ckw_begun", None)
            written.clear()
            if committed is not None:
                reach(f"{'failed' if name == '_rollback_gen' else 'after'} {committed}")
        return answer

    psycopg.Connection.wait = waiting  # type: ignore[method-assign]


def _text_of(gen: Any) -> str:
    """The statement that a generator of psycopg is about to send."""
    frame = getattr(gen, "gi_frame", None)
    if frame is None:
        return ""
    query = frame.f_locals.get("query", frame.f_locals.get("statement", ""))
    if isinstance(query, bytes):
        return query.decode()
    return query if isinstance(query, str) else str(query)


def _install_pipeline() -> None:
    """The engine's own pipelines speak to libpq directly, past everything that psycopg does."""
    from ckworkflow.store.pipeline import Pipeline

    init, ask, say, sync = Pipeline.__init__, Pipeline.ask, Pipeline.say, Pipeline.sync

    def initializing(self: Any, connection: Any, *args: Any) -> None:
        init(self, connection, *args)
        self._ckw_connection = connection

    def asking(self: Any, name: bytes, sql: bytes, values: Any) -> Any:
        self._ckw_connection.__dict__.setdefault("_ckw_written", set()).update(
            tables_written(sql.decode())
        )
        return ask(self, name, sql, values)

    def saying(self: Any, words: bytes) -> Any:
        written = self._ckw_connection.__dict__.get("_ckw_written", set())
        if _verb(words.decode()) == "COMMIT":
            if not written <= _SIGNS_OF_LIFE:
                self._ckw_commits = f"commit {_named(written)}"
                reach(f"before {self._ckw_commits}")
            written.clear()
        return say(self, words)

    def syncing(self: Any) -> Any:
        what = self.__dict__.pop("_ckw_commits", None)
        try:
            answer = sync(self)
        except BaseException:
            if what is not None:
                reach(f"failed {what}")
            raise
        if what is not None:
            reach(f"after {what}")
        return answer

    Pipeline.__init__, Pipeline.ask = initializing, asking  # type: ignore[method-assign]
    Pipeline.say, Pipeline.sync = saying, syncing  # type: ignore[method-assign]


# -- Redis --------------------------------------------------------------------------------------------


def _install_redis() -> None:
    import redis.client

    execute_command, execute = redis.client.Redis.execute_command, redis.client.Pipeline.execute

    def executing_command(self: Any, *args: Any, **options: Any) -> Any:
        what = _redis_meaning([args])
        return _around(what, lambda: execute_command(self, *args, **options))

    def executing(self: Any, *args: Any, **kwargs: Any) -> Any:
        what = _redis_meaning([words for words, _ in self.command_stack])
        return _around(what, lambda: execute(self, *args, **kwargs))

    redis.client.Redis.execute_command = executing_command  # type: ignore[method-assign]
    redis.client.Pipeline.execute = executing  # type: ignore[method-assign]


def _redis_meaning(commands: list[tuple[Any, ...]]) -> str | None:
    """What kombu does with these commands to a queue of tasks; `None`: nothing that counts."""
    done = set()
    for words in commands:
        verb, key = str(words[0]).upper(), str(words[1]) if len(words) > 1 else ""
        if any(mailbox in key for mailbox in _MAILBOXES):
            continue
        if verb in {"LPUSH", "RPUSH"}:
            done.add("publish")
        elif key.startswith("unacked"):
            done.update({"HSET": {"take"}, "HDEL": {"ack"}}.get(verb, set()))
    return " ".join(sorted(done)) or None


# -- py-amqp ------------------------------------------------------------------------------------------


def _install_amqp() -> None:
    import amqp.channel

    publish, ack = amqp.channel.Channel._basic_publish, amqp.channel.Channel.basic_ack

    def publishing(
        self: Any, msg: Any, exchange: str = "", routing_key: str = "", *args: Any, **kwargs: Any
    ) -> Any:
        is_mail = any(mailbox in f"{exchange} {routing_key}" for mailbox in (*_MAILBOXES, "reply"))
        what = None if is_mail else "publish"
        return _around(what, lambda: publish(self, msg, exchange, routing_key, *args, **kwargs))

    def acking(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _around("ack", lambda: ack(self, *args, **kwargs))

    amqp.channel.Channel._basic_publish = amqp.channel.Channel.basic_publish = publishing
    amqp.channel.Channel.basic_ack = acking


def _around(what: str | None, call: Any) -> Any:
    if what is None:
        return call()
    reach(f"before {what}")
    try:
        answer = call()
    except BaseException:
        reach(f"failed {what}")
        raise
    reach(f"after {what}")
    return answer


def install() -> None:
    """Put counters around every door; they count nothing until `begin`."""
    _install_sqlite()
    _install_psycopg()
    _install_pipeline()
    _install_redis()
    _install_amqp()
