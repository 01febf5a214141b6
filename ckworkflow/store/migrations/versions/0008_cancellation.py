"""Requests to cancel a run, and steps that are to stop.

An expand step: code of revision 1 and later may go on using the database. It lets a run go on that is to be cancelled, until
newer code looks at it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("runs", sa.Column("cancel_requested_at", Time, nullable=True))
    op.add_column("runs", sa.Column("cancel_reason", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("cancel_delivered", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("cancel_delivered_at", Time, nullable=True))
    op.add_column("runs", sa.Column("terminate_at", Time, nullable=True))
    op.add_column("nodes", sa.Column("cancelled_at", Time, nullable=True))
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 8, "oldest_code": 1}],
    )
