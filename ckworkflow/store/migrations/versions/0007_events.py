"""The time that a body has been told, its last surprise, and the steps whose failures are values to it.

An expand step: code of revision 1 and later may go on using the database. What it does not write is worked out from the rest.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns. What has a default has a constant one: neither database rewrites the table for it."""
    op.add_column("runs", sa.Column("told_at", Time, nullable=True))
    op.add_column("runs", sa.Column("last_surprise", sa.Integer(), nullable=True))
    op.add_column(
        "nodes", sa.Column("fails_as_value", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 7, "oldest_code": 1}],
    )
