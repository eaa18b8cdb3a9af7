"""Campaigns while the disk of the database is full."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.support.campaigns import LaunchCampaign, create_customers, refresh
from tests.support.rejected_writes import rejected_writes
from webapp.campaigns.sending import auto_pause, disk_warning
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.task_queue import TaskName

WARNING = "The disk of the database is full."


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("is_prepared", [False, True])
def test_the_page_names_a_full_disk_until_sending_continues(
    staff: FlaskClient, launch_campaign: LaunchCampaign, caplog: pytest.LogCaptureFixture, is_prepared: bool
) -> None:
    create_customers(3)
    campaign = launch_campaign(prepare=is_prepared)
    tasks: dict[bool, tuple[TaskName, tuple[int, ...]]] = {
        False: ("campaigns.prepare", (campaign.id,)),
        True: ("campaigns.send", ()),
    }
    name, arguments = tasks[is_prepared]

    with rejected_writes("batch", "disk_full"), pytest.raises(OperationalError):
        task_queue.run(name, *arguments)

    logged = [record.__dict__ for record in caplog.records if record.getMessage() == f"task {name} failed"]
    assert [values.get("campaign_id") for values in logged] == [None if is_prepared else campaign.id]
    assert WARNING in staff.get(f"/campaigns/{campaign.id}").text
    task_queue.run("campaigns.prepare", campaign.id)
    # Only sending clears it when the campaign was prepared before.
    assert (refresh(campaign).delivery_warning is not None) == is_prepared
    task_queue.run("campaigns.send")
    assert refresh(campaign).status == "done"
    assert WARNING not in staff.get(f"/campaigns/{campaign.id}").text


@pytest.mark.parametrize(
    ("status", "has_disk_warning", "has_delivery_warning"),
    [("preparing", True, False), ("sending", True, True), ("paused", False, False), ("done", False, False)],
)
def test_warnings_are_for_campaigns_in_progress(
    launch_campaign: LaunchCampaign, status: str, has_disk_warning: bool, has_delivery_warning: bool
) -> None:
    create_customers(1)
    campaign = launch_campaign()
    db.session.execute(text("update campaign set status = :status"), {"status": status})
    db.session.commit()

    disk_warning.store_disk_warning()
    assert bool(refresh(campaign).delivery_warning) == has_disk_warning
    db.session.execute(text("update campaign set trouble = null"))
    db.session.commit()
    auto_pause.set_delivery_warning("the relay is down")
    assert bool(refresh(campaign).delivery_warning) == has_delivery_warning
