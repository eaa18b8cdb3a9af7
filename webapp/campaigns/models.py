"""Tables for campaigns, their batches and their deliveries.

A delivery has a row only if it did not succeed at the first attempt.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import accumulate, pairwise

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, Computed, ForeignKey, Index, Integer, UniqueConstraint, func
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Id, Model

BATCH_SIZE = 500
WINDOW_SIZE = 50
# Start of `pause_reason` when staff paused the campaign; never translated, because it is stored and compared.
STAFF_PAUSE_PREFIX = "paused by "  # no translation


class Campaign(Model):
    """One mailing of an offer to its audience: the announcement or a reminder."""

    __tablename__ = "campaign"
    id: Mapped[Id]
    offer_id: Mapped[int] = mapped_column(ForeignKey("offer.id"))
    # The offer's audience at launch. `prepare_campaign` uses it even if the offer gets another audience later.
    audience_id: Mapped[int | None] = mapped_column(ForeignKey("audience.id"))
    kind: Mapped[str] = mapped_column(server_default="announcement")
    subject: Mapped[str]
    text: Mapped[str]
    html: Mapped[str] = mapped_column(server_default="")
    status: Mapped[str] = mapped_column(server_default="draft")
    pause_reason: Mapped[str | None]
    # Why no email is sent although the campaign is not paused, for example because the relay cannot be reached.
    delivery_warning: Mapped[str | None] = mapped_column("trouble")
    # For an uncertain delivery whose worker was killed: resend it, or hold it for staff to resolve.
    uncertain_policy: Mapped[str] = mapped_column(server_default="resend")
    # When it is launched automatically; `launched_by` is then who scheduled it.
    scheduled_at: Mapped[datetime | None]
    # Whether it also goes to customers who received an earlier campaign of this kind that was then cancelled.
    mails_again: Mapped[bool] = mapped_column(server_default="false")
    total: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # The last customer id that `prepare_campaign` has processed; `prepared_at` is set when it has processed them all.
    prepared_to: Mapped[int] = mapped_column(BigInteger, server_default="0")
    prepared_at: Mapped[datetime | None]
    # Start of the current period of uninterrupted sending, and the emails sent before it; the rate needs both.
    sending_since: Mapped[datetime | None]
    sent_before: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # The sum over its batches, stored once all are finished; until then it is computed on each read.
    sent_in_batches: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    launched_at: Mapped[datetime | None]
    launched_by: Mapped[str | None]
    finished_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    # When the replies of mail servers were shortened because their retention period had ended.
    replies_cleared_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("kind in ('announcement', 'reminder')", name="kind"),
        CheckConstraint(
            "status in ('draft', 'scheduled', 'preparing', 'sending', 'paused', 'cancelled', 'done')",
            name="status",
        ),
        CheckConstraint("uncertain_policy in ('resend', 'hold')", name="uncertain_policy"),
        CheckConstraint("(status = 'cancelled') = (cancelled_at is not null)", name="cancelled"),
        Index("ix_campaign_offer_id", "offer_id"),
        # An offer is announced once, even when two launches run concurrently. The condition does not use the status,
        # because each status change would then add an entry to every index.
        Index(
            "uq_campaign_announcement",
            "offer_id",
            unique=True,
            postgresql_where=sql("kind = 'announcement' and cancelled_at is null"),
        ),
        # One unfinished reminder per offer at a time, from draft until its batches are finished.
        Index(
            "uq_campaign_open_reminder",
            "offer_id",
            unique=True,
            postgresql_where=sql("kind = 'reminder' and cancelled_at is null and sent_in_batches is null"),
        ),
        CheckConstraint("status <> 'scheduled' or scheduled_at is not null", name="scheduled"),
        {"postgresql_with": {"fillfactor": 50}},
    )

    @property
    def paused_by(self) -> str | None:
        """The user who paused the campaign; None if nobody did."""
        reason = self.pause_reason or ""
        return reason.removeprefix(STAFF_PAUSE_PREFIX) if reason.startswith(STAFF_PAUSE_PREFIX) else None


class Batch(Model):
    """A fixed part of a campaign's recipients, sent by one worker over one connection."""

    __tablename__ = "batch"
    id: Mapped[Id]
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    seq: Mapped[int]
    first_id: Mapped[int] = mapped_column(BigInteger)
    last_id: Mapped[int] = mapped_column(BigInteger)
    # The customer ids, ascending, as gaps (see `decode_gaps`): 4 kB of ids compress to 2 kB, their gaps to 0.1-1.5 kB.
    gaps: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    # Recipients before `window_start` are processed; emails to those up to `window_end` may be being sent now.
    window_start: Mapped[int] = mapped_column(server_default="0")
    window_end: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(server_default="pending")
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    sent: Mapped[int] = mapped_column(server_default="0")
    # Pairs of (start index of a window, seconds from the campaign's launch to its opening). The last column, because
    # it grows: WAL stores only the part of a row that differs from the old version.
    windows: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default="{}")

    __table_args__ = (
        UniqueConstraint("campaign_id", "seq"),
        CheckConstraint("status in ('pending', 'sending', 'done', 'cancelled')", name="status"),
        # Finds the batch of a customer within a campaign: batches are ordered by customer id.
        Index("ix_batch_campaign_id_last_id", "campaign_id", "last_id"),
        Index("ix_batch_open", "seq", "campaign_id", postgresql_where=sql("status in ('pending', 'sending')")),
        {"postgresql_with": {"fillfactor": 70}},
    )


