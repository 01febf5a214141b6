"""An index of the nodes that the body of a run has not been told of.

An expand step: code of any revision before may go on using the database.

On a server it is not made here: `schema.upgrade` makes it afterwards, beside the workers.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"


def upgrade() -> None:
    """Add the index on SQLite."""
    if op.get_bind().dialect.name == "sqlite":
        op.create_index(
            "ix_nodes_undelivered",
            "nodes",
            ["run_id", "position"],
            unique=False,
            sqlite_where=sa.text("delivered IS NULL"),
        )
    op.bulk_insert(
        sa.table("schema_info", sa.column("revision", sa.Integer), sa.column("oldest_code", sa.Integer)),
        [{"revision": 5, "oldest_code": 1}],
    )
