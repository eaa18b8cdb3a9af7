"""Mails that come back: from a mailbox, by JSON, and what they do to the list."""

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
def mailed(
    make_customer: Callable[..., Customer], make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> Campaign:
    """A mailing that has gone out to Ada (1) and Bob (2)."""
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


def mail(shape: str, customer_id: int = 1, campaign_id: int = 1, **values: str) -> bytes:
    """A mail in one of the shapes of `returned`, about the mail of a campaign to a customer."""
    given = {
        "to": campaign_tokens.build_return_path(campaign_id, customer_id, ""),
        "id": campaign_tokens.build_message_id(campaign_id, customer_id, "example.com"),
        "unsubscribe_url": campaign_tokens.build_unsubscribe_url(customer_id, campaign_id),
        "rcpt": ADA,
        "action": "failed",
        "status": "5.1.1",
        "status_reply": "550 5.1.1 <ada@example.org>: User unknown",
        "feedback": "abuse",
    }
    return str(getattr(bounce_messages, shape)).format_map(given | values).encode()


def take(raw: bytes) -> str:
    return bounce_actions.process_bounce_report(bounce_reports.parse_report(raw))


def listed() -> dict[str, str]:
    db.session.expire_all()
    return {row.email: row.reason for row in db.session.scalars(select(Suppression))}


# --- what they say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_an_address_that_does_not_exist_is_not_mailed_again(system: str, ends: str) -> None:
    assert take(mail(system).replace(b"\n", ends.encode())) == "suppressed"
    row = db.session.get_one(Suppression, ADA)
    assert (row.reason, row.campaign_id) == ("bounced", 1)
    assert "5" in row.words
    assert take(mail(system)) == "known"
    assert listed() == {ADA: "bounced"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_a_marked_address_the_message_id_tells_whose_mail_it_was(system: str) -> None:
    raw = mail(system, to="offers@example.com")
    assert take(raw) == "suppressed"
    assert listed() == {ADA: "bounced"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_report_without_any_mark_of_ours_suppresses_nobody(system: str) -> None:
    assert take(mail(system, to="bounces@example.com", id="<forged@example.com>")) == "unproven"
    assert listed() == {}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_forged_mark_suppresses_nobody(system: str) -> None:
    address = campaign_tokens.build_return_path(1, 1, "")
    forged = address.replace("@", "a@").replace(address[8:12], "aaaa", 1)
    assert take(mail(system, to=forged, id="<abcdefghijklmnopqrstuvwxyz234567abcdefghij@x>")) == "unproven"
    assert listed() == {}


def test_the_mark_decides_whom_and_not_who_is_named() -> None:
    assert take(mail("POSTFIX", customer_id=2)) == "suppressed"
    assert listed() == {"bob@example.org": "bounced"}


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
def test_what_suppresses_and_what_does_not(status: str, reply: str, outcome: str) -> None:
    assert take(mail("POSTFIX", status=status, status_reply=reply)) == outcome
    assert bool(listed()) is (outcome == "suppressed")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [("failed", "suppressed"), ("Failed", "suppressed"), ("delayed", "soft"), ("relayed", "ignored"),
     ("delivered", "ignored"), ("expanded", "ignored"), ("", "ignored")],
)  # fmt: skip
def test_only_what_failed_counts(action: str, outcome: str) -> None:
    assert take(mail("POSTFIX", action=action)) == outcome


@pytest.mark.parametrize("shape", ["VACATION", "READ"])
def test_answers_of_machines_are_no_bounces(shape: str) -> None:
    assert take(mail(shape)) == "ignored"
    assert listed() == {}


@pytest.mark.parametrize(
    ("feedback", "outcome"),
    [("abuse", "suppressed"), ("Fraud", "suppressed"), ("not-spam", "ignored"), ("auth-failure", "ignored")],
)
def test_who_complains_at_their_provider_is_not_mailed_again(feedback: str, outcome: str) -> None:
    assert take(mail("COMPLAINT", feedback=feedback)) == outcome
    assert listed() == ({ADA: "complained"} if outcome == "suppressed" else {})


def test_a_mail_that_asks_to_unsubscribe_does_so_by_the_address_it_is_sent_to() -> None:
    assert take(mail("ASKING", to="offers@example.com")) == "unproven"
    assert take(mail("ASKING").replace(b"Subject", b"Auto-Submitted: auto-replied\nSubject")) == "ignored"
    assert take(mail("ASKING")) == "suppressed"
    assert listed() == {ADA: "unsubscribed"}


# --- whom they are about -----------------------------------------------------------------------------


def test_an_address_that_the_customer_no_longer_has_does_not_follow_them() -> None:
    customer_actions.update_customer(1, CustomerValues("new@example.org", "Ada"), [], by="tests")
    assert take(mail("POSTFIX")) == "ignored"
    assert listed() == {}
    assert take(mail("COMPLAINT")) == "suppressed"
    assert listed() == {"new@example.org": "complained"}


def test_a_forwarded_address_that_bounces_is_the_customers() -> None:
    assert take(mail("POSTFIX", rcpt="ada@elsewhere.example")) == "suppressed"
    assert listed() == {ADA: "bounced"}


def test_an_erased_customer_is_not_named_again() -> None:
    customer_actions.erase_customer(1, by="tests")
    assert take(mail("POSTFIX")) == take(mail("COMPLAINT")) == "unknown_customer"
    assert listed() == {}


def test_the_address_of_the_shop_itself_is_left_alone(with_settings: Callable[..., Settings]) -> None:
    with_settings(mail_default_sender=f"Shop <{ADA.upper()}>")
    assert take(mail("POSTFIX")) == "own_address"
    assert listed() == {}


def test_who_got_it_says_that_it_came_back(mailed: Campaign) -> None:
    take(mail("POSTFIX"))
    take(mail("POSTFIX"))
    issue = db.session.execute(select(MailIssue.customer_id, MailIssue.state, MailIssue.text)).all()
    assert issue == [(1, "failed", "bounced: 550 5.1.1 <ada@example.org>: User unknown")]
    db.session.refresh(mailed)
    assert (mailed.sent_in_batches, db.session.scalar(select(Batch.sent))) == (1, 1)


@pytest.mark.parametrize(
    ("state", "becomes"),
    [("failed", "failed"), ("skipped", "skipped"), ("uncertain", "failed"), ("sent_later", "failed")],
)
def test_what_is_known_of_a_mail_already_stays_if_it_says_more(mailed: Campaign, state: str, becomes: str) -> None:
    db.session.add(MailIssue(campaign_id=1, customer_id=1, state=state, text="as it was"))
    db.session.commit()
    take(mail("POSTFIX"))
    db.session.expire_all()
    issue = db.session.get_one(MailIssue, (1, 1))
    assert (issue.state, issue.text == "as it was") == (becomes, state == becomes)
    assert db.session.scalar(select(Batch.sent)) == 2


@pytest.mark.parametrize("campaign", [0, 99])
def test_a_mail_of_no_campaign_leaves_no_trace_at_one(campaign: int) -> None:
    assert take(mail("POSTFIX", campaign_id=campaign)) == "suppressed"
    assert db.session.scalars(select(MailIssue)).all() == []


# --- what is wrong with them ------------------------------------------------------------------------


def nested(depth: int) -> bytes:
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
        nested(100),
        nested(3000),
        b"Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\n",
        b"Content-Type: multipart/report\n\n--x\nContent-Type: message/delivery-status\n\nAction: failed\n",
        b"Subject: =?klingon?b?////?=\nContent-Type: text/plain; charset=klingon\n\n\xff\xff",
        b"X-Failed-Recipients: " + b"a@b," * 50_000 + b"\n\n" + b"<" * 100_000,
        b"From: " + b"(" * 100_000 + b"\n\nHi. This is the ",
    ],
    ids=["empty", "bytes", "plain", "deep", "very deep", "cut", "no boundary", "charset", "long", "brackets"],
)
def test_what_can_not_be_read_suppresses_nobody_and_stops_nothing(raw: bytes) -> None:
    assert take(raw) in ("broken", "ignored", "unproven", "soft")
    assert listed() == {}


