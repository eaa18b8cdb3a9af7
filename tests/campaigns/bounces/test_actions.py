"""Bounce reports from a mailbox and by JSON, and the suppressions that they cause."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support import bounce_messages
from webapp.accounts.models import AuditEntry
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces import mailbox
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.campaigns.models import Batch, Campaign, MailIssue, encode_gaps
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer, Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.validation import CustomerValues
from webapp.offers.models import Offer

ADA = "ada@example.org"
SYSTEMS = ("POSTFIX", "EXCHANGE", "GMAIL", "EXIM", "QMAIL")


@pytest.fixture(autouse=True)
def sent_campaign(
    make_customer: Callable[..., Customer], make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> Campaign:
    """A campaign that was sent to Ada (1) and Bob (2)."""
    with_settings(mail_bounce_address="bounces@example.com")
    make_customer(ADA), make_customer("bob@example.org")
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="done", total=2, sent_in_batches=2)
    db.session.add(campaign)
    db.session.flush()
    db.session.execute(text("update campaign set launched_at = now() - interval '1 day'"))
    db.session.add(
        Batch(campaign_id=campaign.id, seq=0, first_id=1, last_id=2, gaps=encode_gaps([1, 2]), status="done", sent=2)
    )
    db.session.commit()
    return campaign


def build_report(template: str, customer_id: int = 1, campaign_id: int = 1, **values: str) -> bytes:
    """Fill in a template of `bounce_messages` for a campaign's email to a customer."""
    defaults = {
        "to": campaign_tokens.build_return_path(campaign_id, customer_id, ""),
        "id": campaign_tokens.build_message_id(campaign_id, customer_id, "example.com"),
        "unsubscribe_url": campaign_tokens.build_unsubscribe_url(customer_id, campaign_id),
        "rcpt": ADA,
        "action": "failed",
        "status": "5.1.1",
        "status_reply": "550 5.1.1 <ada@example.org>: User unknown",
        "feedback": "abuse",
    }
    return str(getattr(bounce_messages, template)).format_map(defaults | values).encode()


def process(raw: bytes) -> str:
    return bounce_actions.process_bounce_report(bounce_reports.parse_report(raw))


def suppression_reasons() -> dict[str, str]:
    db.session.expire_all()
    return {row.email: row.reason for row in db.session.scalars(select(Suppression))}


