"""Text at which a careless pattern would work for minutes or hours is read like any other."""

from __future__ import annotations

import io

import pytest

from webapp.campaigns.bounces import mailbox
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.core.errors import InvalidInput

SIZE = 500_000


def _report(field: str) -> bytes:
    return (
        "From: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; boundary=b\r\n\r\n"
        f"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x\r\n\r\n{field}\r\n"
        "Action: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
    ).encode()


@pytest.mark.parametrize("run", ["a", "a.", "+", "/u/"])
def test_a_report_about_a_name_without_end_is_read(run: str) -> None:
    read = bounce_reports.parse_report(_report("Final-Recipient: rfc822; " + run * (SIZE // len(run))))

    assert (read.kind, read.addresses) == ("bounce", ())


def test_the_address_at_the_beginning_of_an_endless_field_is_found() -> None:
    field = "Original-Recipient: rfc822; " + "a " * SIZE + "\r\nFinal-Recipient: rfc822; ada@example.com " + "a" * SIZE

    assert bounce_reports.parse_report(_report(field)).addresses == ("ada@example.com",)


def test_an_endless_line_of_a_mailbox_starts_a_mail_or_not() -> None:
    start = b"From ada Sat May  2 08:00:03 2026\nTo: x\n\n"
    odd = b"From " + b"0:00:00 " * 8_000 + b"\n"

    assert len(list(mailbox.iter_messages(io.BytesIO(start + (odd + b"\n") * 200 + start)))) == 2


@pytest.mark.parametrize("run", ["{{", "{{ a", '{{ x or "'])
def test_braces_without_end_are_refused(run: str) -> None:
    with pytest.raises(InvalidInput, match="is not closed"):
        validate_content(EmailContent(text=run * (250_000 // len(run))))


@pytest.mark.parametrize("run", ["<style", "<style>", "<style></style"])
def test_style_sheets_without_end_are_looked_through(run: str) -> None:
    with pytest.raises(InvalidInput):
        validate_content(EmailContent(html=run * (250_000 // len(run)) + "}}"))
