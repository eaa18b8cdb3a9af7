"""Who got it? The answer for every recipient is what a real relay received."""

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
    Launch,
    create_customers,
    delivery_counts,
    delivery_status,
    expire_leases,
    make_retries_due,
    refresh,
)
from tests.support.smtp_relay import Relay
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import export as delivery_export
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.deliveries.queries import DeliveryStatus
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Batch, BatchCursor, Campaign, MailIssue, encode_gaps
from webapp.campaigns.sending import auto_pause, batches, completion, retries, sender
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption
from webapp.views.api.schemas.campaigns import recipient_json

pytestmark = pytest.mark.usefixtures("no_retry_delay")


def email(n: int) -> str:
    return f"c{n}@example.com"


def everybody(campaign: Campaign, state: str = "") -> list[DeliveryStatus]:
    db.session.rollback()
    return list(delivery_queries.iter_recipients(campaign.id, state))


# --- the answers --------------------------------------------------------------------------------------


def test_the_answer_for_every_recipient_is_what_the_relay_received(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = create_customers(90)
    rules = relay.behaviour
    rules.rcpt[email(1)] = "550 5.1.1 no such user"
    rules.rcpt[email(2)] = "450 4.2.2 mailbox full"
    rules.rcpt[email(3)] = "450 4.7.1 greylisted"
    rules.times[email(3)] = 1
    rules.body[email(4)] = "drop"
    campaign = launched(policy="hold")
    suppression_actions.unsubscribe_customer(ids[5], campaign.id)
    db.session.add(Redemption(offer_id=campaign.offer_id, customer_id=ids[6], channel="form"))
    db.session.commit()
    customer_actions.erase_customer(ids[7], by="tests")
    sender.send_pending_emails()
    # What was put off is tried again: one is taken now, the other one is still full.
    make_retries_due()
    sender.send_pending_emails()
    received = relay.recipients
    seen = {each.customer_id: each for each in everybody(campaign)}
    assert sorted(seen) == ids
    wanted = {1: "failed", 2: "deferred", 3: "sent_later", 4: "uncertain", 5: "skipped", 6: "skipped", 7: "skipped"}
    assert {n: seen[ids[n]].state for n in range(90)} == {n: wanted.get(n, "sent") for n in range(90)}
    for n, customer_id in enumerate(ids):
        got = received[email(n)]
        assert got == (1 if seen[customer_id].state in ("sent", "sent_later", "uncertain") else 0)
        assert delivery_status(campaign, customer_id) == seen[customer_id]
    assert (seen[ids[1]].code, seen[ids[1]].text) == (550, "5.1.1 no such user")
    assert (seen[ids[2]].code, seen[ids[2]].text, seen[ids[2]].attempts) == (450, "4.2.2 mailbox full", 2)
    assert seen[ids[2]].next_at is not None
    assert seen[ids[4]].needs_resolution
    assert [seen[ids[n]].text for n in (5, 6)] == ["unsubscribed", "has already redeemed"]
    assert seen[ids[7]].email == "erased customer"
    at = seen[ids[8]].at
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("seed", range(6))
def test_batches_of_any_shape_are_answered_by_their_places(app: Flask, offer: Callable[..., Offer], seed: int) -> None:
    """Gaps, windows, cursors and rows at random; a plain walk over the same tells what must come out."""
    draw = random.Random(seed)
    ids = sorted(draw.sample(create_customers(400), 120))
    start = datetime(2026, 5, 1, tzinfo=UTC)
    campaign = Campaign(
        offer_id=offer().id, subject="s", text="t", status="sending", total=120, launched_at=start,
        prepared_at=start, sending_since=start,
    )  # fmt: skip
    db.session.add(campaign)
    db.session.flush()
    expected: dict[int, tuple[str, datetime | None]] = {}
    for seq, part in enumerate((ids[:40], ids[40:80], ids[80:])):
        begins = sorted({0, *draw.sample(range(1, 30), draw.randint(0, 3))})
        windows = [(begin, 100 * seq + 10 * n) for n, begin in enumerate(begins)]
        end = min(40, begins[-1] + draw.randint(1, 10))
        is_open = draw.random() < 0.7
        cursor = draw.randint(begins[-1], end) if draw.random() < 0.8 else None
        batch = Batch(
            campaign_id=campaign.id, seq=seq, first_id=part[0], last_id=part[-1], gaps=encode_gaps(part),
            status="sending" if is_open else "pending", epoch=3, window_start=begins[-1] if is_open else end,
            window_end=end, windows=[x for pair in windows for x in pair],
            lease_until=datetime.now(UTC) + timedelta(minutes=1),
        )  # fmt: skip
        db.session.add(batch)
        db.session.flush()
        stale = draw.random() < 0.3
        if cursor is not None:
            db.session.add(BatchCursor(batch_id=batch.id, epoch=2 if stale else 3, cursor=cursor))
        passed = end if not is_open else begins[-1] if cursor is None or stale else cursor
        for place, customer_id in enumerate(part):
            at = start + timedelta(seconds=max(seconds for begin, seconds in windows if begin <= place))
            if place < passed:
                expected[customer_id] = ("sent", at)
            else:
                expected[customer_id] = ("sending", at) if is_open and place < end else ("waiting", None)
        for place in draw.sample(range(passed), min(passed, 3)):
            db.session.add(MailIssue(campaign_id=campaign.id, customer_id=part[place], state="failed", at=start))
            expected[part[place]] = ("failed", start)
    db.session.commit()
    assert {each.customer_id: (each.state, each.at) for each in everybody(campaign)} == expected
    assert campaign_queries.get_campaign_stats(campaign.id).sent == sum(
        batch_sent for batch_sent in _sent_in_open_windows(campaign, expected)
    )
    for customer_id in draw.sample(ids, 10):
        answer = delivery_status(campaign, customer_id)
        assert (answer.state, answer.at) == expected[customer_id]
        assert [mailed.state for mailed in delivery_queries.list_customer_deliveries(customer_id)] == [
            expected[customer_id][0]
        ]


def _sent_in_open_windows(campaign: Campaign, expected: dict[int, tuple[str, datetime | None]]) -> list[int]:
    """The batches above were given no `sent` of their own, so only what their open windows have passed is counted."""
    found = []
    for batch in db.session.query(Batch).filter_by(campaign_id=campaign.id, status="sending"):
        walked, ids = 0, []
        for gap in batch.gaps:
            walked += gap
            ids.append(walked)
        found.append(sum(expected[i][0] == "sent" for i in ids[batch.window_start :]))
    return found


def test_under_an_open_window_the_cursor_tells_who_has_it_and_who_is_next(launched: Launch, relay: Relay) -> None:
    ids = create_customers(120)
    campaign = launched()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20"))
    db.session.commit()
    states = [delivery_status(campaign, ids[n]).state for n in (0, 19, 20, 49, 50)]
    assert states == ["sent", "sent", "sending", "sending", "waiting"]
    assert delivery_status(campaign, ids[119]).ahead == 119
    expire_leases()
    assert "resumes automatically" in delivery_status(campaign, ids[20]).note


def test_as_many_come_before_as_wait_in_the_batches_before(launched: Launch, relay: Relay) -> None:
    ids = create_customers(560)
    campaign = launched()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    claim.position = claim.sent = 100
    batches.release_batch(claim)
    assert (
        delivery_status(campaign, ids[559]).ahead == 459 == campaign_queries.get_campaign_stats(campaign.id).waiting - 1
    )


def test_a_cursor_of_a_former_owner_says_nothing(launched: Launch, relay: Relay) -> None:
    ids = create_customers(60)
    campaign = launched()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20, epoch = epoch - 1"))
    db.session.commit()
    assert delivery_status(campaign, ids[0]).state == "sending"


def test_whoever_is_not_among_the_recipients_hears_why(
    launched: Launch, relay: Relay, customer: Callable[..., Customer]
) -> None:
    create_customers(2)
    campaign = launched()
    late = customer("late@example.com")
    assert (delivery_status(campaign, late.id).state, delivery_status(campaign, late.id).note) == (
        "not_recipient",
        "The customer was created after the launch.",
    )
    assert delivery_queries.list_customer_deliveries(late.id) == []


def test_who_waits_when_a_mailing_is_cancelled_never_gets_it(launched: Launch) -> None:
    ids = create_customers(3)
    campaign = launched()
    transitions.cancel_campaign(campaign.id, "tests")
    assert {delivery_status(refresh(campaign), i).state for i in ids} == {"cancelled"}


def test_who_is_erased_while_waiting_is_said_to_be_left_out(launched: Launch) -> None:
    ids = create_customers(2)
    campaign = launched()
    customer_actions.erase_customer(ids[1], by="tests")
    answer = delivery_status(campaign, ids[1])
    assert (answer.state, answer.note, answer.email) == ("waiting", "Will be skipped: erased.", "erased customer")


def test_what_an_earlier_version_sent_has_no_time_but_a_bound(launched: Launch, relay: Relay) -> None:
    ids = create_customers(1)
    campaign = launched()
    sender.send_pending_emails()
    db.session.execute(text("update batch set windows = '{}'"))
    db.session.commit()
    answer = delivery_status(refresh(campaign), ids[0])
    assert (answer.state, answer.at) == ("sent", None)
    assert "before" in answer.note


def test_an_uncertain_mail_says_whether_it_goes_out_by_itself_or_staff_decide(launched: Launch, relay: Relay) -> None:
    ids = create_customers(2)
    campaign = launched(policy="resend")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    expire_leases()
    # Somebody takes over and is gone as well, before a window is open.
    assert batches.claim_batch("another") is not None
    answer = delivery_status(campaign, ids[0])
    assert (answer.state, answer.needs_resolution, answer.note) == (
        "uncertain",
        False,
        "It is resent automatically when its turn in the queue comes.",
    )
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.retry_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")


# --- lists and the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["sent", "failed", "waiting", ""])
def test_a_list_has_everybody_once_page_after_page(
    launched: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(preparation, "BATCH_SIZE", 20)
    monkeypatch.setattr(delivery_queries, "BATCHES_PER_PAGE", 2)
    create_customers(130)
    for n in range(0, 130, 9):
        relay.behaviour.rcpt[email(n)] = "550 no"
    campaign = launched()
    db.session.execute(text("update batch set status = 'done' where seq >= 5"))
    db.session.commit()
    sender.send_pending_emails()
    db.session.execute(text("update batch set status = 'pending' where seq >= 5"))
    db.session.commit()
    wanted = [each.customer_id for each in everybody(campaign, state)]
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page = delivery_queries.list_recipients(campaign.id, state, after, limit=7)
        assert len(page.deliveries) <= 7
        found += [each.customer_id for each in page.deliveries]
        after = page.next_after
    assert wanted
    assert found == wanted


def test_the_file_has_a_line_for_everybody_and_no_formulas(launched: Launch, relay: Relay) -> None:
    create_customers(600)
    relay.behaviour.rcpt[email(3)] = "550 =cmd()"
    campaign = launched()
    sender.send_pending_emails()
    db.session.rollback()
    lines = list(
        csv.DictReader(
            io.StringIO("".join(delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id))))
        )
    )
    assert len(lines) == 600
    assert lines[3] | {"at": ""} == {
        "email": email(3), "name": "Customer", "source_id": "", "state": "failed", "at": "", "code": "550",
        "words": "'=cmd()",
    }  # fmt: skip
    assert {line["state"] for line in lines} == {"sent", "failed"}


