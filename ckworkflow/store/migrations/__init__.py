"""Alembic migrations of the workflow database; `ckworkflow.store.schema` runs them."""
