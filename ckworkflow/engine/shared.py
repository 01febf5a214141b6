"""The store that bot and workers share: `use_commandkit().store`.

Kept in SQL, not part of a step's record: a step that runs twice writes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ckworkflow import codec
from ckworkflow.foreign import show
from ckworkflow.store import keyvalue
from ckworkflow.store.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.engine.core import Engine

T = TypeVar("T")


class Pending(Generic[T]):
    """A call of the store that is under way already: awaiting it only waits for its end.

    So a `store.set(...)` without `await`, easily written in a port from JavaScript, is not lost.
    """

    __slots__ = ("_future",)

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Block until it is done and return its value; `timeout` is in seconds."""
        return self._future.result(timeout)


class SyncStore:
    """The store for sync code; every call blocks until it is committed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, key: str, value: object) -> None:
        """Write a value; the last writer wins.

        Raises:
            UnserializableValueError: It cannot be stored.
        """
        self.put(key, _encoded(_checked(key), value))

    def get(self, key: str, default: Any = None) -> Any:
        """Read a value, decoded anew; `default` when the key is not there."""
        key = _checked(key)
        text = self._engine.database.read(lambda tx: keyvalue.get(tx, key))
        return default if text is None else codec.decode(codec.loads(text))

    def delete(self, key: str) -> bool:
        """Remove a key; return whether it was there."""
        key = _checked(key)
        return self._engine.database.transact(lambda tx: keyvalue.delete(tx, key))

    def has(self, key: str) -> bool:
        """Return whether a key is there."""
        key = _checked(key)
        return self._engine.database.read(lambda tx: keyvalue.get(tx, key)) is not None

    def put(self, key: str, text: str) -> None:
        """Write a value that is encoded already."""
        key = _checked(key)
        database = self._engine.database

        def write(tx: Transaction) -> None:
            keyvalue.put(tx, key, text, now=database.now(tx))

        database.transact(write)


class SharedStore:
    """The store for async code. Every call begins at once, awaited or not.

    Attributes:
        sync: The same store for sync steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.sync = SyncStore(engine)
        # One thread: calls take effect in the order in which they were made.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ckworkflow-store")

    def set(self, key: str, value: object) -> Pending[None]:
        """Write a value; the last writer wins.

        Raises:
            UnserializableValueError: It cannot be stored; at the call.
        """
        text = _encoded(_checked(key), value)
        return self._submit(lambda: self.sync.put(key, text))

    def get(self, key: str, default: Any = None) -> Pending[Any]:
        """Read a value, decoded anew; `default` when the key is not there."""
        key = _checked(key)
        return self._submit(lambda: self.sync.get(key, default))

    def delete(self, key: str) -> Pending[bool]:
        """Remove a key; return whether it was there."""
        key = _checked(key)
        return self._submit(lambda: self.sync.delete(key))

    def has(self, key: str) -> Pending[bool]:
        """Return whether a key is there."""
        key = _checked(key)
        return self._submit(lambda: self.sync.has(key))

    def flush(self) -> None:
        """Block until every call made so far has ended."""
        self._executor.submit(lambda: None).result()

    def close(self) -> None:
        """End every call and take no more."""
        self._executor.shutdown(wait=True)

    def _submit(self, call: Callable[[], T]) -> Pending[T]:
        return Pending(self._executor.submit(call))


def _checked(key: object) -> str:
    if not isinstance(key, str):
        msg = (
            f"a key of the store is text, and {show(key)} is a {type(key).__name__}: pass str(...) of it"
        )
        raise TypeError(msg)
    return str(key)


def _encoded(key: str, value: object) -> str:
    return codec.dumps(codec.encode(value, path=f"store[{key!r}]"))