def test_an_export_is_for_managers_and_in_the_trail(
    sign_in: Callable[..., FlaskClient], launched: Launch, relay: Relay
) -> None:
    create_customers(2)
    campaign = launched()
    sender.send_pending_emails()
    assert sign_in("viewer").get(f"/campaigns/{campaign.id}/recipients.csv").status_code == 403
    answer = sign_in("manager").get(f"/campaigns/{campaign.id}/recipients.csv?state=sent")
    assert answer.text.count("\r\n") == 3
    assert "campaign-1-sent.csv" in answer.headers["Content-Disposition"]
    assert db.session.query(AuditEntry).filter_by(action="campaign.exported").count() == 1


# --- deciding and trying again ------------------------------------------------------------------------


@pytest.fixture
def undecided(launched: Launch, relay: Relay) -> Campaign:
    """Under hold: c0 and c2 are uncertain, c1 failed for good, c3 because of its address; all is done."""
    create_customers(5)
    relay.behaviour.body |= {email(0): "drop", email(2): "drop"}
    relay.behaviour.rcpt[email(1)] = "550 5.7.1 refused"
    relay.behaviour.rcpt[email(3)] = "550 5.1.1 no such user"
    campaign = launched(policy="hold")
    sender.send_pending_emails()
    make_retries_due()
    sender.send_pending_emails()
    assert delivery_counts(campaign) == {"total": 5, "sent": 1, "failed": 2, "uncertain": 2}
    relay.behaviour.body.clear()
    relay.behaviour.rcpt.clear()
    return refresh(campaign)


