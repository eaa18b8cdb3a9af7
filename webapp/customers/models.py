"""Customers, the named audiences they belong to, and the imports that bring them in."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.email_addresses import HASHED_EMAIL_PREFIX
from webapp.core.extensions import Id, Model

# What stands for the e-mail of an erased customer. Without an @ it is none that anybody could type or import.
ERASED_EMAIL_PLACEHOLDER = "erased customer"
# Why an address must not be mailed, the weakest reason first.
SUPPRESSION_REASONS = ("bounced", "unsubscribed", "complained")


class Customer(Model):
    """A person known by e-mail. Never deleted: an erased customer keeps the id and loses everything else."""

    __tablename__ = "customer"
    id: Mapped[Id]
    email: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    email_as_given: Mapped[str]
    name: Mapped[str] = mapped_column(server_default="")
    locale: Mapped[str | None]
    source_id: Mapped[str | None] = mapped_column(Text(collation="C"), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("length(email) <= 320 and email <> ''", name="email_length"),
        # Whoever is erased stays so: nothing that names a person can be written to the row again.
        CheckConstraint(
            "erased_at is null or (email = 'erased ' || id and email_as_given = 'erased customer'"
            " and name = '' and locale is null and source_id is null)",
            name="erased",
        ),
        Index("ix_customer_erased_at", "erased_at", postgresql_where=text("erased_at is not null")),
        # Searching by any word of a name stays an index look-up at a million customers.
        Index("ix_customer_words", text("to_tsvector('simple', name)"), postgresql_using="gin"),
    )


class Suppression(Model):
    """An address that must not be mailed, whether or not it is a customer's. The one truth about that.

    Of an erased customer only the hash of the address is kept (`hashed_email`): it names nobody, and yet whoever is
    imported again under that address is not mailed.
    """

    __tablename__ = "suppression"
    email: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Where it came from: `campaign 3`, `import`, `staff`, `api` or `relay`; `earlier`: before there was this list.
    source: Mapped[str]
    words: Mapped[str] = mapped_column(server_default="")

    @property
    def campaign_id(self) -> int | None:
        """The campaign whose mail it came of."""
        kind, _, number = self.source.partition(" ")
        return int(number) if kind == "campaign" and number.isdigit() else None

    @property
    def is_hashed(self) -> bool:
        """Whether nobody can tell any more whose address it is."""
        return self.email.startswith(HASHED_EMAIL_PREFIX)

    __table_args__ = (
        CheckConstraint("reason in ('unsubscribed', 'bounced', 'complained')", name="reason"),
        CheckConstraint("length(email) <= 320 and email <> ''", name="email_length"),
    )


class Audience(Model):
    """A named list of customers. "Everyone known" needs no row."""

    __tablename__ = "audience"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AudienceMember(Model):
    """A customer who is in an audience, and since when."""

    __tablename__ = "audience_member"
    audience_id: Mapped[int] = mapped_column(ForeignKey("audience.id"), primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"), primary_key=True)
    joined_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_audience_member_customer_id", "customer_id"),)


class CustomerImport(Model):
    """One uploaded file: first kept in pieces, then read by a worker, with what became of its rows."""

    __tablename__ = "customer_import"
    id: Mapped[Id]
    filename: Mapped[str]
    media_type: Mapped[str]
    # What it is a list of: customers, or addresses that must not be mailed (suppressions).
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
    # Rows that a later row of the same file, about the same e-mail, stands in for.
    duplicates: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rejected: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # For each connection that merges: up to which line. None before the whole file has been read.
    merged_to: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    by: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # Whoever receives or reads the file holds it until then. After that another worker may go on with it, under the
    # next epoch: one that was only slow finds the epoch changed and leaves off.
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
        return self.status in ("receiving", "queued", "running")

    @property
    def rows_to_merge(self) -> int:
        """How many rows of the file are to become customers, as far as it has been read."""
        return self.rows - self.rejected - self.duplicates

    @property
    def merged_rows(self) -> int:
        return self.created + self.updated + self.unchanged

    def rows_per_second(self, at: datetime) -> int | None:
        """Rows a second since a worker began; none before there is anything to tell."""
        seconds = ((self.finished_at or at) - (self.started_at or at)).total_seconds()
        rows = self.rows if self.merged_to is None else self.rejected + self.duplicates + self.merged_rows
        return round(rows / seconds) if seconds >= 1 and rows else None


class ImportChunk(Model):
    """A piece of an uploaded file, so that web and worker need share no disk. Gone when the import is done."""

    __tablename__ = "import_chunk"
    import_id: Mapped[int] = mapped_column(ForeignKey("customer_import.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


# What the report of an import says of rows that were taken, though not all of what they say could be.
WARNING_CODES = frozenset(("locale_unknown", "reason_unknown", "cells_odd"))


class RejectedRow(Model):
    """A row of a file that could not be taken, or not all of it, with the reason and the row as it was."""

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
        """Whether the row counts all the same."""
        return self.code in WARNING_CODES
