"""Filling: in steps that each can be interrupted and taken up again. What is there already is not done twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, exists, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from local.demo import history as demo_history
from local.demo import ledger, people
from local.demo import offers as demo_offers
from local.demo.models import DemoRow
from local.demo.offers import MANAGER, VIEWER
from webapp.accounts import actions as account_actions
from webapp.accounts.models import StaffUser
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Audience, CustomerImport, ImportChunk
from webapp.redemptions import hourly_counts

OURS = "make demo"
BROKEN = "customers (1).csv"

NOT_EMPTY = (
    "this database has {what} of its own, so it is not filled; "
    "try an empty copy beside it: INSTANCE_PATH=/tmp/onecode-demo make demo PORT=8010"
)
REAL_RELAY = (
    "MAIL_SERVER is set, and the demonstration mails 10,000 people whom there are not; run it without that setting"
)
TAKEN = "somebody here has the e-mail {email}, so the demonstration can't have it; try an empty copy of Onecode"


class DemoRefused(DomainError):
    """The demonstration must not, or can't, be here; nothing was changed."""

    def __init__(self, sentence: str) -> None:
        super().__init__("conflict", sentence)


@contextmanager
def alone() -> Iterator[None]:
    """One fill or removal at a time; whoever comes second waits. The lock goes with its process."""
    with db.engine.connect() as connection:
        connection.execute(text("select pg_advisory_lock(hashtext('onecode.demo'))"))
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("select pg_advisory_unlock(hashtext('onecode.demo'))"))
            connection.commit()


def is_filled() -> bool:
    return bool(db.session.scalar(select(exists().where(DemoRow.part == "filled"))))


def is_begun() -> bool:
    """Whether anything here is the demonstration's. Nothing is in a database from before there was one."""
    if db.session.scalar(text("select to_regclass('demo_row')")) is None:
        return False
    return bool(db.session.scalar(select(exists().where(DemoRow.part.is_not(None)))))


def check(settings: Settings) -> None:
    """Whether this database may be filled: also one of DATABASE_URL, as long as nothing is in it.

    :raises DemoRefused: when the mails would go to a real relay, or something here is not the demonstration's.
    """
    if not settings.uses_mail_sink:
        raise DemoRefused(REAL_RELAY)
    ledger.adopt()
    db.session.commit()
    found = [
        what
        for what, rows in _OF_OTHERS.items()
        if db.session.execute(text(f"select exists ({rows})"), {"addresses": people.addresses()}).scalar()
    ]
    db.session.rollback()
    if found:
        raise DemoRefused(NOT_EMPTY.format(what=" and ".join(found)))