# --- what reports say --------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_hard_bounce_suppresses_the_address(system: str, line_end: str) -> None:
    assert process(build_report(system).replace(b"\n", line_end.encode())) == "suppressed"
    row = db.session.get_one(Suppression, ADA)
    assert (row.reason, row.campaign_id) == ("bounced", 1)
    assert "5" in row.detail
    assert process(build_report(system)) == "known"
    assert suppression_reasons() == {ADA: "bounced"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_message_id_identifies_the_recipient_without_a_return_path(system: str) -> None:
    raw = build_report(system, to="offers@example.com")
    assert process(raw) == "suppressed"
    assert suppression_reasons() == {ADA: "bounced"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_report_without_a_signed_tag_suppresses_no_one(system: str) -> None:
    assert process(build_report(system, to="bounces@example.com", id="<forged@example.com>")) == "unproven"
    assert suppression_reasons() == {}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_forged_tag_suppresses_no_one(system: str) -> None:
    address = campaign_tokens.build_return_path(1, 1, "")
    forged = address.replace("@", "a@").replace(address[8:12], "aaaa", 1)
    assert process(build_report(system, to=forged, id="<abcdefghijklmnopqrstuvwxyz234567abcdefghij@x>")) == "unproven"
    assert suppression_reasons() == {}


def test_the_signed_tag_decides_who_is_suppressed() -> None:
    assert process(build_report("POSTFIX", customer_id=2)) == "suppressed"
    assert suppression_reasons() == {"bob@example.org": "bounced"}


@pytest.mark.parametrize(
    ("status", "reply", "outcome"),
    [
        ("5.1.1", "550 5.1.1 User unknown", "suppressed"),
        ("5.1.2", "550 5.1.2 Host unknown", "suppressed"),
        ("5.1.10", "556 5.1.10 null MX", "suppressed"),
        ("5.2.1", "550 5.2.1 mailbox disabled", "suppressed"),
        ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied", "suppressed"),
        ("5.4.4", "550 5.4.4 Unrouteable", "suppressed"),
        ("5.0.0", "550 5.1.1 unknown", "suppressed"),
        ("5.0.0", "550 no such user", "suppressed"),
        ("5.0.0", "550 blocked as spam", "soft"),
        ("5.0.0", "550 5.7.1 go away", "soft"),
        ("5.1.7", "550 5.1.7 Bad sender", "soft"),
        ("5.1.8", "550 5.1.8 Bad sender's system", "soft"),
        ("5.2.0", "550 5.2.0 quota exceeded", "soft"),
        ("5.2.2", "552 5.2.2 mailbox full", "soft"),
        ("5.2.3", "552 5.2.3 too long", "soft"),
        ("5.3.4", "552 5.3.4 too big", "soft"),
        ("5.4.7", "550 5.4.7 delivery time expired", "soft"),
        ("5.6.0", "554 5.6.0 content", "soft"),
        ("5.7.1", "550 5.7.1 policy", "soft"),
        ("5.7.26", "550 5.7.26 unauthenticated", "soft"),
        ("4.4.1", "no answer from host", "soft"),
        ("4.2.2", "452 4.2.2 full", "soft"),
        ("5.1.1 (bad destination mailbox address)", "550", "suppressed"),
        ("", "550 5.1.1 unknown", "suppressed"),
        ("nonsense", "nonsense", "soft"),
    ],
)
def test_only_permanent_address_errors_suppress(status: str, reply: str, outcome: str) -> None:
    assert process(build_report("POSTFIX", status=status, status_reply=reply)) == outcome
    assert bool(suppression_reasons()) is (outcome == "suppressed")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [("failed", "suppressed"), ("Failed", "suppressed"), ("delayed", "soft"), ("relayed", "ignored"),
     ("delivered", "ignored"), ("expanded", "ignored"), ("", "ignored")],
)  # fmt: skip
def test_only_failed_deliveries_suppress(action: str, outcome: str) -> None:
    assert process(build_report("POSTFIX", action=action)) == outcome


@pytest.mark.parametrize("template", ["VACATION", "READ_RECEIPT"])
def test_automatic_replies_are_ignored(template: str) -> None:
    assert process(build_report(template)) == "ignored"
    assert suppression_reasons() == {}


@pytest.mark.parametrize(
    ("feedback", "outcome"),
    [("abuse", "suppressed"), ("Fraud", "suppressed"), ("not-spam", "ignored"), ("auth-failure", "ignored")],
)
def test_a_spam_complaint_suppresses_the_address(feedback: str, outcome: str) -> None:
    assert process(build_report("COMPLAINT", feedback=feedback)) == outcome
    assert suppression_reasons() == ({ADA: "complained"} if outcome == "suppressed" else {})


def test_an_unsubscribe_email_is_identified_by_its_return_path() -> None:
    assert process(build_report("UNSUBSCRIBE_REQUEST", to="offers@example.com")) == "unproven"
    assert (
        process(build_report("UNSUBSCRIBE_REQUEST").replace(b"Subject", b"Auto-Submitted: auto-replied\nSubject"))
        == "ignored"
    )
    assert process(build_report("UNSUBSCRIBE_REQUEST")) == "suppressed"
    assert suppression_reasons() == {ADA: "unsubscribed"}


# --- whom reports are about --------------------------------------------------------------------------


def test_a_bounce_of_a_former_address_is_ignored() -> None:
    customer_actions.update_customer(1, CustomerValues("new@example.org", "Ada"), [], by="tests")
    assert process(build_report("POSTFIX")) == "ignored"
    assert suppression_reasons() == {}
    assert process(build_report("COMPLAINT")) == "suppressed"
    assert suppression_reasons() == {"new@example.org": "complained"}


def test_a_bounce_of_a_forwarded_address_suppresses_the_customer() -> None:
    assert process(build_report("POSTFIX", rcpt="ada@elsewhere.example")) == "suppressed"
    assert suppression_reasons() == {ADA: "bounced"}


def test_a_report_about_an_erased_customer_is_ignored() -> None:
    customer_actions.erase_customer(1, by="tests")
    assert process(build_report("POSTFIX")) == process(build_report("COMPLAINT")) == "unknown_customer"
    assert suppression_reasons() == {}


def test_the_sender_address_is_never_suppressed(with_settings: Callable[..., Settings]) -> None:
    with_settings(mail_default_sender=f"Shop <{ADA.upper()}>")
    assert process(build_report("POSTFIX")) == "own_address"
    assert suppression_reasons() == {}


@pytest.mark.parametrize(
    ("status", "reply", "detail"),
    [
        ("5.1.1", "550 5.1.1 unknown", "550 5.1.1 unknown"),
        ("5.1.1", "550 unknown", "5.1.1 550 unknown"),
        ("5.1.1", "", "5.1.1"),
    ],
)
def test_the_reason_of_a_bounce_is_kept_with_its_status(
    sent_campaign: Campaign, status: str, reply: str, detail: str
) -> None:
    counts = bounce_actions.process_bounce_messages(
        [build_report("POSTFIX", status=status, status_reply=reply), build_report("VACATION")], by="mia"
    )
    assert counts == {"suppressed": 1, "ignored": 1}
    assert db.session.get_one(Suppression, ADA).detail == detail
    assert db.session.scalars(select(MailIssue.text)).all() == [f"bounced: {detail}"]
    # A known bounce is not recorded again.
    bounce_actions.process_bounce_messages([build_report("POSTFIX", status=status, status_reply=reply)], by="tom")
    entries = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "bounces.taken")).all()
    assert [(entry.actor, entry.subject, entry.detail) for entry in entries] == [
        ("mia", "suppression list", {"mails": 2, "suppressed": 1})
    ]


