"""Lives of a run.

An expand step: code of revision 1 and later may go on using the database. It knows the first life of a run only, so a run that has gone on to another
is continued by newer code.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"

Time = sa.BigInteger().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns."""
    for table in ("runs", "nodes", "hooks", "hook_payloads"):
        op.add_column(table, sa.Column("life", sa.Integer(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("life_began_at", Time, nullable=True))
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 11, "oldest_code": 1}],
    )
