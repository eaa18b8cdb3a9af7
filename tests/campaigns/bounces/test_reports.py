"""Parsing bounce messages, without a database."""

from __future__ import annotations

import pytest

from tests.support import bounce_messages
from webapp.campaigns.bounces import reports
from webapp.campaigns.bounces.reports import BounceReport

TO = "bounces+abcdefghijklmnopqrstuvwxyz@example.com"
VALUES = {
    "to": TO,
    "id": "<abcdefghijklmnopqrstuvwxyzabcdefghijklmnop@example.com>",
    "unsubscribe_url": "https://example.com/u/1.2.abcdefghijklmnopqrstuv",
    "rcpt": "ada@example.org",
    "action": "failed",
    "status": "5.1.1",
    "status_reply": "550 5.1.1 <ada@example.org>: User unknown",
    "feedback": "abuse",
}


def parse(template: str, header: str = "", **values: str) -> BounceReport:
    """Parse a template of `bounce_messages`, with an additional header in front."""
    message = str(getattr(bounce_messages, template)).format_map(VALUES | values)
    return reports.parse_report((f"{header}\n{message}" if header else message).encode())


@pytest.mark.parametrize("feedback", ["abuse", "fraud", "opt-out", "opt-out-list", "Opt-Out"])
def test_every_complaint_type_is_a_complaint(feedback: str) -> None:
    report = parse("COMPLAINT", feedback=feedback)
    assert (report.kind, report.diagnostic) == ("complaint", f"feedback-type: {feedback.lower()}")


@pytest.mark.parametrize("feedback", ["virus", "other", "not-spam", "", "opt-out-lists"])
def test_other_feedback_is_no_complaint(feedback: str) -> None:
    assert parse("COMPLAINT", feedback=feedback).kind == "other"


@pytest.mark.parametrize(
    "header",
    [
        "Auto-Submitted: auto-replied",
        "Auto-Submitted: auto-generated",
        "Precedence: bulk",
        "Precedence: Junk",
        "Precedence: auto_reply",
        "X-Autoreply: yes",
        "X-Autorespond: anything",
        "X-Auto-Response-Suppress: All",
    ],
)
def test_an_automatic_message_does_not_unsubscribe(header: str) -> None:
    assert parse("UNSUBSCRIBE_REQUEST", header).kind == "other"


@pytest.mark.parametrize("header", ["", "Auto-Submitted: no", "Auto-Submitted: No ", "Precedence: first-class"])
def test_an_email_by_a_person_can_unsubscribe(header: str) -> None:
    report = parse("UNSUBSCRIBE_REQUEST", header)
    assert (report.kind, report.tokens) == ("unsubscribe", (TO,))


def test_an_email_that_is_quoted_does_not_tell_who_unsubscribes() -> None:
    quoted = "> List-Unsubscribe: <https://example.com/u/1.3.abcdefghijklmnopqrstuv>\n> Return-Path: <{}>\n"
    message = bounce_messages.UNSUBSCRIBE_REQUEST.format_map(VALUES) + quoted.format(TO.replace("abc", "xyz"))

    report = reports.parse_report(message.encode())

    assert (report.kind, report.tokens) == ("unsubscribe", (TO,))


@pytest.mark.parametrize(
    ("status", "diagnostic", "is_hard"),
    [
        ("5.0.0", "", True),
        ("5.0.0", "mailbox is over quota", False),
        ("5.1.0", "", True),
        ("5.1.7", "", False),
        ("5.1.8", "", False),
        ("5.1.9", "", True),
        ("5.2.0", "", True),
        ("5.2.0", "blocked as spam", False),
        ("5.2.1", "blocked as spam", True),
        ("5.2.2", "", False),
        ("5.4.0", "", False),
        ("5.4.1", "", True),
        ("5.4.2", "", False),
        ("5.4.4", "", True),
        ("5.4.5", "", False),
        ("5.7.1", "", False),
        ("4.1.1", "", False),
        ("2.1.5", "", False),
        ("", "550 5.1.1 unknown", False),
    ],
)
def test_only_permanent_failures_of_the_address_are_hard_bounces(status: str, diagnostic: str, is_hard: bool) -> None:
    assert reports.is_hard_bounce(status, diagnostic) is is_hard


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        ("5.1.1", "550 5.7.1 no", "5.1.1"),
        ("5.0.0", "550 5.1.1 unknown", "5.1.1"),
        ("5.0.0", "450 4.2.2 full", "5.0.0"),
        ("5.0.0", "550 unknown", "5.0.0"),
        ("5.0.1", "550 5.1.1 unknown", "5.0.1"),
        ("", "550 5.1.1 unknown", "5.1.1"),
        ("", "550-unknown", "5.0.0"),
        ("", "450 later", "4.0.0"),
        ("", "unknown", ""),
    ],
)
def test_the_most_specific_status_counts(status: str, reply: str, expected: str) -> None:
    assert parse("POSTFIX", status=status, status_reply=reply).status == expected