def test_what_is_left_is_counted_for_itself_and_never_sent(undecided: Campaign, relay: Relay) -> None:
    assert (
        delivery_actions.dismiss_uncertain_deliveries(
            undecided.id, DeliverySelection("uncertain", customer_id=1), "mia"
        )
        == 1
    )
    make_retries_due()
    sender.send_pending_emails()
    assert relay.recipients[email(0)] == 1
    found = campaign_queries.get_campaign_stats(undecided.id)
    assert (found.left, found.uncertain, found.sent, found.skipped, found.waiting) == (1, 1, 1, 0, 0)
    answer = delivery_status(undecided, 1)
    assert answer.state == "left"
    assert answer.text.endswith("dismissed by mia")


def test_a_decision_twice_changes_nothing_the_second_time(undecided: Campaign, relay: Relay) -> None:
    delivery_actions.retry_deliveries(undecided.id, DeliverySelection("uncertain", customer_id=1), "mia")
    for decide in (delivery_actions.retry_deliveries, delivery_actions.dismiss_uncertain_deliveries):
        with pytest.raises(DomainError, match="no emails left"):
            decide(undecided.id, DeliverySelection("uncertain", customer_id=1), "ben")
    sender.send_pending_emails()
    assert relay.recipients[email(0)] == 2
    trail = [entry.action for entry in db.session.query(AuditEntry).order_by(AuditEntry.id)]
    assert trail.count("campaign.sent_again") == 1
    assert "campaign.left_uncertain" not in trail