def test_a_bounce_marks_the_delivery_as_failed(sent_campaign: Campaign) -> None:
    process(build_report("POSTFIX"))
    process(build_report("POSTFIX"))
    issue = db.session.execute(select(MailIssue.customer_id, MailIssue.state, MailIssue.text)).all()
    assert issue == [(1, "failed", "bounced: 550 5.1.1 <ada@example.org>: User unknown")]
    db.session.refresh(sent_campaign)
    assert (sent_campaign.sent_in_batches, db.session.scalar(select(Batch.sent))) == (1, 1)


@pytest.mark.parametrize(("sent", "total", "expected"), [(2, 2, (1, 1)), (0, 2, (0, 2)), (2, 0, (1, 0))])
def test_a_bounce_makes_no_count_negative(
    sent_campaign: Campaign, sent: int, total: int, expected: tuple[int, int]
) -> None:
    db.session.execute(text("update batch set sent = :sent"), {"sent": sent})
    db.session.execute(text("update campaign set sent_in_batches = :total"), {"total": total})
    db.session.commit()
    process(build_report("POSTFIX"))
    assert db.session.execute(text("select sent, sent_in_batches from batch, campaign")).one() == expected


@pytest.mark.parametrize(
    ("state", "new_state"),
    [("failed", "failed"), ("skipped", "skipped"), ("uncertain", "failed"), ("sent_later", "failed")],
)
def test_a_bounce_keeps_a_more_precise_delivery_state(sent_campaign: Campaign, state: str, new_state: str) -> None:
    db.session.add(MailIssue(campaign_id=1, customer_id=1, state=state, text="as it was"))
    db.session.commit()
    process(build_report("POSTFIX"))
    db.session.expire_all()
    issue = db.session.get_one(MailIssue, (1, 1))
    assert (issue.state, issue.text == "as it was") == (new_state, state == new_state)
    assert db.session.scalar(select(Batch.sent)) == 2


