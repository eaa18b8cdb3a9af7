"""Fixtures of the tests of `webapp/core`."""

from __future__ import annotations

import pytest

from webapp.core import database_connections


@pytest.fixture(autouse=True)
def commit_guard(monkeypatch: pytest.MonkeyPatch) -> database_connections._CommitGuard:
    """Let a commit that times out in a test affect no other test."""
    guard = database_connections._CommitGuard()
    monkeypatch.setattr(database_connections, "_commit_guard", guard)
    return guard
