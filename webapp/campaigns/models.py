"""Campaigns, their frozen batches, and a row for every mail that did not simply go out."""

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


class Campaign(Model):
    """One mailing of an offer's code to its audience."""

    __tablename__ = "campaign"
    id: Mapped[Id]
    offer_id: Mapped[int] = mapped_column(ForeignKey("offer.id"))
    # The offer's audience at the launch: what `prepare` walks, whatever becomes of the offer meanwhile.
    audience_id: Mapped[int | None] = mapped_column(ForeignKey("audience.id"))
    kind: Mapped[str] = mapped_column(server_default="announcement")
    subject: Mapped[str]
    text: Mapped[str]
    html: Mapped[str] = mapped_column(server_default="")
    status: Mapped[str] = mapped_column(server_default="draft")
    pause_reason: Mapped[str | None]
    # What keeps the mails from going out just now although nobody paused: the relay can't be reached.
    trouble: Mapped[str | None]
    # What becomes of the window that a dead worker left open: send it again, or hold it for staff to decide.
    uncertain_policy: Mapped[str] = mapped_column(server_default="resend")
    # When it starts by itself. Who said so stands in launched_by.
    scheduled_at: Mapped[datetime | None]
    # Whether it also goes to those who got an earlier mailing of its kind that was cancelled on the way.
    mails_again: Mapped[bool] = mapped_column(server_default="false")
    total: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # How far `prepare` has walked through the audience; prepared_at when it has seen all of it.
    prepared_to: Mapped[int] = mapped_column(BigInteger, server_default="0")
    prepared_at: Mapped[datetime | None]
    # Since when it has been sending without a break, and how many had gone out before: the rate comes from these.
    sending_since: Mapped[datetime | None]
    sent_before: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # The sum over its batches, kept once all of them are through; until then it is summed whenever somebody looks.
    sent_in_batches: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    launched_at: Mapped[datetime | None]
    launched_by: Mapped[str | None]
    finished_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("kind in ('announcement', 'reminder')", name="kind"),
        CheckConstraint(
            "status in ('draft', 'scheduled', 'preparing', 'sending', 'paused', 'cancelled', 'done')",
            name="status",
        ),
        CheckConstraint("uncertain_policy in ('resend', 'hold')", name="uncertain_policy"),
        CheckConstraint("(status = 'cancelled') = (cancelled_at is not null)", name="cancelled"),
        Index("ix_campaign_offer_id", "offer_id"),
        # An offer is announced once: a second launch changes nothing, however close to the first it comes. It does not
        # look at the status, whose changes would otherwise be new entries in every index.
        Index(
            "uq_campaign_announcement",
            "offer_id",
            unique=True,
            postgresql_where=sql("kind = 'announcement' and cancelled_at is null"),
        ),
        # One reminder of an offer at a time, from its draft until its batches are through.
        Index(
            "uq_campaign_open_reminder",
            "offer_id",
            unique=True,
            postgresql_where=sql("kind = 'reminder' and cancelled_at is null and sent_in_batches is null"),
        ),
        CheckConstraint("status <> 'scheduled' or scheduled_at is not null", name="scheduled"),
        {"postgresql_with": {"fillfactor": 50}},
    )


class Batch(Model):
    """A frozen slice of a campaign's recipients that one worker sends over one connection."""

    __tablename__ = "batch"
    id: Mapped[Id]
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"))
    seq: Mapped[int]
    first_id: Mapped[int] = mapped_column(BigInteger)
    last_id: Mapped[int] = mapped_column(BigInteger)
    # Whose mails these are, ascending: `ids_of` tells. 4 kB of ids compress to 2 kB, their gaps to 0.1 to 1.5 kB.
    gaps: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    # Everyone before `window_start` is settled; up to `window_end` mails may be going out now.
    window_start: Mapped[int] = mapped_column(server_default="0")
    window_end: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(server_default="pending")
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    sent: Mapped[int] = mapped_column(server_default="0")
    # When its windows were opened, in pairs: the place where one begins, seconds since the campaign's launch. Last of
    # the columns, for it is what grows: WAL has only what differs between the old row and the new one.
    windows: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default="{}")

    __table_args__ = (
        UniqueConstraint("campaign_id", "seq"),
        CheckConstraint("status in ('pending', 'sending', 'done', 'cancelled')", name="status"),
        # Where in a campaign a customer is, if at all: its batches follow each other by id.
        Index("ix_batch_campaign_id_last_id", "campaign_id", "last_id"),
        Index("ix_batch_open", "seq", "campaign_id", postgresql_where=sql("status in ('pending', 'sending')")),
        {"postgresql_with": {"fillfactor": 70}},
    )


def encode_gaps(ids: Iterable[int]) -> list[int]:
    """Ids as distances: each from the one before, the first from zero."""
    return [after - before for before, after in pairwise((0, *ids))]


def decode_gaps(gaps: Iterable[int]) -> list[int]:
    """The ids that `gaps_of` was given. In SQL the k-th one is the sum of the first k gaps."""
    return list(accumulate(gaps))


class BatchCursor(Model):
    """How far the owner of a batch has come inside its window. Unlogged: it survives a killed worker, and after a
    crash of the database it is empty, which makes the window uncertain rather than wrong."""

    __tablename__ = "batch_cursor"
    batch_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    cursor: Mapped[int]

    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": 50}},)


class SendRateLimit(Model):
    """The one row by which all workers share the relay's rate limit: from when on the next mail may go out (the
    generic cell rate algorithm, ITU-T I.371)."""

    __tablename__ = "mail_pace"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    free_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="one"), {"prefixes": ["UNLOGGED"]})


class MailIssue(Model):
    """What became of a mail that did not simply go out. No row means sent, skipped nothing, or not yet."""

    __tablename__ = "mail_issue"
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaign.id"), primary_key=True)
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    state: Mapped[str]
    smtp_code: Mapped[int | None]
    text: Mapped[str] = mapped_column(server_default="")
    next_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    # Rises with each claim and never falls: what guards a try, as that of a batch guards the batch.
    epoch: Mapped[int] = mapped_column(server_default="0")
    # A copy may have arrived before. Once in doubt, always: it is never called failed or left out again.
    doubt: Mapped[bool] = mapped_column(server_default=sql("false"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    # What failures are counted by: the enhanced status code of the relay's answer (RFC 3463), or our own words.
    cause: Mapped[str] = mapped_column(
        Computed(
            "case when smtp_code is null then left(text, 60) "
            r"else coalesce(substring(text from '^[245]\.\d{1,3}\.\d{1,3}'), '') end",
            persisted=True,
        )
    )

    __table_args__ = (
        # `left` as it is by staff: nobody will ever know whether it went out.
        CheckConstraint("state in ('deferred', 'failed', 'uncertain', 'skipped', 'sent_later', 'left')", name="state"),
        Index("ix_mail_issue_due", "next_at", postgresql_where=sql("next_at is not null")),
        Index("ix_mail_issue_campaign_id_state", "campaign_id", "state", "customer_id"),
        Index("ix_mail_issue_cause", "campaign_id", "state", "smtp_code", "cause", "customer_id"),
        Index("ix_mail_issue_uncertain", "campaign_id", postgresql_where=sql("state = 'uncertain'")),
    )