def test_failed_ones_are_tried_again_but_for_those_who_must_not_be_mailed(undecided: Campaign, relay: Relay) -> None:
    suppression_actions.unsubscribe_customer(2, undecided.id)
    # The other one has no mailbox, so its address is on the list already.
    with pytest.raises(DomainError, match="their addresses are suppressed"):
        delivery_actions.retry_deliveries(undecided.id, DeliverySelection("failed"), "mia")
    sender.send_pending_emails()
    assert relay.recipients[email(1)] == 0
    assert delivery_status(undecided, 2).state == "failed"


def test_how_many_are_left_out_is_said(staff: FlaskClient, undecided: Campaign) -> None:
    suppression_actions.unsubscribe_customer(1, undecided.id)
    page = staff.post(f"/campaigns/{undecided.id}/send-again", data={"state": "uncertain"}, follow_redirects=True).text
    assert "1 email is being resent. 1 email was not resent, because its address is suppressed." in page


def test_those_of_one_cause_are_tried_again(undecided: Campaign, relay: Relay) -> None:
    cause = next(c for c in campaign_queries.get_campaign_stats(undecided.id).causes if c.cause == "5.7.1")
    assert (cause.state, cause.code, cause.count) == ("failed", 550, 1)
    (listed,) = delivery_queries.list_recipients(undecided.id, "failed", code=550, cause="5.7.1").deliveries
    assert listed.email == email(1)
    again = delivery_actions.retry_deliveries(undecided.id, DeliverySelection("failed", code=550, cause="5.7.1"), "mia")
    assert again.retried == 1
    sender.send_pending_emails()
    assert relay.recipients[email(1)] == 1
    assert relay.recipients[email(3)] == 0


def test_a_mailing_is_not_called_done_while_somebody_sends_mails_again(launched: Launch, relay: Relay) -> None:
    create_customers(1)
    campaign = launched()
    db.session.execute(text("update batch set status = 'done'"))
    db.session.commit()
    with db.engine.connect() as deciding:
        deciding.execute(text("select 1 from campaign for update"))
        db.session.execute(text("set lock_timeout = '2s'"))
        completion.finish_campaigns()
        deciding.execute(
            text("insert into mail_issue (campaign_id, customer_id, state, next_at) values (1, 1, 'deferred', now())")
        )
        deciding.commit()
    db.session.execute(text("reset lock_timeout"))
    completion.finish_campaigns()
    assert refresh(campaign).status == "sending"


def test_trying_again_takes_portions(undecided: Campaign, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_actions, "RETRY_CHUNK_SIZE", 1)
    assert delivery_actions.retry_deliveries(undecided.id, DeliverySelection("uncertain"), "mia").retried == 2


