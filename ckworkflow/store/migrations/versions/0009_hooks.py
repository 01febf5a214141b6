"""Hooks, and what is sent to them.

An expand step: code of revision 1 and later may go on using the database. It cannot continue a run that waits for a hook: it does
not know what such a body calls, and holds it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns and the tables."""
    op.add_column("runs", sa.Column("untold_payloads", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("secret", sa.Text(), nullable=True))
    op.create_table(
        "hooks",
        sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("node_id", sa.Text(), primary_key=True),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("expires_at", Time, nullable=True),
        sa.Column("closed_at", Time, nullable=True),
    )
    op.create_index(
        "ux_hooks_open",
        "hooks",
        ["namespace", "token_hash"],
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index("ix_hooks_token", "hooks", ["namespace", "token_hash", "created_at"])
    op.create_table(
        "hook_payloads",
        sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("dedup_key", sa.Text(), nullable=True),
        sa.Column("received_at", Time, nullable=False),
        sa.Column("delivered", sa.Integer(), nullable=True),
        sa.Column("delivered_at", Time, nullable=True),
        sa.Column("is_taken", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_index(
        "ux_hook_payloads_dedup_key",
        "hook_payloads",
        ["run_id", "namespace", "token_hash", "dedup_key"],
        unique=True,
        sqlite_where=sa.text("dedup_key IS NOT NULL"),
        postgresql_where=sa.text("dedup_key IS NOT NULL"),
    )
    op.create_index(
        "ix_hook_payloads_untaken",
        "hook_payloads",
        ["run_id", "number"],
        sqlite_where=sa.text("is_taken = 0"),
        postgresql_where=sa.text("NOT is_taken"),
    )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 9, "oldest_code": 1}],
    )
