"""Delivery states of every recipient, compared with what a real relay received."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.campaigns import (
    LaunchCampaign,
    create_customers,
    delivery_counts,
    delivery_status,
    expire_leases,
    make_retries_due,
    refresh,
)
from tests.support.smtp_relay import Relay
from webapp.accounts.models import AuditEntry
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import export as delivery_export
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.deliveries.status import DeliveryStatus
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Batch, BatchCursor, Campaign, MailIssue, encode_gaps
from webapp.campaigns.sending import auto_pause, batches, completion, retries, sender
from webapp.campaigns.sending import windows as send_windows
from webapp.core.errors import DomainError
from webapp.core.extensions import db, huey
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption
from webapp.views.api.schemas.campaigns import recipient_json

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def make_address(n: int) -> str:
    return f"c{n}@example.com"


def list_audit_entries(action: str) -> list[dict[str, object] | None]:
    """Return the details of the entries about campaign 1."""
    entries = db.session.query(AuditEntry).filter_by(action=action, subject="1").order_by(AuditEntry.id)
    return [entry.detail for entry in entries]


def all_recipients(campaign: Campaign, state: str = "") -> list[DeliveryStatus]:
    db.session.rollback()
    return list(delivery_queries.iter_recipients(campaign.id, state))


# --- states -------------------------------------------------------------------------------------------


def test_the_state_of_every_recipient_agrees_with_the_relay(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(90)
    rules = relay.behaviour
    rules.rcpt[make_address(1)] = "550 5.1.1 no such user"
    rules.rcpt[make_address(2)] = "450 4.2.2 mailbox full"
    rules.rcpt[make_address(3)] = "450 4.7.1 greylisted"
    rules.uses[make_address(3)] = 1
    rules.body[make_address(4)] = "drop"
    campaign = launch_campaign(policy="hold")
    suppression_actions.unsubscribe_customer(ids[5], campaign.id)
    db.session.add(Redemption(offer_id=campaign.offer_id, customer_id=ids[6], channel="form"))
    db.session.commit()
    customer_actions.erase_customer(ids[7], by="tests")
    sender.send_pending_emails()
    # Deferred emails are retried: one is accepted now, the other mailbox is still full.
    make_retries_due()
    sender.send_pending_emails()
    received = relay.recipients
    statuses = {status.customer_id: status for status in all_recipients(campaign)}
    assert sorted(statuses) == ids
    expected_states = {
        1: "failed",
        2: "deferred",
        3: "sent_later",
        4: "uncertain",
        5: "skipped",
        6: "skipped",
        7: "skipped",
    }
    assert {n: statuses[ids[n]].state for n in range(90)} == {n: expected_states.get(n, "sent") for n in range(90)}
    for n, customer_id in enumerate(ids):
        received_count = received[make_address(n)]
        assert received_count == (1 if statuses[customer_id].state in ("sent", "sent_later", "uncertain") else 0)
        assert delivery_status(campaign, customer_id) == statuses[customer_id]
    assert (statuses[ids[1]].code, statuses[ids[1]].text) == (550, "5.1.1 no such user")
    assert (statuses[ids[2]].code, statuses[ids[2]].text, statuses[ids[2]].attempts) == (450, "4.2.2 mailbox full", 2)
    assert [statuses[ids[n]].attempts for n in (1, 3, 5, 8)] == [1, 2, 0, 1]
    assert statuses[ids[2]].next_at is not None
    assert statuses[ids[4]].needs_resolution
    assert [statuses[ids[n]].text for n in (5, 6)] == ["unsubscribed", "has already redeemed"]
    assert statuses[ids[7]].email == "erased customer"
    at = statuses[ids[8]].at
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("seed", range(6))
def test_states_in_random_batches_follow_from_positions(
    app: Flask, make_offer: Callable[..., Offer], seed: int
) -> None:
    """Compare random gaps, windows, cursors and rows with a simple loop."""
    draw = random.Random(seed)
    ids = sorted(draw.sample(create_customers(400), 120))
    start = datetime(2026, 5, 1, tzinfo=UTC)
    campaign = Campaign(
        offer_id=make_offer().id, subject="s", text="t", status="sending", total=120, launched_at=start,
        prepared_at=start, sending_since=start,
    )  # fmt: skip
    db.session.add(campaign)
    db.session.flush()
    expected: dict[int, tuple[str, datetime | None]] = {}
    for seq, part in enumerate((ids[:40], ids[40:80], ids[80:])):
        window_starts = sorted({0, *draw.sample(range(1, 30), draw.randint(0, 3))})
        windows = [(begin, 100 * seq + 10 * n) for n, begin in enumerate(window_starts)]
        end = min(40, window_starts[-1] + draw.randint(1, 10))
        is_open = draw.random() < 0.7
        cursor = draw.randint(window_starts[-1], end) if draw.random() < 0.8 else None
        batch = Batch(
            campaign_id=campaign.id, seq=seq, first_id=part[0], last_id=part[-1], gaps=encode_gaps(part),
            status="sending" if is_open else "pending", epoch=3, window_start=window_starts[-1] if is_open else end,
            window_end=end, windows=[x for pair in windows for x in pair],
            lease_until=datetime.now(UTC) + timedelta(minutes=1),
        )  # fmt: skip
        db.session.add(batch)
        db.session.flush()
        stale = draw.random() < 0.3
        if cursor is not None:
            db.session.add(BatchCursor(batch_id=batch.id, epoch=2 if stale else 3, cursor=cursor))
        passed = end if not is_open else window_starts[-1] if cursor is None or stale else cursor
        for position, customer_id in enumerate(part):
            at = start + timedelta(seconds=max(seconds for begin, seconds in windows if begin <= position))
            if position < passed:
                expected[customer_id] = ("sent", at)
            else:
                expected[customer_id] = ("sending", at) if is_open and position < end else ("waiting", None)
        for position in draw.sample(range(passed), min(passed, 3)):
            db.session.add(MailIssue(campaign_id=campaign.id, customer_id=part[position], state="failed", at=start))
            expected[part[position]] = ("failed", start)
    db.session.commit()
    assert {each.customer_id: (each.state, each.at) for each in all_recipients(campaign)} == expected
    assert stats_queries.get_campaign_stats(campaign.id).sent == sum(
        batch_sent for batch_sent in _sent_in_open_windows(campaign, expected)
    )
    for customer_id in draw.sample(ids, 10):
        status = delivery_status(campaign, customer_id)
        assert (status.state, status.at) == expected[customer_id]
        assert [delivery.state for delivery in delivery_queries.list_customer_deliveries(customer_id)] == [
            expected[customer_id][0]
        ]


def _sent_in_open_windows(campaign: Campaign, expected: dict[int, tuple[str, datetime | None]]) -> list[int]:
    """Count the emails sent in open windows; the batches above store no `sent`."""
    counts = []
    for batch in db.session.query(Batch).filter_by(campaign_id=campaign.id, status="sending"):
        last_id, ids = 0, []
        for gap in batch.gaps:
            last_id += gap
            ids.append(last_id)
        counts.append(sum(expected[i][0] == "sent" for i in ids[batch.window_start :]))
    return counts


def test_in_an_open_window_the_cursor_separates_sent_from_sending(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    ids = create_customers(120)
    campaign = launch_campaign()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20"))
    db.session.commit()
    states = [delivery_status(campaign, ids[n]).state for n in (0, 19, 20, 49, 50)]
    assert states == ["sent", "sent", "sending", "sending", "waiting"]
    assert delivery_status(campaign, ids[119]).ahead == 119
    expire_leases()
    assert "resumes automatically" in delivery_status(campaign, ids[20]).note


def test_recipients_of_earlier_batches_are_counted_as_ahead(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(560)
    campaign = launch_campaign()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    claim.position = claim.sent = 100
    batches.release_batch(claim)
    assert delivery_status(campaign, ids[559]).ahead == 459 == stats_queries.get_campaign_stats(campaign.id).waiting - 1


def test_a_cursor_of_a_former_owner_is_ignored(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(60)
    campaign = launch_campaign()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20, epoch = epoch - 1"))
    db.session.commit()
    assert delivery_status(campaign, ids[0]).state == "sending"


def test_a_customer_created_after_the_launch_is_no_recipient(
    launch_campaign: LaunchCampaign, relay: Relay, make_customer: Callable[..., Customer]
) -> None:
    create_customers(2)
    campaign = launch_campaign()
    late = make_customer("late@example.com")
    assert (delivery_status(campaign, late.id).state, delivery_status(campaign, late.id).note) == (
        "not_recipient",
        "The customer was created after the launch.",
    )
    assert delivery_queries.list_customer_deliveries(late.id) == []


@pytest.mark.parametrize(
    ("is_cancelled", "note"),
    [
        (False, "The campaign has not been launched yet. Its recipients are selected at the launch."),
        (True, "The campaign was cancelled before its launch, so no emails were sent."),
    ],
)
def test_a_campaign_has_no_recipients_before_its_launch(
    make_offer: Callable[..., Offer], is_cancelled: bool, note: str
) -> None:
    ids = create_customers(1)
    campaign = draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    launch_actions.schedule_campaign(campaign.id, datetime.now(UTC) + timedelta(days=1), "tests")
    if is_cancelled:
        transitions.cancel_campaign(campaign.id, "tests")

    status = delivery_status(refresh(campaign), ids[0])

    assert (status.state, status.note) == ("not_recipient", note)


def test_queued_recipients_of_a_cancelled_campaign_are_cancelled(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(3)
    campaign = launch_campaign()
    transitions.cancel_campaign(campaign.id, "tests")
    assert {delivery_status(refresh(campaign), i).state for i in ids} == {"cancelled"}


def test_a_queued_recipient_who_is_erased_will_be_skipped(launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(2)
    campaign = launch_campaign()
    customer_actions.erase_customer(ids[1], by="tests")
    status = delivery_status(campaign, ids[1])
    note = "Will be skipped: the customer was erased."
    assert (status.state, status.note, status.email) == ("waiting", note, "erased customer")


def test_emails_sent_by_an_earlier_version_have_no_exact_time(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    ids = create_customers(1)
    campaign = launch_campaign()
    sender.send_pending_emails()
    db.session.execute(text("update batch set windows = '{}'"))
    db.session.commit()
    status = delivery_status(refresh(campaign), ids[0])
    assert (status.state, status.at) == ("sent", None)
    assert "before" in status.note


def test_an_uncertain_email_that_is_resent_automatically_needs_no_decision(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    ids = create_customers(2)
    campaign = launch_campaign(policy="resend")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    expire_leases()
    # Another worker claims the batch and stops as well, before it opens a window.
    assert batches.claim_batch("another") is not None
    status = delivery_status(campaign, ids[0])
    assert (status.state, status.needs_resolution, status.note) == (
        "uncertain",
        False,
        "It will be resent automatically.",
    )
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.resend_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")


# --- lists and the CSV export -------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["sent", "failed", "waiting", ""])
def test_the_pages_of_a_list_contain_every_recipient_once(
    launch_campaign: LaunchCampaign, relay: Relay, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(preparation, "BATCH_SIZE", 20)
    monkeypatch.setattr(delivery_queries, "BATCHES_PER_PAGE", 2)
    create_customers(130)
    for n in range(0, 130, 9):
        relay.behaviour.rcpt[make_address(n)] = "550 no"
    campaign = launch_campaign()
    db.session.execute(text("update batch set status = 'done' where seq >= 5"))
    db.session.commit()
    sender.send_pending_emails()
    db.session.execute(text("update batch set status = 'pending' where seq >= 5"))
    db.session.commit()
    expected_ids = [each.customer_id for each in all_recipients(campaign, state)]
    listed_ids: list[int] = []
    after: int | None = 0
    while after is not None:
        page = delivery_queries.list_recipients(campaign.id, state, after, limit=7)
        assert len(page.deliveries) <= 7
        listed_ids += [each.customer_id for each in page.deliveries]
        after = page.next_after
    assert expected_ids
    assert listed_ids == expected_ids


def test_the_csv_export_lists_every_recipient_without_formulas(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(600)
    relay.behaviour.rcpt[make_address(3)] = "550 =cmd()"
    campaign = launch_campaign()
    sender.send_pending_emails()
    db.session.rollback()
    rows = list(
        csv.DictReader(
            io.StringIO("".join(delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id))))
        )
    )
    assert len(rows) == 600
    assert rows[3] | {"at": ""} == {
        "email": make_address(3), "name": "Customer", "source_id": "", "state": "failed", "at": "", "code": "550",
        "words": "'=cmd()",
    }  # fmt: skip
    assert {row["state"] for row in rows} == {"sent", "failed"}


def test_an_export_needs_a_manager_and_is_audited(
    sign_in: Callable[..., FlaskClient], launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(2)
    campaign = launch_campaign()
    sender.send_pending_emails()
    assert sign_in("viewer").get(f"/campaigns/{campaign.id}/recipients.csv").status_code == 403
    response = sign_in("manager").get(f"/campaigns/{campaign.id}/recipients.csv?state=sent")
    assert response.text.count("\r\n") == 3
    assert "campaign-1-sent.csv" in response.headers["Content-Disposition"]
    assert list_audit_entries("campaign.exported") == [{"state": "sent"}]


# --- resolving and retrying ---------------------------------------------------------------------------


@pytest.fixture
def unresolved(launch_campaign: LaunchCampaign, relay: Relay) -> Campaign:
    """A finished campaign under hold: c0, c2 uncertain, c1 failed, c3 has no mailbox."""
    create_customers(5)
    relay.behaviour.body |= {make_address(0): "drop", make_address(2): "drop"}
    relay.behaviour.rcpt[make_address(1)] = "550 5.7.1 refused"
    relay.behaviour.rcpt[make_address(3)] = "550 5.1.1 no such user"
    campaign = launch_campaign(policy="hold")
    sender.send_pending_emails()
    make_retries_due()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 5, "sent": 1, "failed": 2, "uncertain": 2}
    relay.behaviour.body.clear()
    relay.behaviour.rcpt.clear()
    return refresh(campaign)


def test_a_dismissed_email_is_counted_separately_and_never_sent(unresolved: Campaign, relay: Relay) -> None:
    assert (
        delivery_actions.dismiss_uncertain_deliveries(
            unresolved.id, DeliverySelection("uncertain", customer_id=1), "mia"
        )
        == 1
    )
    make_retries_due()
    sender.send_pending_emails()
    assert relay.recipients[make_address(0)] == 1
    stats = stats_queries.get_campaign_stats(unresolved.id)
    assert (stats.left, stats.uncertain, stats.sent, stats.skipped, stats.waiting) == (1, 1, 1, 0, 0)
    status = delivery_status(unresolved, 1)
    assert status.state == "left"
    assert status.text.endswith("; dismissed by mia")
    assert list_audit_entries("campaign.left_uncertain") == [{"mails": 1, "state": "uncertain", "customer": 1}]


def test_a_second_decision_changes_nothing(unresolved: Campaign, relay: Relay) -> None:
    delivery_actions.resend_deliveries(unresolved.id, DeliverySelection("uncertain", customer_id=1), "mia")
    for action in (delivery_actions.resend_deliveries, delivery_actions.dismiss_uncertain_deliveries):
        with pytest.raises(DomainError, match="no emails left"):
            action(unresolved.id, DeliverySelection("uncertain", customer_id=1), "ben")
    sender.send_pending_emails()
    assert relay.recipients[make_address(0)] == 2
    actions = [entry.action for entry in db.session.query(AuditEntry).order_by(AuditEntry.id)]
    assert actions.count("campaign.sent_again") == 1
    assert "campaign.left_uncertain" not in actions


def test_a_refused_decision_leaves_no_lock_on_the_campaign(unresolved: Campaign) -> None:
    campaign_id = unresolved.id
    for action, selection in (
        (delivery_actions.resend_deliveries, DeliverySelection("skipped")),
        (delivery_actions.resend_deliveries, DeliverySelection("failed", customer_id=99)),
        (delivery_actions.dismiss_uncertain_deliveries, DeliverySelection("failed")),
        (delivery_actions.dismiss_uncertain_deliveries, DeliverySelection("uncertain", customer_id=99)),
    ):
        with pytest.raises(DomainError):
            action(campaign_id, selection, "mia")
        assert not db.session().in_transaction()


def test_failed_emails_to_suppressed_addresses_are_not_retried(unresolved: Campaign, relay: Relay) -> None:
    suppression_actions.unsubscribe_customer(2, unresolved.id)
    # The other recipient has no mailbox, so the address is suppressed already.
    message = "None of these emails was resent, because all their addresses are suppressed."
    with pytest.raises(DomainError, match=message):
        delivery_actions.resend_deliveries(unresolved.id, DeliverySelection("failed"), "mia")
    sender.send_pending_emails()
    assert relay.recipients[make_address(1)] == 0
    assert delivery_status(unresolved, 2).state == "failed"


def test_the_page_says_how_many_emails_were_not_resent(staff: FlaskClient, unresolved: Campaign) -> None:
    suppression_actions.unsubscribe_customer(1, unresolved.id)
    huey.flush()
    page = staff.post(f"/campaigns/{unresolved.id}/send-again", data={"state": "uncertain"}, follow_redirects=True).text
    assert "1 email is being resent. 1 email was not resent, because its address is suppressed." in page
    assert list_audit_entries("campaign.sent_again") == [{"mails": 1, "left_out": 1, "state": "uncertain"}]
    # As many senders as there are connections to the relay.
    assert [task.name for task in huey.pending()] == ["send", "send"]


def test_failed_emails_of_one_cause_are_retried(unresolved: Campaign, relay: Relay) -> None:
    cause = next(c for c in stats_queries.get_campaign_stats(unresolved.id).causes if c.cause == "5.7.1")
    assert (cause.state, cause.code, cause.count) == ("failed", 550, 1)
    (listed,) = delivery_queries.list_recipients(unresolved.id, "failed", code=550, cause="5.7.1").deliveries
    assert listed.email == make_address(1)
    result = delivery_actions.resend_deliveries(
        unresolved.id, DeliverySelection("failed", code=550, cause="5.7.1"), "mia"
    )
    assert (result.resent, result.suppressed) == (1, 0)
    assert list_audit_entries("campaign.sent_again") == [
        {"mails": 1, "left_out": 0, "state": "failed", "cause": "5.7.1"}
    ]
    # Its rate begins again, with what was sent before.
    assert (refresh(unresolved).status, unresolved.finished_at, unresolved.sent_before) == ("sending", None, 1)
    sender.send_pending_emails()
    assert relay.recipients[make_address(1)] == 1
    assert relay.recipients[make_address(3)] == 0


def test_a_campaign_is_not_finished_while_emails_are_queued_again(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(1)
    campaign = launch_campaign()
    db.session.execute(text("update batch set status = 'done'"))
    db.session.commit()
    with db.engine.connect() as other_connection:
        other_connection.execute(text("select 1 from campaign for update"))
        db.session.execute(text("set lock_timeout = '2s'"))
        completion.finish_campaigns()
        other_connection.execute(
            text("insert into mail_issue (campaign_id, customer_id, state, next_at) values (1, 1, 'deferred', now())")
        )
        other_connection.commit()
    db.session.execute(text("reset lock_timeout"))
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"


def test_deliveries_are_retried_in_chunks(unresolved: Campaign, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_actions, "RESEND_CHUNK_SIZE", 1)
    assert delivery_actions.resend_deliveries(unresolved.id, DeliverySelection("uncertain"), "mia").resent == 2


def test_uncertain_emails_of_a_cancelled_campaign_can_only_be_dismissed(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(60)
    relay.behaviour.body[make_address(0)] = "drop"
    campaign = launch_campaign(policy="hold")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    completion.close_cancelled_batches("sweep")
    assert delivery_counts(campaign)["uncertain"] == 1
    message = "These emails can't be resent: the campaign has not been launched, or it has been cancelled."
    with pytest.raises(DomainError, match=message):
        delivery_actions.resend_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")
    with pytest.raises(DomainError, match="Only uncertain emails can be dismissed"):
        delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("failed"), "mia")
    assert delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("uncertain"), "mia") == 1


def test_dismissing_an_email_twice_shows_that_it_is_resolved(
    staff: FlaskClient, unresolved: Campaign, relay: Relay
) -> None:
    page = staff.get(f"/campaigns/{unresolved.id}/recipients?state=uncertain").text
    assert page.count("Dismiss</summary>") == 2
    form = {"state": "uncertain", "customer": "1", "back": "uncertain"}
    first = staff.post(f"/campaigns/{unresolved.id}/leave", data=form, follow_redirects=True)
    second = staff.post(f"/campaigns/{unresolved.id}/leave", data=form, follow_redirects=True)
    assert "1 uncertain email was dismissed." in first.text
    assert "There are no emails left to resolve" in second.text
    assert second.text.count("Dismiss</summary>") == 1


def test_a_viewer_cannot_resolve_emails(sign_in: Callable[..., FlaskClient], unresolved: Campaign) -> None:
    viewer = sign_in("viewer")
    assert "Leave" not in viewer.get(f"/campaigns/{unresolved.id}/recipients?state=uncertain").text
    for verb in ("leave", "send-again"):
        assert viewer.post(f"/campaigns/{unresolved.id}/{verb}", data={"state": "uncertain"}).status_code == 403


def test_the_recipient_search_works_with_and_without_javascript(
    staff: FlaskClient, unresolved: Campaign, relay: Relay
) -> None:
    for headers in ({}, {"HX-Request": "true"}):
        page = staff.get(f"/campaigns/{unresolved.id}/who?email=C1@example.com", headers=headers)
        assert "550 5.7.1 refused" in page.text
        assert ("<html" in page.text) is (not headers)
        unknown = staff.get(f"/campaigns/{unresolved.id}/who?email=nobody@example.com", headers=headers)
        assert (unknown.status_code, "No customer has this email address." in unknown.text) == (422, True)


# --- progress -----------------------------------------------------------------------------------------


def set_windows(campaign: Campaign, *windows: tuple[int, int], **values: object) -> None:
    """Set the windows of the batch as (position, seconds ago).

    The campaign began an hour ago.
    """
    pairs = [x for begin, ago in windows for x in (begin, 3600 - ago)]
    db.session.execute(
        text(
            "update campaign set launched_at = now() - interval '1 hour', sending_since = now() - interval '1 hour' "
            "where id = :id"
        ),
        {"id": campaign.id},
    )
    position = windows[-1][0] if windows else 0
    db.session.execute(
        text("update batch set windows = :pairs, window_start = :position, window_end = :position, sent = :position"),
        {"pairs": pairs, "position": position},
    )
    db.session.commit()


def test_the_rate_is_computed_from_the_last_minutes(launch_campaign: LaunchCampaign) -> None:
    create_customers(500)
    campaign = launch_campaign()
    set_windows(campaign, (0, 3000), (50, 2900), (100, 100), (150, 50), (200, 0))
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert stats.rate == pytest.approx(100 / 100, rel=0.05)
    assert stats.seconds_left == pytest.approx(300, rel=0.05)
    assert not stats.is_stalled


def test_a_stalled_campaign_has_no_rate_and_is_reported(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    create_customers(500)
    campaign = launch_campaign()
    set_windows(campaign, (0, 3000), (50, 600))
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.rate, stats.seconds_left, stats.is_stalled) == (None, None, True)
    assert "Nothing has been sent for 10 minutes" in staff.get(f"/campaigns/{campaign.id}/progress").text


def test_a_campaign_that_just_began_has_no_rate_and_no_forecast(launch_campaign: LaunchCampaign) -> None:
    create_customers(3)
    stats = stats_queries.get_campaign_stats(launch_campaign().id)
    assert (stats.rate, stats.seconds_left, stats.is_stalled) == (None, None, False)


def start_sending(campaign: Campaign) -> batches.BatchClaim:
    """Let an active worker open a window 90 seconds after the launch."""
    db.session.execute(text("update campaign set launched_at = now() - interval '90 s', sending_since = now()"))
    db.session.commit()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20"))
    db.session.commit()
    assert stats_queries.get_campaign_stats(campaign.id).rate
    return claim


def test_an_unreachable_relay_hides_rate_and_forecast(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    create_customers(120)
    campaign = launch_campaign()
    start_sending(campaign)
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "emails per minute" in page
    assert "left." in page
    auto_pause.set_delivery_warning("The mail relay can't be reached.")
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.rate, stats.seconds_left) == (None, None)
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "emails per minute" not in page
    assert "left." not in page
    assert "The mail relay can&#39;t be reached." in staff.get("/campaigns").text


def test_a_campaign_without_progress_for_a_minute_has_no_rate(launch_campaign: LaunchCampaign) -> None:
    create_customers(500)
    campaign = launch_campaign()
    set_windows(campaign, (0, 110), (50, 100), (100, 61))
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.rate, stats.seconds_left, stats.is_stalled) == (None, None, False)


def test_a_slow_relay_has_a_rate_while_its_worker_is_active(launch_campaign: LaunchCampaign) -> None:
    create_customers(500)
    campaign = launch_campaign()
    set_windows(campaign, (0, 110), (50, 100), (100, 61))
    db.session.execute(text("update batch set status = 'sending', lease_until = now() + interval '86 s'"))
    db.session.commit()
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.rate is not None, stats.resumes_by) == (True, None)


def test_a_stopped_worker_is_reported_with_the_time_of_resumption(
    staff: FlaskClient, launch_campaign: LaunchCampaign
) -> None:
    create_customers(120)
    campaign = launch_campaign()
    start_sending(campaign)
    db.session.execute(text("update batch set lease_until = now() + interval '50 s'"))
    until = db.session.execute(text("select lease_until from batch")).scalar_one()
    db.session.commit()
    stats = stats_queries.get_campaign_stats(campaign.id)
    resumes_by = stats.resumes_by
    assert resumes_by is not None
    assert timedelta(minutes=1) < resumes_by - until <= timedelta(minutes=2)
    assert (resumes_by.second, stats.rate, stats.seconds_left, stats.is_stalled) == (0, None, None, False)
    message = f"Sending was interrupted. It resumes automatically by {resumes_by.astimezone(UTC):%H:%M}."
    assert message in staff.get(f"/campaigns/{campaign.id}/progress").text
    assert message[2:-1] in staff.get("/campaigns").text
    # Once another worker has claimed the batch, the notice disappears.
    expire_leases()
    assert stats_queries.get_campaign_stats(campaign.id).resumes_by is not None
    assert batches.claim_batch("another") is not None
    assert stats_queries.get_campaign_stats(campaign.id).resumes_by is None


def test_a_batch_that_no_worker_claims_asks_for_attention(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    create_customers(120)
    campaign = launch_campaign()
    start_sending(campaign)
    db.session.execute(text("update batch set lease_until = now() - interval '3 minutes'"))
    db.session.commit()
    stats = stats_queries.get_campaign_stats(campaign.id)
    assert (stats.resumes_by, stats.is_stalled) == (None, True)
    assert "whether a worker is running" in staff.get(f"/campaigns/{campaign.id}/progress").text


@pytest.mark.parametrize("policy", ["resend", "hold"])
def test_the_sent_count_does_not_drop_after_a_takeover(
    launch_campaign: LaunchCampaign, relay: Relay, policy: str
) -> None:
    create_customers(120)
    campaign = launch_campaign(policy=policy)
    start_sending(campaign)
    before = stats_queries.get_campaign_stats(campaign.id).sent
    expire_leases()
    claim = batches.claim_batch("another")
    assert claim is not None
    assert stats_queries.get_campaign_stats(campaign.id).sent == before == 20
    assert send_windows.open_send_window(claim) is not None
    assert stats_queries.get_campaign_stats(campaign.id).sent == before


def test_failures_of_earlier_batches_do_not_affect_an_open_window(
    launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    ids = create_customers(560)
    campaign = launch_campaign()
    first, second = batches.claim_batch("one"), batches.claim_batch("another")
    assert first is not None
    assert second is not None
    db.session.add_all(
        MailIssue(campaign_id=campaign.id, customer_id=ids[n], state="failed", text="") for n in (0, 1, 2)
    )
    first.position, first.sent = 500, 497
    batches.finish_batch(first)
    assert send_windows.open_send_window(second) is not None
    db.session.execute(text("update batch_cursor set cursor = 20 where batch_id = :id"), {"id": second.batch_id})
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=ids[504], state="failed", text=""))
    db.session.commit()
    assert (
        stats_queries.get_campaign_stats(campaign.id).sent,
        stats_queries.get_campaign_stats(campaign.id).failed,
    ) == (497 + 19, 4)


def test_a_retry_in_progress_counts_as_deferred_until_its_outcome(
    staff: FlaskClient, launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    ids = create_customers(3)
    relay.behaviour.rcpt[make_address(1)] = "450 4.2.2 mailbox full"
    campaign = launch_campaign()
    sender.send_pending_emails()
    make_retries_due()
    due = retries.claim_due_retry()
    assert due is not None
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}
    assert [cause.state for cause in stats_queries.get_campaign_stats(campaign.id).causes] == ["deferred"]
    status = delivery_status(campaign, ids[1])
    assert (status.state, status.note, status.next_at, status.attempts, status.needs_resolution) == (
        "deferred", "It is being retried now.", None, 1, False,
    )  # fmt: skip
    for code, cause in ((None, None), (450, "4.2.2")):
        listed = delivery_queries.list_recipients(campaign.id, "deferred", code=code, cause=cause)
        assert [f.customer_id for f in listed.deliveries] == [ids[1]]
    assert delivery_queries.list_recipients(campaign.id, "uncertain").deliveries == []
    assert [f.state for f in all_recipients(campaign, "deferred")] == ["deferred"]
    assert "mailbox full" in staff.get(f"/campaigns/{campaign.id}/progress").text
    # The worker that retried it stopped, so the outcome is unknown.
    make_retries_due()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    assert [f.customer_id for f in delivery_queries.list_recipients(campaign.id, "uncertain").deliveries] == [ids[1]]
    assert delivery_queries.list_recipients(campaign.id, "deferred").deliveries == []


def test_a_possible_second_copy_is_noted_everywhere(
    staff: FlaskClient, launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    ids = create_customers(3)
    campaign = launch_campaign(policy="resend")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert send_windows.open_send_window(claim) is not None
    expire_leases()
    relay.behaviour.rcpt[make_address(1)] = "450 later"
    relay.behaviour.uses[make_address(1)] = 1
    sender.send_pending_emails()
    make_retries_due()
    sender.send_pending_emails()
    resent, retried = delivery_status(campaign, ids[0]), delivery_status(campaign, ids[1])
    note = "An earlier attempt may have succeeded, so the customer may have got it twice."
    assert (resent.state, resent.code, resent.note) == ("sent_later", None, note)
    assert (retried.state, retried.code, retried.note) == ("sent_later", None, "")
    rows = list(
        csv.DictReader(
            io.StringIO("".join(delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id))))
        )
    )
    assert [row["words"] for row in rows] == [note, "", ""]
    for path in ("recipients", "recipients?state=sent_later", f"who?email={make_address(0)}"):
        assert staff.get(f"/campaigns/{campaign.id}/{path}").text.count(note) == 1
    assert note in staff.get(f"/customers/{ids[0]}").text
    assert recipient_json(resent)["note"] == note


def test_an_email_to_a_suppressed_address_cannot_be_resent(staff: FlaskClient, unresolved: Campaign) -> None:
    page = staff.get(f"/campaigns/{unresolved.id}/recipients?state=failed").text
    # c3 has no mailbox, so its address is suppressed.
    assert page.count("Resend</summary>") == 1
    assert "The address is suppressed (bounced)" in page
    form = {"state": "failed", "customer": "4", "back": "failed"}
    response = staff.post(f"/campaigns/{unresolved.id}/send-again", data=form, follow_redirects=True).text
    assert "This email was not resent, because its address is suppressed." in response


def test_the_suppression_list_names_the_campaign_by_its_offer(
    sign_in: Callable[..., FlaskClient], unresolved: Campaign
) -> None:
    admin = sign_in("admin")
    for path in ("customers/do-not-mail", f"customers/do-not-mail/lift?email={make_address(3)}", "customers/4"):
        page = admin.get(f"/{path}").text
        assert f'<a href="/campaigns/{unresolved.id}">Campaign for Summer</a>' in page, path
    rows = list(csv.DictReader(io.StringIO(admin.get("/customers/do-not-mail.csv").text)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0]["since"])


def test_resending_all_uncertain_emails_leads_to_the_progress_page(staff: FlaskClient, unresolved: Campaign) -> None:
    form = {"state": "uncertain", "back": "uncertain"}
    response = staff.post(f"/campaigns/{unresolved.id}/send-again", data=form, follow_redirects=True)
    assert response.request.path == f"/campaigns/{unresolved.id}"
    assert "2 emails are being resent." in response.text
    assert "to be resolved" not in response.text


def test_a_list_filtered_by_cause_shows_the_full_cause(staff: FlaskClient, unresolved: Campaign) -> None:
    (cause,) = {c for c in stats_queries.get_campaign_stats(unresolved.id).causes if c.state == "uncertain"}
    (listed, _) = delivery_queries.list_recipients(unresolved.id, "uncertain").deliveries
    assert len(listed.text) > len(cause.cause)
    page = staff.get(
        f"/campaigns/{unresolved.id}/recipients", query_string={"state": "uncertain", "cause": cause.cause}
    )
    assert f"Filtered by reason: {listed.text[0].upper()}{listed.text[1:]}." in page.text
    page = staff.get(f"/campaigns/{unresolved.id}/recipients?state=failed&code=550&cause=5.7.1")
    assert "Filtered by reason: The receiving server rejects the email, often as spam (550 5.7.1)." in page.text


def test_only_tabs_of_possible_states_are_shown(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    create_customers(3)
    campaign = launch_campaign()
    url = f"/campaigns/{campaign.id}/recipients"
    assert ("Queued</a>" in staff.get(url).text, "Cancelled (" in staff.get(url).text) == (True, False)
    transitions.cancel_campaign(campaign.id, "tests")
    assert ("Queued</a>" in staff.get(url).text, "Cancelled (3)</a>" in staff.get(url).text) == (False, True)
    assert "This status does not exist, so all recipients are listed." in staff.get(f"{url}?state=nonsense").text


def test_staff_can_resolve_uncertain_emails_during_sending(staff: FlaskClient, unresolved: Campaign) -> None:
    db.session.execute(text("update campaign set status = 'sending', finished_at = null, sent_in_batches = null"))
    db.session.commit()
    page = staff.get(f"/campaigns/{unresolved.id}/progress").text
    assert "2 emails are uncertain." in page
    assert "to be resolved" in page
    db.session.execute(text("update campaign set uncertain_policy = 'resend'"))
    db.session.execute(text("update mail_issue set next_at = now() where state = 'uncertain'"))
    db.session.commit()
    assert "to be resolved" not in staff.get(f"/campaigns/{unresolved.id}/progress").text


def test_the_cancel_dialog_counts_deferred_emails(
    staff: FlaskClient, launch_campaign: LaunchCampaign, relay: Relay
) -> None:
    create_customers(60)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launch_campaign()
    sender.send_pending_emails()
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "About 60 recipients have not received the email and will not receive it, even if it is deferred." in page


def test_flash_messages_are_cleared_when_the_campaign_is_paused(
    staff: FlaskClient, launch_campaign: LaunchCampaign
) -> None:
    create_customers(3)
    campaign = launch_campaign()
    htmx = {"HX-Request": "true"}
    cleared_flashes = '<div id="flashes" hx-swap-oob="true">'
    assert cleared_flashes not in staff.get(f"/campaigns/{campaign.id}/progress", headers=htmx).text
    auto_pause.pause_automatically(campaign.id, "the relay refuses us")
    assert cleared_flashes in staff.get(f"/campaigns/{campaign.id}/progress", headers=htmx).text


def test_causes_are_explained_in_plain_language(staff: FlaskClient, unresolved: Campaign) -> None:
    page = staff.get(f"/campaigns/{unresolved.id}").text
    assert "There is no such mailbox" in page
    assert f"/campaigns/{unresolved.id}/recipients?state=failed&amp;code=550&amp;cause=5.1.1" in page