@pytest.mark.parametrize("campaign", [0, 99])
def test_a_bounce_without_a_known_campaign_marks_no_delivery(campaign: int) -> None:
    assert process(build_report("POSTFIX", campaign_id=campaign)) == "suppressed"
    assert db.session.scalars(select(MailIssue)).all() == []


# --- malformed reports ------------------------------------------------------------------------------


def build_nested_message(depth: int) -> bytes:
    head = b"From: x\nTo: y\n"
    for n in range(depth):
        head += b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n)
    return head + b"Content-Type: text/plain\n\nthe end\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe\x00",
        b"no headers at all",
        build_nested_message(100),
        build_nested_message(3000),
        b"Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\n",
        b"Content-Type: multipart/report\n\n--x\nContent-Type: message/delivery-status\n\nAction: failed\n",
        b"Subject: =?klingon?b?////?=\nContent-Type: text/plain; charset=klingon\n\n\xff\xff",
        b"X-Failed-Recipients: " + b"a@b," * 50_000 + b"\n\n" + b"<" * 100_000,
        b"From: " + b"(" * 100_000 + b"\n\nHi. This is the ",
    ],
    ids=["empty", "bytes", "plain", "deep", "very deep", "cut", "no boundary", "charset", "long", "brackets"],
)
def test_a_malformed_report_suppresses_no_one(raw: bytes) -> None:
    assert process(raw) in ("broken", "ignored", "unproven", "soft")
    assert suppression_reasons() == {}


def test_a_reply_that_is_not_utf_8_is_kept_as_far_as_possible() -> None:
    raw = build_report("POSTFIX").replace(b"User unknown", b"Empf\xe4nger unbekannt\x00")
    assert process(raw) == "suppressed"
    assert "unbekannt" in db.session.get_one(Suppression, ADA).detail


# --- mailboxes --------------------------------------------------------------------------------------


def build_mbox(*raws: bytes) -> bytes:
    return b"".join(b"From MAILER-DAEMON Sat May  2 08:00:03 2026\n" + raw.rstrip() + b"\n\n" for raw in raws)


def test_a_mailbox_is_split_only_where_messages_begin() -> None:
    tricky = b"To: x\n\nFrom here on\n>From quoted\nFrom the middle\n"
    mailbox_bytes = build_mbox(tricky, b"To: y\n\nshort", b"\xff")
    messages = list(mailbox.iter_messages(io.BytesIO(mailbox_bytes)))
    assert len(messages) == 3
    assert b"From quoted" in messages[0]
    assert b"From here on" not in messages[1]


def test_a_file_with_a_single_message_yields_it() -> None:
    assert list(mailbox.iter_messages(io.BytesIO(build_report("POSTFIX")))) == [build_report("POSTFIX")]
    assert list(mailbox.iter_messages(io.BytesIO(b"\n\n"))) == []


