"""The suppression list in tests."""

from __future__ import annotations

from sqlalchemy import select

from webapp.core.extensions import db
from webapp.customers.models import Suppression
from webapp.customers.suppressions import actions as suppression_actions


def suppression_reasons() -> dict[str, str]:
    db.session.expire_all()
    return {row.email: row.reason for row in db.session.scalars(select(Suppression))}


def add_suppression(
    email: str = "ada@example.com", reason: str = "bounced", source: int | str = "staff", words: str = ""
) -> bool:
    changed = suppression_actions.add_suppression(email, reason, source, words)
    db.session.commit()
    return changed
