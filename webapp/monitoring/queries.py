"""Every SELECT that watches over the program."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, func, select

from webapp.extensions import db
from webapp.monitoring.models import Worker

# A worker that was silent for so long is taken for dead: two beats may be late.
SILENT = timedelta(seconds=60)


def is_worker_alive(host: str) -> bool:
    """Whether a worker on this machine (or in this container) was heard of in the last minute."""
    found = select(Worker.id).where(Worker.host == host, lives())
    return db.session.scalar(found.limit(1)) is not None


def lives() -> ColumnElement[bool]:
    """Of a worker: it was heard of lately and has not said that it ends."""
    return Worker.stopped_at.is_(None) & (Worker.seen_at > func.now() - SILENT)
