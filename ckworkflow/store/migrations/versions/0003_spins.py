"""The count of continuations that told their body nothing, and runs that are held for it.

An expand step: code of revision 1 or 2 may go on using the database. It neither counts nor looks at the count.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns. Their defaults are constant: neither database rewrites the table for them."""
    op.add_column("runs", sa.Column("spins", sa.Integer(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("spins_since", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("held", sa.Text(), nullable=True))
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 3, "oldest_code": 1}],
    )
