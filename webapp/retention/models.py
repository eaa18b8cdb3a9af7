"""The table for the progress of retention."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model


class RetentionRun(Model):
    """The last run of retention for one kind of data.

    A worker claims a run by its start time, so that only one of them runs it.
    """

    __tablename__ = "retention_run"
    kind: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    # Whether the run reached the end; otherwise the next one continues after a minute.
    is_complete: Mapped[bool] = mapped_column(server_default="false")
    removed: Mapped[int] = mapped_column(BigInteger, server_default="0")
    removed_in_total: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (CheckConstraint("kind in ('customers', 'redemptions', 'deliveries', 'audit')", name="kind"),)
