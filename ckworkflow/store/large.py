"""Large values: the parts of arguments, results and payloads that stand apart from their rows.

A part belongs to a run and has the SHA-256 of its text for a name, so what a run passes on again and again is stored once. It is written with the
row that refers to it, in the same transaction, and read only by whoever needs the value.

Not here: what is a part (`ckworkflow.codec.large`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ckworkflow import codec
from ckworkflow.store.tables import hook_payloads, large_values
from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Transaction

__all__ = ["carry", "delete_old", "keep", "whole"]


def keep(tx: Transaction, run_id: RunId, texts: Iterable[str | None], *, life: int) -> None:
    """Write the parts of texts that this transaction writes for a locked run.

    Args:
        tx: A transaction that has locked the run, or makes it.
        run_id: The run.
        texts: The texts, of which most have no parts.
        life: The life of the run that needs them.
    """
    for text in texts:
        if isinstance(text, codec.Packed):
            for digest, value in text.apart.items():
                tx.execute(_KEEP, {"run_id": run_id, "digest": digest, "life": life, "value": value})


def whole(tx: Transaction, run_id: RunId, text: str) -> str:
    """Return a text of a row of a run with its parts.

    Raises:
        UnreadableValueError: When it is loaded: a part is missing.
    """
    digests = () if isinstance(text, codec.Packed) else codec.parts_of(text)
    if not digests:
        return text
    found = {
        digest: row[0]
        for digest in sorted(digests)
        if (row := tx.execute(_PART, {"b_run": run_id, "b_digest": digest}).one_or_none()) is not None
    }
    return codec.Packed(text, found)


def carry(tx: Transaction, run_id: RunId, *, life: int) -> None:
    """Keep the parts of payloads of a locked run that go over to its next life."""
    tx.execute(_CARRY, {"b_run": run_id, "b_life": life, "v_life": life})


def delete_old(tx: Transaction, run_id: RunId, *, life: int) -> None:
    """Delete the parts that only lives before this one of a locked run have needed."""
    tx.execute(_DELETE_OLD, {"b_run": run_id, "b_life": life})


_OF_RUN = large_values.c.run_id == sa.bindparam("b_run")
_EARLIER = large_values.c.life < sa.bindparam("b_life")
_insert = postgresql.insert(large_values)  # which SQLite writes alike
_KEEP = Prepared(
    _insert.values(
        {name: sa.bindparam(name) for name in ("run_id", "digest", "life", "value")}
    ).on_conflict_do_update(
        index_elements=[large_values.c.run_id, large_values.c.digest],
        set_={"life": _insert.excluded.life},
        where=large_values.c.life < _insert.excluded.life,
    )
)
_PART = Prepared(
    sa.select(large_values.c.value).where(_OF_RUN, large_values.c.digest == sa.bindparam("b_digest"))
)
_CARRY = Prepared(
    sa.update(large_values)
    .where(
        _OF_RUN,
        _EARLIER,
        sa.exists().where(
            hook_payloads.c.run_id == large_values.c.run_id,
            sa.not_(hook_payloads.c.is_taken),
            hook_payloads.c.life == sa.bindparam("b_life"),
            hook_payloads.c.body.contains(large_values.c.digest),
        ),
    )
    .values(life=sa.bindparam("v_life"))
)
_DELETE_OLD = Prepared(sa.delete(large_values).where(_OF_RUN, _EARLIER))
