"""Note whether the view of a request has committed, so that no error page says that nothing was saved."""

from __future__ import annotations

from flask import g, has_request_context
from sqlalchemy import event
from sqlalchemy.orm import Session

from webapp.core.extensions import db


def start_view() -> None:
    """Note that the view begins: commits of earlier hooks, such as the last use of a session, do not count."""
    g.has_view_committed = False


def has_view_started() -> bool:
    """Return whether the view of this request has begun."""
    return "has_view_committed" in g


def has_view_committed() -> bool:
    """Return whether the view of this request has committed a transaction of the session."""
    return bool(g.get("has_view_committed"))


@event.listens_for(db.session, "after_commit")
def _note_commit(session: Session) -> None:
    # The event occurs at the end of a savepoint, too.
    if has_request_context() and has_view_started() and not session.in_nested_transaction():
        g.has_view_committed = True