class GeneratedFile(io.RawIOBase):
    """A file whose content is generated while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self.rest = self.rest or next(self.pieces, b"")
        n = min(len(into), len(self.rest))
        into[:n], self.rest = self.rest[:n], self.rest[n:]
        return n


@pytest.mark.slow
def test_a_large_mailbox_is_read_one_message_at_a_time() -> None:
    with_attachment = build_report("POSTFIX") + b"A" * 76 * 70_000
    other = build_report("POSTFIX", customer_id=2, rcpt="bob@example.org")
    file = (build_mbox(with_attachment) if n < 20 else build_mbox(other) for n in range(21))
    tracemalloc.start()
    stream: io.BufferedReader = io.BufferedReader(GeneratedFile(file))
    outcomes = bounce_actions.process_bounce_messages(mailbox.iter_messages(stream), by="tests")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (outcomes["suppressed"], outcomes["known"]) == (2, 19)
    assert peak < 30 * 1024 * 1024


def run_command(app: Flask, *arguments: str, stdin: bytes | None = None) -> str:
    result = app.test_cli_runner().invoke(args=["bounces", *arguments], input=stdin)
    return f"{result.exit_code} {result.output}{result.exception or ''}"


def test_the_command_counts_outcomes_and_survives_malformed_messages(app: Flask, tmp_path: Path) -> None:
    file = tmp_path / "box"
    file.write_bytes(
        build_mbox(
            build_report("POSTFIX"),
            b"\xff\xfe",
            build_nested_message(3000),
            build_report("VACATION"),
            build_report("POSTFIX", status="4.2.2"),
            build_report("QMAIL", to="nobody@x", id="<forged@x>"),
            build_report("COMPLAINT", customer_id=2),
        )
    )
    output = run_command(app, str(file))
    assert suppression_reasons() == {ADA: "bounced", "bob@example.org": "complained"}
    assert "7 messages processed" in output
    assert "2 addresses suppressed" in output
    assert "about emails that may still be delivered, or that failed for a reason unrelated to the address: 1" in output
    assert "Messages without a valid token of this installation, so the recipient is unknown: 1" in output
    assert "0 addresses suppressed" in run_command(app, str(file))


def test_the_command_reads_a_file_a_maildir_and_standard_input(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "one.eml").write_bytes(build_report("POSTFIX"))
    assert "1 address suppressed" in run_command(app, str(tmp_path / "one.eml"))
    maildir = tmp_path / "Maildir"
    for name in ("new", "cur", "tmp"):
        (maildir / name).mkdir(parents=True)
    (maildir / "new" / "1").write_bytes(build_report("POSTFIX", customer_id=2, rcpt="bob@example.org"))
    (maildir / "tmp" / "2").write_bytes(build_report("COMPLAINT"))
    assert "1 message processed" in run_command(app, str(maildir))
    assert suppression_reasons() == {ADA: "bounced", "bob@example.org": "bounced"}
    assert "1 address suppressed" in run_command(app, "-", stdin=build_report("COMPLAINT"))
    assert suppression_reasons()[ADA] == "complained"
    assert run_command(app, str(tmp_path / "none")).startswith(("1", "2"))


# --- reports by API ---------------------------------------------------------------------------------


def test_json_reports_are_processed_row_by_row(api: FlaskClient) -> None:
    response = api.post(
        "/api/v1/bounces",
        json={
            "bounces": [
                {"email": "ADA@example.org", "kind": "bounce", "status": "5.1.1", "detail": "550 unknown"},
                {"return_path": campaign_tokens.build_return_path(1, 2, "").upper(), "kind": "complaint"},
                {"message_id": campaign_tokens.build_message_id(1, 2, "example.com"), "kind": "bounce"},
                {"email": "nobody@example.org", "kind": "bounce", "status": "4.2.2"},
                {"email": "no address", "kind": "bounce"},
                {"message_id": "<somebody@else>", "kind": "bounce"},
                {"email": "offers@example.com", "kind": "complaint"},
            ]
        },
    )
    assert response.status_code == 200
    assert response.json == {
        "received": 7,
        "suppressed": 2,
        "results": ["suppressed", "suppressed", "known", "soft", "email_invalid", "unproven", "own_address"],
    }
    assert suppression_reasons() == {ADA: "bounced", "bob@example.org": "complained"}
    assert db.session.get_one(Suppression, ADA).detail == "5.1.1 550 unknown"


def test_a_json_list_as_body_is_rejected_in_json_terms(api: FlaskClient) -> None:
    response = api.post("/api/v1/bounces", json=[])
    assert response.status_code == 422
    assert [error["detail"] for error in response.get_json()["errors"]] == ["Send a JSON object."]


def test_an_address_without_customer_can_be_reported(api: FlaskClient) -> None:
    notice = {"email": "Later@Example.org", "kind": "complaint", "status": "4.2.2", "detail": "abuse"}
    api.post("/api/v1/bounces", json={"bounces": [notice]})
    assert suppression_reasons() == {"later@example.org": "complained"}
    row = db.session.get_one(Suppression, "later@example.org")
    assert (row.source, row.campaign_id, row.detail) == ("relay", None, "4.2.2 abuse")


def test_bounces_reported_by_a_key_or_by_command_are_audited(api: FlaskClient, app: Flask, tmp_path: Path) -> None:
    api.post("/api/v1/bounces", json={"bounces": [{"email": "later@example.org", "kind": "complaint"}]})
    api.post("/api/v1/bounces", data=build_report("POSTFIX"), content_type="message/rfc822")
    (tmp_path / "one.eml").write_bytes(build_report("POSTFIX", customer_id=2, rcpt="bob@example.org"))
    run_command(app, str(tmp_path / "one.eml"))
    # Nothing is recorded for what is known already.
    run_command(app, str(tmp_path / "one.eml"))
    entries = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "bounces.taken").order_by(AuditEntry.id))
    assert [entry.actor for entry in entries] == ["API key tests", "API key tests", "command line"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"bounces": []},
        {"bounces": [{"kind": "bounce"}]},
        {"bounces": [{"email": "a@b.example", "kind": "nonsense"}]},
        {"bounces": [{"email": "a@b.example"}]},
        {"bounces": [{"email": 3, "kind": "bounce"}]},
        {"bounces": [{"email": "a@b.example", "kind": "bounce", "more": 1}]},
        {"bounces": [{"email": "a@b.example", "kind": "bounce"}] * 1001},
    ],
)
def test_an_invalid_json_report_is_rejected_as_a_whole(api: FlaskClient, body: object) -> None:
    response = api.post("/api/v1/bounces", json=body)
    assert (response.status_code, response.mimetype) == (422, "application/problem+json")
    assert suppression_reasons() == {}


@pytest.mark.parametrize("kind", ["message", "message as report", "report alone"])
def test_the_bounce_message_itself_can_be_posted(api: FlaskClient, kind: str) -> None:
    raw = build_report("POSTFIX")
    media_type = "message/rfc822"
    if kind != "message":
        media_type = 'multipart/report; boundary="4F2B11C02A7.1777708803/mx.relay.example"'
    if kind == "report alone":
        raw = raw.partition(b"\n\n")[2]
    response = api.post("/api/v1/bounces", data=raw, content_type=media_type)
    assert (response.status_code, response.json) == (200, {"received": 1, "suppressed": 1, "results": ["suppressed"]})


def test_a_large_posted_message_is_accepted(api: FlaskClient) -> None:
    raw = build_report("POSTFIX") + b"A" * 5 * 1024 * 1024
    response = api.post("/api/v1/bounces", data=raw, content_type="message/rfc822")
    assert response.json == {"received": 1, "suppressed": 1, "results": ["suppressed"]}


def test_unsupported_bodies_and_unauthorised_keys_are_refused(api: FlaskClient, app: Flask) -> None:
    from webapp.accounts import api_key_actions

    assert api.post("/api/v1/bounces", data="x", content_type="text/plain").status_code == 415
    assert api.post("/api/v1/bounces", data="{", content_type="application/json").status_code == 400
    assert app.test_client().post("/api/v1/bounces", json={"bounces": []}).status_code == 401
    key = api_key_actions.create_api_key("till", ["read", "redeem"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}
    assert app.test_client().post("/api/v1/bounces", json={"bounces": []}, headers=headers).status_code == 403


def test_a_bounced_customer_has_a_suppression_reason() -> None:
    process(build_report("POSTFIX"))
    suppression_actions.add_suppression("bob@example.org", "complained", 1)
    db.session.commit()
    assert customer_queries.find_suppression_reasons([1, 2]) == {1: "bounced", 2: "complained"}