def test_a_cancelled_mailing_sends_nothing_again_but_can_be_settled(launched: Launch, relay: Relay) -> None:
    create_customers(60)
    relay.behaviour.body[email(0)] = "drop"
    campaign = launched(policy="hold")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    transitions.cancel_campaign(campaign.id, "tests")
    expire_leases()
    completion.finalize_cancelled_batches("sweep")
    assert delivery_counts(campaign)["uncertain"] == 1
    with pytest.raises(DomainError, match="can't be resent"):
        delivery_actions.retry_deliveries(campaign.id, DeliverySelection("uncertain"), "mia")
    assert delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("uncertain"), "mia") == 1


def test_staff_decide_one_by_one_and_a_second_tab_hears_that_it_is_done(
    staff: FlaskClient, undecided: Campaign, relay: Relay
) -> None:
    page = staff.get(f"/campaigns/{undecided.id}/recipients?state=uncertain").text
    assert page.count("Dismiss</summary>") == 2
    form = {"state": "uncertain", "customer": "1", "back": "uncertain"}
    first = staff.post(f"/campaigns/{undecided.id}/leave", data=form, follow_redirects=True)
    second = staff.post(f"/campaigns/{undecided.id}/leave", data=form, follow_redirects=True)
    assert "1 uncertain email was dismissed." in first.text
    assert "There are no emails left to resolve" in second.text
    assert second.text.count("Dismiss</summary>") == 1


def test_a_viewer_decides_nothing(sign_in: Callable[..., FlaskClient], undecided: Campaign) -> None:
    viewer = sign_in("viewer")
    assert "Leave" not in viewer.get(f"/campaigns/{undecided.id}/recipients?state=uncertain").text
    for verb in ("leave", "send-again"):
        assert viewer.post(f"/campaigns/{undecided.id}/{verb}", data={"state": "uncertain"}).status_code == 403


def test_the_box_on_the_page_answers_with_and_without_javascript(
    staff: FlaskClient, undecided: Campaign, relay: Relay
) -> None:
    for headers in ({}, {"HX-Request": "true"}):
        page = staff.get(f"/campaigns/{undecided.id}/who?email=C1@example.com", headers=headers)
        assert "550 5.7.1 refused" in page.text
        assert ("<html" in page.text) is (not headers)
        nobody = staff.get(f"/campaigns/{undecided.id}/who?email=nobody@example.com", headers=headers)
        assert (nobody.status_code, "No customer has this email address." in nobody.text) == (422, True)


# --- progress -----------------------------------------------------------------------------------------


def opened(campaign: Campaign, *windows: tuple[int, int], **values: object) -> None:
    """Its one batch has opened windows so many seconds ago, and the campaign began an hour ago."""
    pairs = [x for begin, ago in windows for x in (begin, 3600 - ago)]
    db.session.execute(
        text(
            "update campaign set launched_at = now() - interval '1 hour', sending_since = now() - interval '1 hour' "
            "where id = :id"
        ),
        {"id": campaign.id},
    )
    here = windows[-1][0] if windows else 0
    db.session.execute(
        text("update batch set windows = :pairs, window_start = :here, window_end = :here, sent = :here"),
        {"pairs": pairs, "here": here},
    )
    db.session.commit()


def test_the_rate_is_that_of_the_last_minutes(launched: Launch) -> None:
    create_customers(500)
    campaign = launched()
    opened(campaign, (0, 3000), (50, 2900), (100, 100), (150, 50), (200, 0))
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert found.rate == pytest.approx(100 / 100, rel=0.05)
    assert found.seconds_left == pytest.approx(300, rel=0.05)
    assert not found.is_stalled


def test_what_does_not_move_has_no_rate_and_says_so(staff: FlaskClient, launched: Launch) -> None:
    create_customers(500)
    campaign = launched()
    opened(campaign, (0, 3000), (50, 600))
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert (found.rate, found.seconds_left, found.is_stalled) == (None, None, True)
    assert "Nothing has been sent for 10 minutes" in staff.get(f"/campaigns/{campaign.id}/progress").text


def test_a_mailing_that_just_began_has_neither_rate_nor_end(launched: Launch) -> None:
    create_customers(3)
    found = campaign_queries.get_campaign_stats(launched().id)
    assert (found.rate, found.seconds_left, found.is_stalled) == (None, None, False)


