"""The tables, as SQLAlchemy Core sees them. `migrations/` makes them; a test holds the two together.

Every payload is text that `codec` wrote; every time is an aware UTC `datetime` (microseconds since 1970
in SQLite, `timestamptz` in PostgreSQL).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, kept in UTC."""

    impl = sa.BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """PostgreSQL has a type for it; SQLite has integers."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(sa.BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Write."""
        if value is None or dialect.name == "postgresql":
            return value
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Read."""
        if value is None:
            return None
        if dialect.name == "postgresql":
            utc: datetime = value.astimezone(UTC)
            return utc
        since_epoch: int = value
        return _EPOCH + since_epoch * _MICROSECOND


metadata = sa.MetaData()

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("workflow", sa.Text, nullable=False),
    sa.Column("source_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("plan", sa.Text),  # how the body ended: its result with references, or its error
    sa.Column("wake_at", UtcDateTime),
    sa.Column("signals", sa.Integer, nullable=False, server_default="0"),
    sa.Column("seen", sa.Integer, nullable=False, server_default="0"),
    sa.Column("delivered", sa.Integer, nullable=False, server_default="0"),
    sa.Column("dispatches", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", UtcDateTime),
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("key", sa.Text),
    sa.Column("attributes", sa.Text),
    sa.Column("parent", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    # Continuations begun since the body had been told so many events (`delivered`), and why the run is held for it.
    sa.Column("spins", sa.Integer, nullable=False, server_default="0"),
    sa.Column("spins_since", sa.Integer),
    sa.Column("held", sa.Text),
    # The invariant of the whole project, held by the database itself.
    sa.CheckConstraint(
        "wake_at IS NOT NULL OR status IN ('completed', 'failed', 'cancelled')",
        name="ck_runs_live_wakes",
    ),
    sa.Index(
        "ix_runs_wake_at",
        "wake_at",
        sqlite_where=sa.text("wake_at IS NOT NULL"),
        postgresql_where=sa.text("wake_at IS NOT NULL"),
    ),
    sa.Index("ix_runs_created_at", "created_at"),
    # For retention. A live run is not in it, so that starting one costs nothing here.
    sa.Index(
        "ix_runs_finished_at",
        "finished_at",
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
        postgresql_concurrently=True,  # beside running workers, by `schema.upgrade`
    ),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node_id", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("args", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("unmet", sa.Integer, nullable=False),
    sa.Column("next", sa.Text, nullable=False),  # what this node's record makes ready: nodes and joins
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "free_attempts", sa.Integer, nullable=False, server_default="0"
    ),  # those that cost nothing
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),  # attempts lost to dead workers
    sa.Column("owner", sa.Text),
    sa.Column("is_carried", sa.Boolean, nullable=False, server_default=sa.false()),
    # Ready, but not published yet: it waits for its window of a wide group.
    sa.Column("is_held", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("due_at", UtcDateTime),
    sa.Column("output", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("delivered", sa.Integer),
    sa.Column("delivered_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Index(
        "ix_nodes_owner",
        "owner",
        sqlite_where=sa.text("owner IS NOT NULL"),
        postgresql_where=sa.text("owner IS NOT NULL"),
    ),
    sa.Index(
        "ix_nodes_held",
        "run_id",
        "position",
        sqlite_where=sa.text("is_held"),
        postgresql_where=sa.text("is_held"),
        postgresql_concurrently=True,  # beside running workers, by `schema.upgrade`
    ),
)

# Attempts that gave no result. Of the one that did, the node tells all.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),  # failed, retried, released, lost
    sa.Column("error", sa.Text),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime, nullable=False),
)

joins = sa.Table(
    "joins",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("join_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),  # chord, wait, end
    sa.Column("remaining", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # open; fired once the last member is recorded
    sa.Column("next", sa.Text, nullable=False),
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

processes = sa.Table(
    "processes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),  # worker, client
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Text, nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("alive_until", UtcDateTime, nullable=False),
)

store = sa.Table(
    "store",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
)

# What one of many clocks does now and then: who moves `due_at` does it.
duties = sa.Table(
    "duties",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("due_at", UtcDateTime, nullable=False),
)

schema_info = sa.Table(
    "schema_info",
    metadata,
    sa.Column("revision", sa.Integer, primary_key=True),
    # The oldest revision of the code's schema that may still use this database.
    sa.Column("oldest_code", sa.Integer, nullable=False),
)