@ledger.witnessed()
def fill(now: datetime | None = None) -> None:
    """Fill a database that was checked, or go on where that was interrupted.

    `alone` is held by the caller, who calls `finish` when people have been told.

    :param now: where history ends, with a time zone; the last full hour unless given.
    :raises DemoRefused: when somebody here has the e-mail of one of its people.
    """
    _staff()
    for file in people.files():
        _import(file)
    _broken_import()
    if not db.session.scalar(select(exists().where(DemoRow.part == "offer"))):
        demo_history.write(now or datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
        hourly_counts.update_hourly_counts()
        _analyze()
    _launch()


# What only somebody who works with this database has; that people have joined and keys were made is no work yet.
_OF_OTHERS = {
    "customers": "select from customer where id not in (select row_id from demo_row where part = 'customer')",
    "imports": "select from customer_import where id not in (select row_id from demo_row where part = 'import')",
    "audiences": "select from audience where id not in (select row_id from demo_row where part = 'audience')",
    "addresses not to be mailed": f"select from suppression s where not ({ledger.UNMAILABLE})",
    "offers": "select from offer where id not in (select row_id from demo_row where part = 'offer')",
    "campaigns": "select from campaign where offer_id not in (select row_id from demo_row where part = 'offer')",
    "redemptions": "select from redemption where offer_id not in (select row_id from demo_row where part = 'offer')",
    "settings of the shop": "select from shop where id not in (select row_id from demo_row where part = 'shop')",
}


@ledger.witnessed()
def links() -> dict[str, str]:
    """A link for each of the two with which to choose a password, once; earlier ones of theirs end. Commits."""
    found = {}
    for email, _, role in (MANAGER, VIEWER):
        user_id = db.session.scalar(select(StaffUser.id).where(StaffUser.email == email))
        if user_id is not None:
            found[role] = account_actions.create_password_reset_link(user_id, by=OURS)
    return found


def finish() -> None:
    """All is there and people have been told: from now on filling changes nothing."""
    ledger.own("filled", [0])
    db.session.commit()


def _staff() -> None:
    """Two who can sign in when they have a link, and the audiences. What is of the demonstration is told by these."""
    if is_begun():
        return
    begun = demo_offers.days(datetime.now(UTC))(demo_offers.FIRST_DAY, 9, 30)
    for email, name, role in (MANAGER, VIEWER):
        # No hash that any password matches.
        values = {"email": email, "name": name, "role": role, "password_hash": "!", "created_at": begun}
        row = upsert(StaffUser).values(time_zone=demo_offers.ZONE, **values).on_conflict_do_nothing()
        user_id = db.session.scalar(row.returning(StaffUser.id))
        if user_id is None:
            db.session.rollback()
            raise DemoRefused(TAKEN.format(email=email))
        ledger.own("staff_user", [user_id])
    rows = [{"name": name} for name in people.AUDIENCES]
    made = db.session.scalars(upsert(Audience).values(rows).on_conflict_do_nothing().returning(Audience.id))
    ledger.own("audience", made.all())
    db.session.commit()


def _import(file: people.File) -> None:
    """Have one file imported as anybody would, and wait until it is; a worker may have it in hand."""
    found = _import_of(file.filename)
    if found is not None and found.status == "receiving":
        # Whoever was sending it is gone.
        db.session.execute(delete(ImportChunk).where(ImportChunk.import_id == found.id))
        db.session.execute(delete(CustomerImport).where(CustomerImport.id == found.id))
        db.session.execute(delete(DemoRow).where(DemoRow.part == "import", DemoRow.row_id == found.id))
        db.session.commit()
        found = None
    if found is None:
        import_actions.store_import_file([file.data], file.filename, CSV, file.audience, MANAGER[0], file.kind)
    while (found := _import_of(file.filename)) is not None and found.is_open:
        import_actions.run_import(found.id)
        db.session.rollback()
        time.sleep(0.1)
    if found is None or found.status != "done":
        raise DomainError("import_broken", f"{file.filename} could not be imported; the import's page says why.")


def _import_of(filename: str) -> CustomerImport | None:
    """Ours of this file; somebody who looks around may have sent one of the same name."""
    ours = select(DemoRow.row_id).where(DemoRow.part == "import")
    return db.session.scalar(
        select(CustomerImport)
        .where(CustomerImport.filename == filename, CustomerImport.id.in_(ours))
        .execution_options(populate_existing=True)
    )


class _BrokenOff(Exception):
    pass


def _broken_import() -> None:
    """One whose upload broke off, as happens."""

    def pieces() -> Iterator[bytes]:
        yield people.files()[0].data[:90_000]
        raise _BrokenOff

    found = _import_of(BROKEN)
    if found is None:
        with suppress(_BrokenOff):
            import_actions.store_import_file(pieces(), BROKEN, CSV, "", MANAGER[0])
    elif found.status == "receiving":
        found.lease_until = datetime.now(UTC) - timedelta(seconds=1)
        db.session.commit()
        import_actions.fail_stalled_uploads()


def _launch() -> None:
    """Launch the one mailing that is really sent now, unless that was done."""
    ours = select(DemoRow.row_id).where(DemoRow.part == "campaign")
    newest = db.session.scalar(select(Campaign).where(Campaign.id.in_(ours)).order_by(Campaign.id.desc()).limit(1))
    if newest is not None and newest.status == "draft":
        launch_actions.launch_campaign(newest.id, by=MANAGER[0])


def _analyze() -> None:
    """The planner, and what staff see of sizes, follow at once."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("customer", "audience_member", "batch", "mail_issue", "redemption"):
            connection.execute(text(f"analyze {table}"))