def test_words_that_are_not_utf_8_are_kept_as_far_as_they_can_be() -> None:
    raw = mail("POSTFIX").replace(b"User unknown", b"Empf\xe4nger unbekannt\x00")
    assert take(raw) == "suppressed"
    assert "unbekannt" in db.session.get_one(Suppression, ADA).words


# --- a mailbox --------------------------------------------------------------------------------------


def mbox(*raws: bytes) -> bytes:
    return b"".join(b"From MAILER-DAEMON Sat May  2 08:00:03 2026\n" + raw.rstrip() + b"\n\n" for raw in raws)


def test_a_mailbox_is_taken_apart_where_mails_begin_and_nowhere_else() -> None:
    tricky = b"To: x\n\nFrom here on\n>From quoted\nFrom the middle\n"
    box = mbox(tricky, b"To: y\n\nshort", b"\xff")
    found = list(mailbox.iter_messages(io.BytesIO(box)))
    assert len(found) == 3
    assert b"From quoted" in found[0]
    assert b"From here on" not in found[1]


def test_a_single_mail_is_one() -> None:
    assert list(mailbox.iter_messages(io.BytesIO(mail("POSTFIX")))) == [mail("POSTFIX")]
    assert list(mailbox.iter_messages(io.BytesIO(b"\n\n"))) == []