def begun(campaign: Campaign) -> batches.BatchClaim:
    """A worker has opened a window a minute and a half after the launch, and is heard of."""
    db.session.execute(text("update campaign set launched_at = now() - interval '90 s', sending_since = now()"))
    db.session.commit()
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    db.session.execute(text("update batch_cursor set cursor = 20"))
    db.session.commit()
    assert campaign_queries.get_campaign_stats(campaign.id).rate
    return claim


def test_neither_rate_nor_forecast_stand_below_a_relay_that_is_away(staff: FlaskClient, launched: Launch) -> None:
    create_customers(120)
    campaign = launched()
    begun(campaign)
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "emails per minute" in page
    assert "left." in page
    auto_pause.set_delivery_warning("The mail relay can't be reached.")
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert (found.rate, found.seconds_left) == (None, None)
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "emails per minute" not in page
    assert "left." not in page
    assert "The mail relay can&#39;t be reached." in staff.get("/campaigns").text


def test_what_has_not_moved_for_a_minute_has_neither_rate_nor_forecast(launched: Launch) -> None:
    create_customers(500)
    campaign = launched()
    opened(campaign, (0, 110), (50, 100), (100, 61))
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert (found.rate, found.seconds_left, found.is_stalled) == (None, None, False)


def test_a_slow_relay_moves_while_its_worker_is_heard_of(launched: Launch) -> None:
    create_customers(500)
    campaign = launched()
    opened(campaign, (0, 110), (50, 100), (100, 61))
    db.session.execute(text("update batch set status = 'sending', lease_until = now() + interval '86 s'"))
    db.session.commit()
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert (found.rate is not None, found.resumes_by) == (True, None)


def test_a_worker_that_ended_is_said_with_when_its_mails_go_on(staff: FlaskClient, launched: Launch) -> None:
    create_customers(120)
    campaign = launched()
    begun(campaign)
    db.session.execute(text("update batch set lease_until = now() + interval '50 s'"))
    until = db.session.execute(text("select lease_until from batch")).scalar_one()
    db.session.commit()
    found = campaign_queries.get_campaign_stats(campaign.id)
    by = found.resumes_by
    assert by is not None
    assert timedelta(minutes=1) < by - until <= timedelta(minutes=2)
    assert (by.second, found.rate, found.seconds_left, found.is_stalled) == (0, None, None, False)
    words = f"Sending was interrupted. It resumes automatically by {by.astimezone(UTC):%H:%M}."
    assert words in staff.get(f"/campaigns/{campaign.id}/progress").text
    assert words[2:-1] in staff.get("/campaigns").text
    # Somebody took it over: it is said no more.
    expire_leases()
    assert campaign_queries.get_campaign_stats(campaign.id).resumes_by is not None
    assert batches.claim_batch("another") is not None
    assert campaign_queries.get_campaign_stats(campaign.id).resumes_by is None


def test_when_nobody_takes_a_batch_over_somebody_should_look(staff: FlaskClient, launched: Launch) -> None:
    create_customers(120)
    campaign = launched()
    begun(campaign)
    db.session.execute(text("update batch set lease_until = now() - interval '3 minutes'"))
    db.session.commit()
    found = campaign_queries.get_campaign_stats(campaign.id)
    assert (found.resumes_by, found.is_stalled) == (None, True)
    assert "whether a worker is running" in staff.get(f"/campaigns/{campaign.id}/progress").text


@pytest.mark.parametrize("policy", ["resend", "hold"])
def test_what_was_sent_is_not_less_after_a_batch_was_taken_over(launched: Launch, relay: Relay, policy: str) -> None:
    create_customers(120)
    campaign = launched(policy=policy)
    begun(campaign)
    before = campaign_queries.get_campaign_stats(campaign.id).sent
    expire_leases()
    taken = batches.claim_batch("another")
    assert taken is not None
    assert campaign_queries.get_campaign_stats(campaign.id).sent == before == 20
    assert batches.open_send_window(taken) is not None
    assert campaign_queries.get_campaign_stats(campaign.id).sent == before


def test_the_first_window_of_a_batch_counts_whatever_befell_the_batches_before(launched: Launch, relay: Relay) -> None:
    ids = create_customers(560)
    campaign = launched()
    first, second = batches.claim_batch("one"), batches.claim_batch("another")
    assert first is not None
    assert second is not None
    db.session.add_all(
        MailIssue(campaign_id=campaign.id, customer_id=ids[n], state="failed", text="") for n in (0, 1, 2)
    )
    first.position, first.sent = 500, 497
    batches.finish_batch(first)
    assert batches.open_send_window(second) is not None
    db.session.execute(text("update batch_cursor set cursor = 20 where batch_id = :id"), {"id": second.batch_id})
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=ids[504], state="failed", text=""))
    db.session.commit()
    assert (
        campaign_queries.get_campaign_stats(campaign.id).sent,
        campaign_queries.get_campaign_stats(campaign.id).failed,
    ) == (497 + 19, 4)