def encode_gaps(ids: Iterable[int]) -> list[int]:
    """Encode ascending ids as differences, the first one from zero."""
    return [after - before for before, after in pairwise((0, *ids))]


def decode_gaps(gaps: Iterable[int]) -> list[int]:
    """Decode the ids that `encode_gaps` encoded.

    In SQL the k-th id is the sum of the first k gaps.
    """
    return list(accumulate(gaps))


class BatchCursor(Model):
    """The progress of a batch's owner inside its window.

    Unlogged: the row survives a killed worker. After a database crash the table is empty, which makes the open window
    uncertain rather than wrong.
    """

    __tablename__ = "batch_cursor"
    batch_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    cursor: Mapped[int]

    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": 50}},)


class SendRateLimit(Model):
    """The single row with the send slots of the rate limit that all workers share.

    `free_at` is when the next email may be sent, by the generic cell rate algorithm (ITU-T I.371).
    """

    __tablename__ = "mail_pace"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    free_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="one"), {"prefixes": ["UNLOGGED"]})


class MailIssue(Model):
    """A delivery that was not accepted at the first attempt, was skipped or bounced.

    No row means sent, or not attempted yet.
    """

    __tablename__ = "mail_issue"
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"), primary_key=True)
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[str]
    smtp_code: Mapped[int | None]
    text: Mapped[str] = mapped_column(server_default="")
    next_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    # Incremented by each claim: a fencing token for one attempt, like the epoch of a batch.
    epoch: Mapped[int] = mapped_column(server_default="0")
    # An earlier copy may have arrived. Never reset: such a delivery is never recorded as skipped, and as failed only
    # after a bounce.
    doubt: Mapped[bool] = mapped_column(server_default=sql("false"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    # The key for grouping failures: the enhanced status code of the reply (RFC 3463), or the stored text of Onecode.
    cause: Mapped[str] = mapped_column(
        Computed(
            "case when smtp_code is null then left(text, 60) "
            r"else coalesce(substring(text from '^[245]\.\d{1,3}\.\d{1,3}'), '') end",
            persisted=True,
        )
    )

    __table_args__ = (
        # `left`: dismissed by staff while uncertain; whether it was sent will never be known.
        CheckConstraint("state in ('deferred', 'failed', 'uncertain', 'skipped', 'sent_later', 'left')", name="state"),
        Index("ix_mail_issue_due", "next_at", postgresql_where=sql("next_at is not null")),
        Index("ix_mail_issue_campaign_id_state", "campaign_id", "state", "customer_id"),
        Index("ix_mail_issue_cause", "campaign_id", "state", "smtp_code", "cause", "customer_id"),
        Index("ix_mail_issue_uncertain", "campaign_id", postgresql_where=sql("state = 'uncertain'")),
    )