class Endless(io.RawIOBase):
    """A mailbox of a hundred megabytes that nobody has."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self.rest = self.rest or next(self.pieces, b"")
        n = min(len(into), len(self.rest))
        into[:n], self.rest = self.rest[:n], self.rest[n:]
        return n


def test_a_mailbox_of_a_hundred_megabytes_is_read_a_mail_at_a_time() -> None:
    attachment = mail("POSTFIX") + b"A" * 76 * 70_000
    other = mail("POSTFIX", customer_id=2, rcpt="bob@example.org")
    file = (mbox(attachment) if n < 20 else mbox(other) for n in range(21))
    tracemalloc.start()
    stream: io.BufferedReader = io.BufferedReader(Endless(file))
    seen = bounce_actions.process_bounce_messages(mailbox.iter_messages(stream), by="tests")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (seen["suppressed"], seen["known"]) == (2, 19)
    assert peak < 30 * 1024 * 1024


def run(app: Flask, *arguments: str, stdin: bytes | None = None) -> str:
    answer = app.test_cli_runner().invoke(args=["bounces", *arguments], input=stdin)
    return f"{answer.exit_code} {answer.output}{answer.exception or ''}"


def test_the_command_says_how_many_were_what_and_loses_none_for_a_broken_one(app: Flask, tmp_path: Path) -> None:
    file = tmp_path / "box"
    file.write_bytes(
        mbox(
            mail("POSTFIX"),
            b"\xff\xfe",
            nested(3000),
            mail("VACATION"),
            mail("POSTFIX", status="4.2.2"),
            mail("QMAIL", to="nobody@x", id="<forged@x>"),
            mail("COMPLAINT", customer_id=2),
        )
    )
    first = run(app, str(file))
    assert listed() == {ADA: "bounced", "bob@example.org": "complained"}
    assert "7 messages processed" in first
    assert "2 addresses suppressed" in first
    assert "1 about emails that may still be delivered" in first
    assert "1 without our signed tag" in first
    assert "0 addresses suppressed" in run(app, str(file))


def test_the_command_takes_a_mail_a_folder_and_standard_input(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "one.eml").write_bytes(mail("POSTFIX"))
    assert "1 address suppressed" in run(app, str(tmp_path / "one.eml"))
    maildir = tmp_path / "Maildir"
    for name in ("new", "cur", "tmp"):
        (maildir / name).mkdir(parents=True)
    (maildir / "new" / "1").write_bytes(mail("POSTFIX", customer_id=2, rcpt="bob@example.org"))
    (maildir / "tmp" / "2").write_bytes(mail("COMPLAINT"))
    assert "1 message processed" in run(app, str(maildir))
    assert listed() == {ADA: "bounced", "bob@example.org": "bounced"}
    assert "1 address suppressed" in run(app, "-", stdin=mail("COMPLAINT"))
    assert listed()[ADA] == "complained"
    assert run(app, str(tmp_path / "none")).startswith(("1", "2"))


# --- by JSON ----------------------------------------------------------------------------------------


def test_a_relay_reports_by_json_row_by_row(api: FlaskClient) -> None:
    answer = api.post(
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
    assert answer.status_code == 200
    assert answer.json == {
        "received": 7,
        "suppressed": 2,
        "results": ["suppressed", "suppressed", "known", "soft", "email_invalid", "unproven", "own_address"],
    }
    assert listed() == {ADA: "bounced", "bob@example.org": "complained"}
    assert db.session.get_one(Suppression, ADA).words == "5.1.1 550 unknown"


def test_a_list_where_an_object_belongs_is_answered_in_words_of_json(api: FlaskClient) -> None:
    answer = api.post("/api/v1/bounces", json=[])
    assert answer.status_code == 422
    assert [error["detail"] for error in answer.get_json()["errors"]] == ["Input should be a JSON object"]


def test_a_relay_may_report_addresses_that_are_nobodys(api: FlaskClient) -> None:
    api.post("/api/v1/bounces", json={"bounces": [{"email": "later@example.org", "kind": "complaint"}]})
    assert listed() == {"later@example.org": "complained"}


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
def test_a_report_that_is_none_is_refused_as_a_whole(api: FlaskClient, body: object) -> None:
    answer = api.post("/api/v1/bounces", json=body)
    assert (answer.status_code, answer.mimetype) == (422, "application/problem+json")
    assert listed() == {}


@pytest.mark.parametrize("kind", ["the mail", "the mail as a report", "the report alone"])
def test_a_relay_posts_the_mail_itself(api: FlaskClient, kind: str) -> None:
    raw = mail("POSTFIX")
    media_type = "message/rfc822"
    if kind != "the mail":
        media_type = 'multipart/report; boundary="4F2B11C02A7.1777708803/mx.relay.example"'
    if kind == "the report alone":
        raw = raw.partition(b"\n\n")[2]
    answer = api.post("/api/v1/bounces", data=raw, content_type=media_type)
    assert (answer.status_code, answer.json) == (200, {"received": 1, "suppressed": 1, "results": ["suppressed"]})


def test_a_large_mail_is_read_only_as_far_as_it_says_something(api: FlaskClient) -> None:
    raw = mail("POSTFIX") + b"A" * 5 * 1024 * 1024
    answer = api.post("/api/v1/bounces", data=raw, content_type="message/rfc822")
    assert answer.json == {"received": 1, "suppressed": 1, "results": ["suppressed"]}


def test_other_bodies_and_other_keys_are_refused(api: FlaskClient, app: Flask) -> None:
    from webapp.accounts import api_key_actions

    assert api.post("/api/v1/bounces", data="x", content_type="text/plain").status_code == 415
    assert api.post("/api/v1/bounces", data="{", content_type="application/json").status_code == 400
    assert app.test_client().post("/api/v1/bounces", json={"bounces": []}).status_code == 401
    key = api_key_actions.create_api_key("till", ["read", "redeem"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}
    assert app.test_client().post("/api/v1/bounces", json={"bounces": []}, headers=headers).status_code == 403


def test_a_window_leaves_out_whoever_bounced_meanwhile() -> None:
    take(mail("POSTFIX"))
    suppression_actions.add_suppression("bob@example.org", "complained", 1)
    db.session.commit()
    assert customer_queries.find_suppression_reasons([1, 2]) == {1: "bounced", 2: "complained"}
