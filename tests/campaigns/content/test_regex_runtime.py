"""Input for which careless regular expressions take minutes is parsed quickly."""

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


@pytest.mark.parametrize("unit", ["a", "a.", "+", "/u/"])
def test_a_report_with_a_very_long_address_is_parsed(unit: str) -> None:
    report = bounce_reports.parse_report(_report("Final-Recipient: rfc822; " + unit * (SIZE // len(unit))))

    assert (report.kind, report.addresses) == ("bounce", ())


def test_the_address_at_the_start_of_a_very_long_field_is_found() -> None:
    field = "Original-Recipient: rfc822; " + "a " * SIZE + "\r\nFinal-Recipient: rfc822; ada@example.com " + "a" * SIZE

    assert bounce_reports.parse_report(_report(field)).addresses == ("ada@example.com",)


def test_very_long_from_lines_of_a_mailbox_are_parsed() -> None:
    start = b"From ada Sat May  2 08:00:03 2026\nTo: x\n\n"
    long_line = b"From " + b"0:00:00 " * 8_000 + b"\n"

    assert len(list(mailbox.iter_messages(io.BytesIO(start + (long_line + b"\n") * 200 + start)))) == 2


@pytest.mark.parametrize("unit", ["{{", "{{ a", '{{ x or "'])
def test_many_unclosed_placeholders_are_rejected(unit: str) -> None:
    with pytest.raises(InvalidInput, match="is not closed"):
        validate_content(EmailContent(text=unit * (250_000 // len(unit))))


@pytest.mark.parametrize("unit", ["<style", "<style>", "<style></style"])
def test_many_unclosed_style_elements_are_rejected(unit: str) -> None:
    with pytest.raises(InvalidInput):
        validate_content(EmailContent(html=unit * (250_000 // len(unit)) + "}}"))
