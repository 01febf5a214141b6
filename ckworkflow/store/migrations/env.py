"""Runs migrations inside the transaction that `ckworkflow.store.schema` has opened."""

from alembic import context

from ckworkflow.store.schema import VERSION_TABLE
from ckworkflow.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds all of it
    version_table=VERSION_TABLE,
)
context.run_migrations()
