"""Workers that were heard of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Text, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model


class Worker(Model):
    """A worker process, which says three times a minute that it lives. Unlogged: after a crash of the database each
    says so again.

    `swept` is when this process last got through each of the tasks that are done every minute, by name, in seconds
    since 1970; `busy_since` is when the task began that it has been at for longest.
    """

    __tablename__ = "worker"
    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stopped_at: Mapped[datetime | None]
    busy_since: Mapped[datetime | None]
    swept: Mapped[dict[str, Any]] = mapped_column(server_default="{}")

    # A handful of rows, written over and over: no index but the key, so that every write is a short one (HOT).
    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": 50}},)
