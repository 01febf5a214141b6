"""The queues that each worker consumes, so that one which nobody consumes can be told of.

An expand step: code of revision 1 and later may go on using the database. It does not say what it consumes, and while
such a worker lives nothing is said of queues.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; there is no default to write into its rows."""
    op.add_column("processes", sa.Column("queues", sa.Text(), nullable=True))
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 6, "oldest_code": 1}],
    )
