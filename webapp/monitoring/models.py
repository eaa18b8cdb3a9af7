"""Tables for monitoring: the worker processes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Text, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model


class Worker(Model):
    """A worker process and its latest heartbeat.

    The table is unlogged, so a heartbeat writes hardly any WAL; after a database crash each worker records itself
    again. `swept` contains the Unix time when this process last completed each periodic task, by task name;
    `busy_since` is when its longest-running task started.
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

    # A few rows that are updated all the time: no index but the primary key, so that every update is a HOT update.
    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": 50}},)
