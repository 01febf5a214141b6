"""The database: every SQL statement of the project."""

from ckworkflow.store.database import Database
from ckworkflow.store.transaction import Transaction

__all__ = ["Database", "Transaction"]
