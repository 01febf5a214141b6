"""Commits: how many transactions that write a test has made."""

from __future__ import annotations

import pytest

from ckworkflow.store.transaction import Transaction


def count_commits(monkeypatch: pytest.MonkeyPatch) -> list[Transaction]:
    """Return a list that grows with each commit of a transaction that may write."""
    commits: list[Transaction] = []
    commit = Transaction.commit

    def counted(tx: Transaction) -> None:
        commit(tx)
        if tx.is_write:
            commits.append(tx)

    monkeypatch.setattr(Transaction, "commit", counted)
    return commits
