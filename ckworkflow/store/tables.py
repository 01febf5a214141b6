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

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | int | None:
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
    # Of the body's source, when the run was started.
    sa.Column("source_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text),
    sa.Column("error", sa.Text),
    # How the body ended, if it did before all that it awaited was recorded: its result with references, or its error.
    sa.Column("plan", sa.Text),
    # When a clock must look at the run again; NULL once it has ended.
    sa.Column("wake_at", UtcDateTime),
    # Raised by whatever lets the body go on: a join that it waits for fires, a step fails, only the body can work out a value.
    sa.Column("signals", sa.Integer, nullable=False, server_default="0"),
    # What `signals` was when the last continuation read what it told the body. Equal: there is nothing to tell.
    sa.Column("seen", sa.Integer, nullable=False, server_default="0"),
    # How many events the body has been told; the next one gets the next number.
    sa.Column("delivered", sa.Integer, nullable=False, server_default="0"),
    # Looks of a clock in a row that found a step ready and unclaimed; the wait until the next one doubles with each.
    sa.Column("dispatches", sa.Integer, nullable=False, server_default="0"),
    # The process that continues the body now, and until when without a renewal.
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", UtcDateTime),
    # Raised with each lease, and where a kept body must not go on; fences what is written under a lease.
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    # Reserved for a later release: nothing reads or writes these two yet.
    sa.Column("key", sa.Text),
    sa.Column("attributes", sa.Text),
    # The run whose body has started this one, and the node there that waits for its end. NULL: none has.
    sa.Column("parent", sa.Text),
    sa.Column("parent_node", sa.Text),
    # Whether it has something to tell another run; then it has a `wake_at`, also after its end.
    sa.Column("has_notes", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    # Leases taken since the body had been told `spins_since` events. Too many hold the run.
    sa.Column("spins", sa.Integer, nullable=False, server_default="0"),
    sa.Column("spins_since", sa.Integer),
    # Why the body is not continued for now, and until when; and whether steps are held (a step says why in its `error`).
    sa.Column("held", sa.Text),
    # What `now()` says to the body: the time of the last continuation. It never goes back. NULL: `created_at`.
    sa.Column("told_at", UtcDateTime),
    # The number of the last event that was told as a surprise: a replay does not run ahead before it. NULL: none was.
    sa.Column("last_surprise", sa.Integer),
    # When somebody asked that the run be cancelled, and why; as which event, and when, the body was told. NULL: nobody did.
    sa.Column("cancel_requested_at", UtcDateTime),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("cancel_delivered", sa.Integer),
    sa.Column("cancel_delivered_at", UtcDateTime),
    # When it ends as cancelled if its body has not ended by then. NULL: it has all the time that it needs.
    sa.Column("terminate_at", UtcDateTime),
    # How many payloads of its hooks the body has not been told. NULL: it has never made a hook.
    sa.Column("untold_payloads", sa.Integer),
    # Which of its lives it is in, and when that began. The first has the number 0, and began with the run.
    sa.Column("life", sa.Integer, nullable=False, server_default="0"),
    sa.Column("life_began_at", UtcDateTime),
    # From which the tokens of hooks are derived that the body has given none, and the URLs of webhooks. NULL: none was.
    sa.Column("secret", sa.Text),
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
    # Its place in the body: the path of asyncio tasks, then the ordinal in that task (`0:2`, `0.1:1`).
    sa.Column("node_id", sa.Text, primary_key=True),
    # The life of its run that it is in. Those of lives before are out of the way: the body is told of none of them.
    sa.Column("life", sa.Integer, nullable=False, server_default="0"),
    # The order in which the body planned the nodes of a run.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    # Where in the body's file the call is.
    sa.Column("line", sa.Integer, nullable=False),
    # The epoch that planned it with this name and these arguments. A message names it: one of an older plan finds nothing.
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("args", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    # 1 while it waits for the node or join before it, then 0; 2: out of reach until the body has heard of a surprise.
    sa.Column("unmet", sa.Integer, nullable=False),
    # The nodes and joins that this node's record makes ready.
    sa.Column("next", sa.Text, nullable=False),
    # The attempt that runs or has run last, from 1; with `owner` it fences a record.
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # Those of the attempts that do not count against `max_retries`: released, held, lost, or retried at no cost.
    sa.Column("free_attempts", sa.Integer, nullable=False, server_default="0"),
    # With how many dead workers the step is charged.
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    # The process that runs the node.
    sa.Column("owner", sa.Text),
    # A message with a countdown brings the end of the sleep, or the next attempt: the clock comes second.
    sa.Column("is_carried", sa.Boolean, nullable=False, server_default=sa.false()),
    # Ready, and not published yet: it waits for its window of a wide group.
    sa.Column("is_held", sa.Boolean, nullable=False, server_default=sa.false()),
    # A failure of it is a value to the body: it is awaited by a `gather` that returns exceptions.
    sa.Column("fails_as_value", sa.Boolean, nullable=False, server_default=sa.false()),
    # Since when a step that runs is to stop: its await was cancelled, or its run has ended. NULL: it is wanted.
    sa.Column("cancelled_at", UtcDateTime),
    # When a sleep ends, or the next attempt may begin.
    sa.Column("due_at", UtcDateTime),
    sa.Column("output", sa.Text),
    sa.Column("error", sa.Text),
    # The number under which the body was told of the record, and when. NULL: it has not been told yet.
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
    # What the body has not been told of: all that is left of a run, however long it is.
    sa.Index(
        "ix_nodes_undelivered",
        "run_id",
        "position",
        sqlite_where=sa.text("delivered IS NULL"),
        postgresql_where=sa.text("delivered IS NULL"),
        postgresql_concurrently=True,  # beside running workers, by `schema.upgrade`
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

# Attempts that gave no result; of the one that did, the node has everything. A step that is held again for the same reason adds none.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),  # failed, retried, released, held, lost, cancelled
    sa.Column("error", sa.Text),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime, nullable=False),
)

joins = sa.Table(
    "joins",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("join_id", sa.Text, primary_key=True),
    # `chord`: lets a step begin; `wait`: the body goes on; `end`: the run ends.
    sa.Column("kind", sa.Text, nullable=False),
    # How many members have no result yet. One that fails is never counted: the body is told of it instead.
    sa.Column("remaining", sa.Integer, nullable=False),
    # `open`, or `fired`. Nothing reads it: a later release drops it.
    sa.Column("state", sa.Text, nullable=False),
    # Of a `chord`: the nodes that it lets begin.
    sa.Column("next", sa.Text, nullable=False),
    # Of a `wait`: where the body waits, and why it does, in words.
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

# Where payloads come in that a run waits for. A hook is a node, too, which is complete with the commit that makes it.
hooks = sa.Table(
    "hooks",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("node_id", sa.Text, primary_key=True),
    # By which door payloads come; one kind of door never opens another.
    sa.Column("namespace", sa.Text, nullable=False),
    # SHA-256 of the token, which is nowhere here.
    sa.Column("token_hash", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    # What the body has said of it, for whoever asks for the hook by its token.
    sa.Column("metadata", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    # From then on it takes nothing, and its token is free. NULL: never.
    sa.Column("expires_at", UtcDateTime),
    # NULL: it is open.
    sa.Column("closed_at", UtcDateTime),
    # The life of its run that has made it.
    sa.Column("life", sa.Integer, nullable=False, server_default="0"),
    # A token has at most one open hook.
    sa.Index(
        "ux_hooks_open",
        "namespace",
        "token_hash",
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    ),
    # For a payload that is sent again when its hook was closed.
    sa.Index("ix_hooks_token", "namespace", "token_hash", "created_at"),
)

# What was sent to the hooks of a run. A payload belongs to the run and the token, and outlives the hook.
hook_payloads = sa.Table(
    "hook_payloads",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    # The run's `signals` with it: the order in which they came.
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("token_hash", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    # Of the body, in bytes.
    sa.Column("size", sa.Integer, nullable=False),
    # Names one sending: of the same run and token, another with this key is the same.
    sa.Column("dedup_key", sa.Text),
    sa.Column("received_at", UtcDateTime, nullable=False),
    # The number under which the body was told of it, and when. NULL: it has not been told yet.
    sa.Column("delivered", sa.Integer),
    sa.Column("delivered_at", UtcDateTime),
    # The life of its run in which the body is, or was, told of it.
    sa.Column("life", sa.Integer, nullable=False, server_default="0"),
    # Whether the body has taken it from its queue.
    sa.Column("is_taken", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index(
        "ux_hook_payloads_dedup_key",
        "run_id",
        "namespace",
        "token_hash",
        "dedup_key",
        unique=True,
        sqlite_where=sa.text("dedup_key IS NOT NULL"),
        postgresql_where=sa.text("dedup_key IS NOT NULL"),
    ),
    # What is left in the queues of a run, however long it is.
    sa.Index(
        "ix_hook_payloads_untaken",
        "run_id",
        "number",
        sqlite_where=sa.text("is_taken = 0"),
        postgresql_where=sa.text("NOT is_taken"),
    ),
)

# What is too large for the row that it belongs to, and stands apart from it (`ckworkflow.codec.large`).
large_values = sa.Table(
    "large_values",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    # SHA-256 of the value: of a run, the same one is here once.
    sa.Column("digest", sa.Text, primary_key=True),
    # The last life of its run that needs it.
    sa.Column("life", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
)

# What a run has to tell another one: no transaction changes two runs that exist.
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("sender", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),  # ended, cancel, await
    sa.Column("receiver", sa.Text, primary_key=True),
    # Of an end: where the parent has started the child. Of a question for it: the node that waits. Of a request: where the body of the sender makes it; empty: it is told one.
    sa.Column("node_id", sa.Text, primary_key=True),
    # Of a request to cancel: why, and after how many microseconds the receiver is terminated.
    sa.Column("reason", sa.Text),
    sa.Column("grace", sa.BigInteger),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

processes = sa.Table(
    "processes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),  # worker
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Text, nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("alive_until", UtcDateTime, nullable=False),
    # The queues that a worker consumes, as a JSON list; NULL: it does not say.
    sa.Column("queues", sa.Text),
)

store = sa.Table(
    "store",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
)

# What one of many clocks does now and then: the clock that moves `due_at` does it.
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
