"""Campaigns while the disk of the database is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.support.campaigns import LaunchCampaign, create_customers, refresh
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.task_queue import TaskName

WARNING = "The disk of the database is full."


@contextmanager
def full_disk(table: str) -> Iterator[None]:
    """Let the database reject writes to a table as it does when it can't extend the table."""
    body = "begin raise exception 'could not extend file' using errcode = 'disk_full'; end"
    db.session.execute(text(f"create function full_disk() returns trigger language plpgsql as $$ {body} $$"))
    db.session.execute(
        text(f"create trigger full_disk before insert or update on {table} execute function full_disk()")
    )
    db.session.commit()
    try:
        yield
    finally:
        db.session.rollback()
        db.session.execute(text("drop function full_disk cascade"))
        db.session.commit()


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("is_prepared", [False, True])
def test_the_page_names_a_full_disk_until_sending_continues(
    staff: FlaskClient, launch_campaign: LaunchCampaign, is_prepared: bool
) -> None:
    create_customers(3)
    campaign = launch_campaign(prepare=is_prepared)
    tasks: dict[bool, tuple[TaskName, tuple[int, ...]]] = {
        False: ("campaigns.prepare", (campaign.id,)),
        True: ("campaigns.send", ()),
    }
    name, arguments = tasks[is_prepared]

    with full_disk("batch"), pytest.raises(OperationalError):
        task_queue.run(name, *arguments)

    assert WARNING in staff.get(f"/campaigns/{campaign.id}").text
    task_queue.run("campaigns.prepare", campaign.id)
    task_queue.run("campaigns.send")
    assert WARNING not in staff.get(f"/campaigns/{campaign.id}").text
    assert refresh(campaign).status == "done"