def test_a_mail_that_is_being_tried_counts_as_put_off_until_its_outcome_is_known(
    staff: FlaskClient, launched: Launch, relay: Relay
) -> None:
    ids = create_customers(3)
    relay.behaviour.rcpt[email(1)] = "450 4.2.2 mailbox full"
    campaign = launched()
    sender.send_pending_emails()
    make_retries_due()
    due = retries.claim_due_retry()
    assert due is not None
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "deferred": 1}
    assert [cause.state for cause in campaign_queries.get_campaign_stats(campaign.id).causes] == ["deferred"]
    answer = delivery_status(campaign, ids[1])
    assert (answer.state, answer.note, answer.next_at, answer.attempts, answer.needs_resolution) == (
        "deferred", "It is being retried now.", None, 1, False,
    )  # fmt: skip
    for code, cause in ((None, None), (450, "4.2.2")):
        listed = delivery_queries.list_recipients(campaign.id, "deferred", code=code, cause=cause)
        assert [f.customer_id for f in listed.deliveries] == [ids[1]]
    assert delivery_queries.list_recipients(campaign.id, "uncertain").deliveries == []
    assert [f.state for f in everybody(campaign, "deferred")] == ["deferred"]
    assert "mailbox full" in staff.get(f"/campaigns/{campaign.id}/progress").text
    # Whoever tried it ended: nobody knows any more.
    make_retries_due()
    assert delivery_counts(campaign) == {"total": 3, "sent": 2, "uncertain": 1}
    assert [f.customer_id for f in delivery_queries.list_recipients(campaign.id, "uncertain").deliveries] == [ids[1]]
    assert delivery_queries.list_recipients(campaign.id, "deferred").deliveries == []


def test_whoever_may_have_got_it_twice_is_said_to_everywhere(
    staff: FlaskClient, launched: Launch, relay: Relay
) -> None:
    ids = create_customers(3)
    campaign = launched(policy="resend")
    claim = batches.claim_batch("a worker")
    assert claim is not None
    assert batches.open_send_window(claim) is not None
    expire_leases()
    relay.behaviour.rcpt[email(1)] = "450 later"
    relay.behaviour.times[email(1)] = 1
    sender.send_pending_emails()
    make_retries_due()
    sender.send_pending_emails()
    again, later = delivery_status(campaign, ids[0]), delivery_status(campaign, ids[1])
    words = "An earlier attempt may have succeeded, so the customer may have got it twice."
    assert (again.state, again.code, again.note) == ("sent_later", None, words)
    assert (later.state, later.code, later.note) == ("sent_later", None, "")
    lines = list(
        csv.DictReader(
            io.StringIO("".join(delivery_export.iter_recipient_csv(delivery_queries.iter_recipients(campaign.id))))
        )
    )
    assert [line["words"] for line in lines] == [words, "", ""]
    for path in ("recipients", "recipients?state=sent_later", f"who?email={email(0)}"):
        assert staff.get(f"/campaigns/{campaign.id}/{path}").text.count(words) == 1
    assert words in staff.get(f"/customers/{ids[0]}").text
    assert recipient_json(again)["note"] == words


def test_what_can_never_go_out_is_not_offered_to_be_sent_again(staff: FlaskClient, undecided: Campaign) -> None:
    page = staff.get(f"/campaigns/{undecided.id}/recipients?state=failed").text
    # c3 has no mailbox, so its address is on the list.
    assert page.count("Resend</summary>") == 1
    assert "The address is suppressed (bounced)" in page
    form = {"state": "failed", "customer": "4", "back": "failed"}
    answer = staff.post(f"/campaigns/{undecided.id}/send-again", data=form, follow_redirects=True).text
    assert "This email was not resent, because its address is suppressed." in answer


