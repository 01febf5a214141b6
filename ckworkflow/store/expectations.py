"""Expectations: statements that change exactly one row, or undo their transaction.

A transaction that first reads what it is about to change waits for the server twice. Where this process knows how
the row should be, it says so instead, and all of the transaction is one round trip; if another process has
changed the row meanwhile, nothing of it is done, and the normal path is taken.

Only on a server: in a file there is nothing to wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from sqlalchemy.sql.selectable import HasCTE

__all__ = ["ExpectationError", "expecting", "is_unmet"]

_DIVISION_BY_ZERO = "22012"


class ExpectationError(Exception):
    """What a transaction expected is not so: nothing of it was done."""


def is_unmet(error: object) -> bool:
    """Whether a driver's error says that a statement made by `expecting` has found no row."""
    return getattr(error, "sqlstate", None) == _DIVISION_BY_ZERO


def expecting(statement: HasCTE) -> Prepared:
    """Make a statement fail that finds no row.

    Args:
        statement: An `UPDATE ... RETURNING`, or a `SELECT` that locks.

    Returns:
        A statement whose row is a number that says nothing, and the columns of the given one.
    """
    found = statement.cte("found")
    count = sa.select(sa.func.count()).select_from(found).scalar_subquery()
    one = sa.select(sa.literal(1).label("one")).subquery("one")
    return Prepared(
        sa.select(sa.literal(1, sa.Integer).op("/")(count).label("met"), *found.c).select_from(
            one.outerjoin(found, sa.true())
        )
    )
