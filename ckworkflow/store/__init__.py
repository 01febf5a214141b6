"""The database: every SQL statement of the project."""

from ckworkflow.store.database import Database, Transaction

__all__ = ["Database", "Transaction"]
