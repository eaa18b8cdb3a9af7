"""Whether the view of a request has committed."""

from __future__ import annotations

from flask import Flask
from sqlalchemy import text

from webapp.core import request_commits
from webapp.core.extensions import db


def test_only_a_commit_of_the_view_counts(app: Flask) -> None:
    with app.test_request_context():
        db.session.execute(text("select 1"))
        # For example the last use of a session.
        db.session.commit()
        assert not request_commits.has_view_started()

        request_commits.start_view()
        with db.session.begin_nested():
            db.session.execute(text("select 1"))
        db.session.rollback()
        assert (request_commits.has_view_started(), request_commits.has_view_committed()) == (True, False)

        db.session.execute(text("select 1"))
        db.session.commit()
        assert request_commits.has_view_committed()
    with app.test_request_context():
        request_commits.start_view()
        assert not request_commits.has_view_committed()
