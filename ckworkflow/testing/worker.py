"""`worker()`: a real worker inside the test's process, for as long as a `with` lasts.

It is the embedded worker of a bot, without the bot: real steps on a real broker and database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckworkflow.engine.installation import current

if TYPE_CHECKING:
    import asyncio

    from ckworkflow.engine.installation import EmbeddedWorker

__all__ = ["worker"]


@contextmanager
def worker(*, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[EmbeddedWorker]:
    """Run a worker of the current app in this process.

    Leaving the `with` waits for the steps that run. In an `async` test enter and leave it in a thread
    (`asyncio.to_thread`), or let it have a loop of its own as it does by default and use `start_sync`.

    Args:
        loop: Where async steps run; by default on a loop in a thread of its own.

    Raises:
        RuntimeError: Another worker runs in this process.
        CkWorkflowError: The database, the broker or the Discord token cannot be used.
    """
    running = current().start_embedded(loop=loop)
    try:
        yield running
    finally:
        running.stop()
