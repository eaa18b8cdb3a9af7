"""Every SELECT about staff, keys and the trail."""

from __future__ import annotations

from sqlalchemy import exists, select

from webapp.accounts.models import StaffUser
from webapp.extensions import db


def any_staff() -> bool:
    """Whether anybody can sign in at all."""
    return bool(db.session.scalar(select(exists().where(StaffUser.disabled_at.is_(None)))))
