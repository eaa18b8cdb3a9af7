"""Fill an empty database with the demo shop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy import insert, select, text

from local.demo import customers, dataset, scenario
from local.demo.customers import ImportFile
from local.demo.scenario import MANAGER, VIEWER, StaffMember
from webapp.accounts import invitation_actions
from webapp.accounts.models import StaffUser
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports.claims import MAX_IMPORT_ATTEMPTS
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Audience, CustomerImport
from webapp.redemptions import hourly_counts

BROKEN_UPLOAD_FILENAME = "customers (1).csv"
ANALYZED_TABLES = ("customer", "audience_member", "batch", "mail_issue", "redemption")


def seed_database(now: datetime | None = None) -> None:
    """Fill a migrated, empty database, and launch one campaign.

    A worker will send it. Filling takes about ten seconds.

    It is no single transaction: after an interruption the database has to be created again.

    :param now: the end of the shop's history, with a time zone; the last full hour by default.
    """
    _insert_staff_and_audiences()
    for file in customers.build_import_files():
        _import_file(file)
    _break_off_upload()
    dataset.write_dataset(now or datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    hourly_counts.update_hourly_counts()
    _analyze_tables()
    _launch_last_campaign()


def create_sign_in_links() -> list[tuple[StaffMember, str]]:
    """Create a one-time link for each staff member to choose a password. Commits.

    Earlier links expire.
    """
    links = []
    for member in (MANAGER, VIEWER):
        user_id = db.session.scalar(select(StaffUser.id).where(StaffUser.email == member.email))
        if user_id is not None:
            links.append((member, invitation_actions.create_password_reset_link(user_id, by="make demo")))
    return links


def _insert_staff_and_audiences() -> None:
    created_at = scenario.create_day_converter(datetime.now(UTC))(scenario.FIRST_DAY, 9, 30)
    rows = [
        {
            "email": member.email,
            "name": member.name,
            "role": member.role,
            # Not a hash: no password matches.
            "password_hash": "!",
            "time_zone": scenario.TIME_ZONE,
            "created_at": created_at,
        }
        for member in (MANAGER, VIEWER)
    ]
    db.session.execute(insert(StaffUser), rows)
    db.session.execute(insert(Audience), [{"name": name} for name in customers.AUDIENCES])
    db.session.commit()


def _import_file(file: ImportFile) -> None:
    import_id = import_actions.store_import_file(
        [file.data], file.filename, CSV, file.audience, MANAGER.email, file.kind
    )
    for _ in range(MAX_IMPORT_ATTEMPTS):
        import_processing.run_import(import_id)
        status = db.session.scalar(select(CustomerImport.status).where(CustomerImport.id == import_id))
        db.session.rollback()
        if status == "done":
            return
    raise RuntimeError(f"the import of {file.filename} is {status}, not done")


class _UploadBrokenOff(Exception):
    pass


def _break_off_upload() -> None:
    """Add a failed import, of a file that was not received completely."""

    def chunks() -> Iterator[bytes]:
        yield customers.build_import_files()[0].data[:90_000]
        raise _UploadBrokenOff

    with suppress(_UploadBrokenOff):
        import_actions.store_import_file(chunks(), BROKEN_UPLOAD_FILENAME, CSV, "", MANAGER.email)


def _analyze_tables() -> None:
    """Update the statistics that the planner and the estimated sizes of lists use."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ANALYZED_TABLES:
            connection.execute(text(f"analyze {table}"))


def _launch_last_campaign() -> None:
    campaign_id = db.session.scalars(select(Campaign.id).order_by(Campaign.id.desc()).limit(1)).one()
    launch_actions.launch_campaign(campaign_id, by=MANAGER.email)
