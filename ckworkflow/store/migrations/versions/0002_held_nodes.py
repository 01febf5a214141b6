"""Held nodes (the windows of a wide group), duties of the clocks, and an index for retention.

An expand step: code of revision 1 may go on using the database. It names the columns that it reads and
writes, so it does not see the new one, whose default is what its own nodes mean.

On a server the indexes are not made here: that would stop the writers of the two largest tables for as long
as it takes. `schema.upgrade` makes them afterwards, beside the workers.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the column, the table, and on SQLite the indexes."""
    op.create_table(
        "duties",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("due_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    # A constant default: neither database rewrites the table for it (PostgreSQL from 11 on).
    op.add_column("nodes", sa.Column("is_held", sa.Boolean(), server_default=sa.false(), nullable=False))
    if op.get_bind().dialect.name == "sqlite":
        op.create_index(
            "ix_runs_finished_at",
            "runs",
            ["finished_at"],
            unique=False,
            sqlite_where=sa.text("finished_at IS NOT NULL"),
        )
        op.create_index(
            "ix_nodes_held",
            "nodes",
            ["run_id", "position"],
            unique=False,
            sqlite_where=sa.text("is_held"),
        )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 2, "oldest_code": 1}],
    )