def test_the_diagnostic_is_one_printable_line_of_limited_length() -> None:
    report = parse("POSTFIX", status_reply="550 5.1.1 no\x00such\x07user " + "x" * 2 * reports.MAX_DIAGNOSTIC_LENGTH)
    assert report.diagnostic.startswith("550 5.1.1 no such user xxx")
    assert len(report.diagnostic) == reports.MAX_DIAGNOSTIC_LENGTH


def test_at_most_ten_distinct_addresses_are_returned() -> None:
    listed = ", ".join(f"n{n}@example.org" for n in (0, 0, *range(20)))
    report = parse("POSTFIX", rcpt=listed)
    assert report.addresses == tuple(f"n{n}@example.org" for n in range(10))


@pytest.mark.parametrize("sender", ["Return-Path: <>", "Return-Path:", "From: MAILER-DAEMON@there.example"])
def test_a_plain_text_bounce_comes_from_a_mail_server(sender: str) -> None:
    text = "Hi. This is the qmail-send program.\n\n<ada@example.org>:\n550 5.1.1 unknown\n"
    headers = f"{sender}\nTo: {TO}\nSubject: failure notice\n"
    report = reports.parse_report(f"{headers}\n{text}".encode())
    assert (report.kind, report.status, report.addresses) == ("bounce", "5.1.1", ("ada@example.org",))
    assert (
        reports.parse_report(f"From: joe@example.net\nReturn-Path: <joe@example.net>\n\n{text}".encode()).kind
        == "other"
    )


def test_parts_are_searched_down_to_the_maximum_depth() -> None:
    def nested(depth: int) -> bytes:
        headers = f"From: x\nTo: {TO}\n"
        for n in range(depth):
            headers += f'Content-Type: multipart/mixed; boundary="b{n}"\n\n--b{n}\n'
        report = "Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nAction: failed\nStatus: 5.1.1\n"
        return (headers + report).encode()

    kinds = [reports.parse_report(nested(reports.MAX_MIME_DEPTH + n)).kind for n in (0, 1)]
    assert kinds == ["bounce", "other"]


DELAYED = "Final-Recipient: rfc822; a@example.org\nAction: delayed\nStatus: 4.4.1\nDiagnostic-Code: smtp; 450 later\n"
REFUSED = "Final-Recipient: rfc822; b@example.org\nAction: failed\nStatus: 5.7.1\nDiagnostic-Code: 550 spam\n"
UNKNOWN = "Final-Recipient: rfc822; c@example.org\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 none\n"
RELAYED = "Final-Recipient: rfc822; d@example.org\nAction: relayed\nStatus: 2.0.0\n"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([DELAYED, UNKNOWN, REFUSED], BounceReport("bounce", "5.1.1", "550 none", ("c@example.org",), (TO,))),
        ([REFUSED, DELAYED], BounceReport("soft", "5.7.1", "550 spam", ("b@example.org",), (TO,))),
        ([RELAYED, DELAYED, REFUSED], BounceReport("soft", "4.4.1", "450 later", ("a@example.org",), (TO,))),
        ([RELAYED], BounceReport("other", tokens=(TO,))),
    ],
)
def test_the_first_hard_bounce_of_several_recipients_counts(groups: list[str], expected: BounceReport) -> None:
    headers = f"From: x\nTo: {TO}\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\n"
    assert reports.parse_report((headers + "\n".join(groups)).encode()) == expected


