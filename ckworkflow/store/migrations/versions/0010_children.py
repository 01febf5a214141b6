"""Runs that are started by runs, and what runs tell each other.

An expand step: code of revision 1 and later may go on using the database. It lets the end of a child be told, and its parent's cancellation
reach it, by newer code.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("runs", sa.Column("parent_node", sa.Text(), nullable=True))
    op.add_column(
        "runs", sa.Column("has_notes", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_table(
        "notes",
        sa.Column("sender", sa.Text(), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("receiver", sa.Text(), primary_key=True),
        sa.Column("node_id", sa.Text(), primary_key=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("grace", sa.BigInteger(), nullable=True),
        sa.Column("created_at", Time, nullable=False),
    )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 10, "oldest_code": 1}],
    )
