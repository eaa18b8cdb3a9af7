"""Tables for customers, audiences, the suppression list and imports."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.email_addresses import HASHED_EMAIL_PREFIX
from webapp.core.extensions import Id, Model

# Replaces the email address of an erased customer. Without an @ it cannot be a valid address.
ERASED_EMAIL_PLACEHOLDER = "erased customer"
# `customer.active_at` is written only if it is older than this: a shop that imports all customers every night would
# rewrite every row each time otherwise.
ACTIVITY_PRECISION = timedelta(days=7)
# The reasons for a suppression, the weakest first.
SUPPRESSION_REASONS = ("bounced", "unsubscribed", "complained")


class Customer(Model):
    """A customer, identified by email address.

    Never deleted: an erased customer keeps only the id.
    """

    __tablename__ = "customer"
    id: Mapped[Id]
    email: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    email_as_given: Mapped[str]
    name: Mapped[str] = mapped_column(server_default="")
    locale: Mapped[str | None]
    source_id: Mapped[str | None] = mapped_column(Text(collation="C"), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_at: Mapped[datetime | None]
    # The customer has been active at this time or up to `ACTIVITY_PRECISION` later: created, edited, imported or sent
    # through the API. Retention moves it to the time of a later redemption or campaign.
    active_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("length(email) <= 320 and email <> ''", name="email_length"),
        # Erasure is final: personal data cannot be written to an erased row again.
        CheckConstraint(
            "erased_at is null or (email = 'erased ' || id and email_as_given = 'erased customer'"
            " and name = '' and locale is null and source_id is null)",
            name="erased",
        ),
        Index("ix_customer_erased_at", "erased_at", postgresql_where=text("erased_at is not null")),
        Index("ix_customer_active_at", "active_at", postgresql_where=text("erased_at is null")),
        # Makes a search by any word of a name an index lookup, also with a million customers.
        Index("ix_customer_words", text("to_tsvector('simple', name)"), postgresql_using="gin"),
    )


class Suppression(Model):
    """An entry of the suppression list: an address that gets no campaign emails.

    The address may or may not belong to a customer. This table is the only source of truth about suppression. For an
    erased customer it keeps only the hash of the address (`hash_email`), which reveals no personal data; a
    customer imported again with that address stays suppressed.
    """

    __tablename__ = "suppression"
    email: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Origin: `campaign 3`, `import`, `staff`, `api` or `relay`; `earlier` predates the suppression list.
    source: Mapped[str]
    detail: Mapped[str] = mapped_column("words", server_default="")

    @property
    def campaign_id(self) -> int | None:
        """Id of the campaign whose email caused the suppression, if any."""
        kind, _, number = self.source.partition(" ")
        return int(number) if kind == "campaign" and number.isdigit() else None

    @property
    def is_hashed(self) -> bool:
        """Whether only the hash of the address is known, because its customer was erased."""
        return self.email.startswith(HASHED_EMAIL_PREFIX)

    __table_args__ = (
        CheckConstraint("reason in ('unsubscribed', 'bounced', 'complained')", name="reason"),
        CheckConstraint("length(email) <= 320 and email <> ''", name="email_length"),
    )


class Audience(Model):
    """A named list of customers.

    The audience of all customers has no row.
    """

    __tablename__ = "audience"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AudienceMember(Model):
    """Membership of a customer in an audience."""

    __tablename__ = "audience_member"
    audience_id: Mapped[int] = mapped_column(ForeignKey("audience.id"), primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"), primary_key=True)
    joined_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_audience_member_customer_id", "customer_id"),)


class CustomerImport(Model):
    """An uploaded file, stored in chunks and then merged by a worker."""

    __tablename__ = "customer_import"
    id: Mapped[Id]
    filename: Mapped[str]
    media_type: Mapped[str]
    # Whether the rows are customers or entries of the suppression list.
    kind: Mapped[str] = mapped_column(server_default="customers")
    audience_id: Mapped[int | None] = mapped_column(ForeignKey("audience.id"))
    status: Mapped[str] = mapped_column(server_default="receiving")
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    size: Mapped[int] = mapped_column(BigInteger, server_default="0")
    read: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rows: Mapped[int] = mapped_column(BigInteger, server_default="0")
    created: Mapped[int] = mapped_column(BigInteger, server_default="0")
    updated: Mapped[int] = mapped_column(BigInteger, server_default="0")
    unchanged: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Rows replaced by a later row of the same file with the same email address.
    duplicates: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rejected: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Last merged line of each partition. None until the whole file has been read.
    merged_to: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    by: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # The process that receives or merges the file owns the import until then. After that another worker may continue
    # under the next epoch; a former owner that was only slow finds the epoch changed and stops.
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(server_default="0")

    __table_args__ = (
        CheckConstraint("kind in ('customers', 'suppressions')", name="kind"),
        CheckConstraint("status in ('receiving', 'queued', 'running', 'done', 'failed')", name="status"),
        Index(
            "ix_customer_import_open",
            "lease_until",
            postgresql_where=text("status in ('receiving', 'queued', 'running')"),
        ),
    )

    @property
    def is_open(self) -> bool:
        """Whether the import has neither finished nor failed."""
        return self.status in ("receiving", "queued", "running")

    @property
    def is_all_rejected(self) -> bool:
        """Whether the import is done, but has imported no row."""
        return self.status == "done" and self.rejected == self.rows > 0

    @property
    def rows_to_merge(self) -> int:
        """Number of rows to merge, as far as the file has been read."""
        return self.rows - self.rejected - self.duplicates

    @property
    def merged_rows(self) -> int:
        """Number of rows merged so far."""
        return self.created + self.updated + self.unchanged

    def rows_per_second(self, now: datetime) -> int | None:
        """Return the average rows per second since the start; None in the first second."""
        seconds = ((self.finished_at or now) - (self.started_at or now)).total_seconds()
        rows = self.rows if self.merged_to is None else self.rejected + self.duplicates + self.merged_rows
        return round(rows / seconds) if seconds >= 1 and rows else None


class ImportChunk(Model):
    """A chunk of an uploaded file; web processes and workers share no disk.

    Deleted when the import ends.
    """

    __tablename__ = "import_chunk"
    import_id: Mapped[int] = mapped_column(ForeignKey("customer_import.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


# Codes of rows that were imported although part of their values was rejected.
WARNING_CODES = frozenset(("locale_unknown", "reason_unknown", "cells_odd"))


class RejectedRow(Model):
    """A row rejected wholly or in part, with the reason and the original text."""

    __tablename__ = "import_rejection"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    import_id: Mapped[int] = mapped_column(ForeignKey("customer_import.id"))
    line: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str]
    detail: Mapped[str]
    row: Mapped[str]

    __table_args__ = (Index("ix_import_rejection_import_id_line", "import_id", "line"),)

    @property
    def is_warning(self) -> bool:
        """Whether the row was imported despite the error."""
        return self.code in WARNING_CODES