def test_at_most_fifty_tokens_are_returned_those_of_the_recipient_first() -> None:
    quoted = "".join(f"http://x/u/1.{n}.abcdefghijklmnopqrst=\nuv\n" for n in range(60))
    report = parse("POSTFIX", unsubscribe_url="x", status_reply=f"550 5.1.1\n\n{VALUES['id']}\n{quoted}")
    assert len(report.tokens) == 50
    assert report.tokens[:3] == (TO, VALUES["id"], "/u/1.0.abcdefghijklmnopqrstuv")


def test_a_plain_text_bounce_has_the_first_line_with_a_status() -> None:
    text = (
        "Hi. This is the qmail-send program.\nI'm afraid.\n\n<ada@example.org>:\nSorry, 450 4.2.2 mailbox full.\n"
        "550 5.1.1 later line\n\n--- Below this line is a copy of the message.\n\n550 5.1.2 quoted\n"
    )
    report = reports.parse_report(f"Return-Path: <>\nTo: {TO}\n\n{text}".encode())
    assert report == BounceReport("soft", "4.2.2", "Sorry, 450 4.2.2 mailbox full.", ("ada@example.org",), (TO,))


def test_a_failed_recipient_is_named_by_its_header() -> None:
    headers = f"X-Failed-Recipients: eve@example.org\nFrom: joe@example.net\nTo: {TO}\n"
    report = reports.parse_report(f"{headers}\n<ada@example.org>\n550-unknown\n".encode())
    assert report == BounceReport("bounce", "5.0.0", "550-unknown", ("eve@example.org",), (TO,))
    report = reports.parse_report(f"{headers}\nIt failed.\n".encode())
    assert report == BounceReport("soft", "", "", ("eve@example.org",), (TO,))


@pytest.mark.parametrize(
    "header",
    ["Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "X-Delivered-To", "To", "X-Forwarded-To"],
)
def test_a_mailbox_names_the_recipient_of_a_message_in_one_of_several_headers(header: str) -> None:
    headers = f"From: ada@example.org\nSubject: \t UNSUBSCRIBE \n{header}: <{TO}>\n"
    assert reports.parse_report(f"{headers}\n".encode()) == BounceReport("unsubscribe", tokens=(TO,))


@pytest.mark.parametrize("subject", ["Re: unsubscribe", "unsubscribe me", ""])
def test_only_the_subject_of_the_link_unsubscribes(subject: str) -> None:
    assert reports.parse_report(f"From: ada@example.org\nSubject: {subject}\nTo: {TO}\n\n".encode()).kind == "other"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_token_is_found_across_a_soft_line_break(line_end: str) -> None:
    message = "From: x\nTo: y\n\nhttps://example.com/u/1.2.abcdefghij=\nklmnopqrstuv\n".replace("\n", line_end)
    assert reports.parse_report(message.encode()).tokens == ("/u/1.2.abcdefghijklmnopqrstuv",)


def test_a_report_in_utf_8_is_parsed() -> None:
    """RFC 6533."""
    group = "Final-Recipient: utf-8; adà@example.org\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 né\n"
    headers = f"From: x\nTo: {TO}\nContent-Type: message/global-delivery-status\n\nReporting-MTA: dns; x\n\n"
    for groups in ([group], [DELAYED, group]):
        report = reports.parse_report((headers + "\n".join(groups)).encode())
        assert report == BounceReport("bounce", "5.1.1", "550 né", ("adà@example.org",), (TO,))


def test_a_report_is_about_the_original_and_the_final_recipient() -> None:
    group = UNKNOWN + "Original-Recipient: rfc822; <ada@example.org>\n"
    headers = f"From: x\nTo: {TO}\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\n"
    assert reports.parse_report((headers + group).encode()).addresses == ("ada@example.org", "c@example.org")


@pytest.mark.parametrize(
    "diagnostic",
    [
        "SPAM", "Blocked", "blacklisted", "black list", "deny list", "policy", "Reputation", "over quota",
        "mailbox full", "overlimit", "over limit", "too large", "too big", "too many", "size", "virus", "content",
        "DMARC", "SPF", "DKIM", "rate limited", "temporarily", "try again", "rejected by our filter",
        "rejected by filter",
    ],
)  # fmt: skip
def test_a_general_failure_with_another_reason_is_no_hard_bounce(diagnostic: str) -> None:
    assert not reports.is_hard_bounce("5.0.0", f"550 {diagnostic} here")
