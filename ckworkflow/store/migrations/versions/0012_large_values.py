"""Large values apart from their rows.

An expand step: code of revision 1 and later may go on using the database. What it reads of a value that stands apart it cannot decode, and holds
the run until newer code goes on with it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "large_values",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("life", sa.Integer(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "digest"),
    )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 12, "oldest_code": 1}],
    )
