"""The store that bot and workers share: JSON values by key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import exc

from ckworkflow.store.tables import store

if TYPE_CHECKING:
    from datetime import datetime

    from ckworkflow.store.transaction import Transaction


def put(tx: Transaction, key: str, value: str, *, now: datetime) -> None:
    """Write an encoded value; the last writer wins."""
    written = tx.execute(sa.update(store).where(store.c.key == key).values(value=value, updated_at=now))
    if written.rowcount:
        return
    try:
        with tx.connection.begin_nested():
            tx.execute(sa.insert(store).values(key=key, value=value, updated_at=now))
    except exc.IntegrityError:  # another process was first: it is there now
        tx.execute(sa.update(store).where(store.c.key == key).values(value=value, updated_at=now))


def get(tx: Transaction, key: str) -> str | None:
    """Read an encoded value."""
    found: str | None = tx.execute(
        sa.select(store.c.value).where(store.c.key == key)
    ).scalar_one_or_none()
    return found


def delete(tx: Transaction, key: str) -> bool:
    """Remove a key; say whether it was there."""
    return bool(tx.execute(sa.delete(store).where(store.c.key == key)).rowcount)