def test_the_list_of_do_not_mail_names_the_mailing_by_its_offer(
    sign_in: Callable[..., FlaskClient], undecided: Campaign
) -> None:
    admin = sign_in("admin")
    for path in ("customers/do-not-mail", f"customers/do-not-mail/lift?email={email(3)}", "customers/4"):
        page = admin.get(f"/{path}").text
        assert f'<a href="/campaigns/{undecided.id}">Campaign for Summer</a>' in page, path
    rows = list(csv.DictReader(io.StringIO(admin.get("/customers/do-not-mail.csv").text)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0]["since"])


def test_after_a_decision_about_all_the_progress_is_shown(staff: FlaskClient, undecided: Campaign) -> None:
    form = {"state": "uncertain", "back": "uncertain"}
    answer = staff.post(f"/campaigns/{undecided.id}/send-again", data=form, follow_redirects=True)
    assert answer.request.path == f"/campaigns/{undecided.id}"
    assert "2 emails are being resent." in answer.text
    assert "to be resolved" not in answer.text


def test_a_list_of_one_cause_says_it_in_words_that_are_not_cut(staff: FlaskClient, undecided: Campaign) -> None:
    (cause,) = {c for c in campaign_queries.get_campaign_stats(undecided.id).causes if c.state == "uncertain"}
    (listed, _) = delivery_queries.list_recipients(undecided.id, "uncertain").deliveries
    assert len(listed.text) > len(cause.cause)
    page = staff.get(f"/campaigns/{undecided.id}/recipients", query_string={"state": "uncertain", "cause": cause.cause})
    assert f"Filtered by reason: {listed.text[0].upper()}{listed.text[1:]}." in page.text
    page = staff.get(f"/campaigns/{undecided.id}/recipients?state=failed&code=550&cause=5.7.1")
    assert "Filtered by reason: The receiving server rejects the email, often as spam (550 5.7.1)." in page.text


def test_a_tab_is_there_only_when_it_can_have_somebody(staff: FlaskClient, launched: Launch) -> None:
    create_customers(3)
    campaign = launched()
    url = f"/campaigns/{campaign.id}/recipients"
    assert ("Queued</a>" in staff.get(url).text, "Cancelled</a>" in staff.get(url).text) == (True, False)
    transitions.cancel_campaign(campaign.id, "tests")
    assert ("Queued</a>" in staff.get(url).text, "Cancelled</a>" in staff.get(url).text) == (False, True)
    assert "This status does not exist, so all recipients are listed." in staff.get(f"{url}?state=nonsense").text


def test_staff_are_asked_to_decide_while_the_rest_is_being_sent(staff: FlaskClient, undecided: Campaign) -> None:
    db.session.execute(text("update campaign set status = 'sending', finished_at = null, sent_in_batches = null"))
    db.session.commit()
    page = staff.get(f"/campaigns/{undecided.id}/progress").text
    assert "2 emails are uncertain." in page
    assert "to be resolved" in page
    db.session.execute(text("update campaign set uncertain_policy = 'resend'"))
    db.session.execute(text("update mail_issue set next_at = now() where state = 'uncertain'"))
    db.session.commit()
    assert "to be resolved" not in staff.get(f"/campaigns/{undecided.id}/progress").text


def test_who_stops_a_mailing_hears_of_those_put_off_too(staff: FlaskClient, launched: Launch, relay: Relay) -> None:
    create_customers(60)
    relay.behaviour.rcpt["*"] = "450 later"
    campaign = launched()
    sender.send_pending_emails()
    page = staff.get(f"/campaigns/{campaign.id}/progress").text
    assert "About 60 recipients have not received the email and will not receive it, even if it is deferred." in page


def test_what_was_said_at_the_launch_goes_when_the_mailing_is_paused(staff: FlaskClient, launched: Launch) -> None:
    create_customers(3)
    campaign = launched()
    htmx = {"HX-Request": "true"}
    emptied = '<div id="flashes" hx-swap-oob="true">'
    assert emptied not in staff.get(f"/campaigns/{campaign.id}/progress", headers=htmx).text
    auto_pause.pause_automatically(campaign.id, "the relay refuses us")
    assert emptied in staff.get(f"/campaigns/{campaign.id}/progress", headers=htmx).text


def test_causes_say_in_plain_words_what_the_server_meant(staff: FlaskClient, undecided: Campaign) -> None:
    page = staff.get(f"/campaigns/{undecided.id}").text
    assert "There is no such mailbox" in page
    assert f"/campaigns/{undecided.id}/recipients?state=failed&amp;code=550&amp;cause=5.1.1" in page
