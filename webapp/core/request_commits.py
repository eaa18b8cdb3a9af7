"""Note whether the view of a request has committed, so that no error page says that nothing was saved."""

from __future__ import annotations

from flask import g, has_request_context
from sqlalchemy import event

from webapp.core.extensions import db


def start_view() -> None:
    """Forget the commits of hooks that run before the view: the last use of a session or an API key."""
    g.pop("has_committed", None)


def has_view_committed() -> bool:
    """Return whether the view of this request has committed a transaction of the session."""
    return bool(g.get("has_committed"))


@event.listens_for(db.session, "after_commit")
def _note_commit(_session: object) -> None:
    if has_request_context():
        g.has_committed = True
