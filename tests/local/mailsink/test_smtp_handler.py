"""Receiving email over real SMTP: stored completely or refused temporarily."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from flask import Flask

from local.mailsink.smtp_handler import SinkHandler
from tests.support.ports import free_port

MAIL = b"To: ada@example.com\r\nSubject: Hello\r\n\r\n.a dot first\r\n"


@pytest.fixture
def relay(folder: Path) -> Iterator[smtplib.SMTP]:
    controller = Controller(SinkHandler(folder), hostname="127.0.0.1", port=free_port(), enable_SMTPUTF8=True)
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port) as client:
            yield client
    finally:
        controller.stop()


def send(relay: smtplib.SMTP) -> None:
    relay.sendmail("shop@example.com", ["ada@example.com"], MAIL)


def test_an_email_is_stored_as_the_bytes_that_were_sent(relay: smtplib.SMTP, folder: Path) -> None:
    send(relay)
    assert [file.read_bytes() for file in folder.iterdir()] == [MAIL]


def test_a_deleted_folder_is_created_again(relay: smtplib.SMTP, folder: Path) -> None:
    folder.rmdir()
    send(relay)
    assert len(list(folder.glob("*.eml"))) == 1


def test_an_email_that_cannot_be_stored_is_refused_temporarily(relay: smtplib.SMTP, folder: Path) -> None:
    folder.rmdir()
    folder.write_text("a file instead of the folder")
    with pytest.raises(smtplib.SMTPDataError) as raised:
        send(relay)
    assert raised.value.smtp_code == 452


def test_there_is_no_sink_when_a_relay_is_configured(app: Flask, with_settings: Callable[..., object]) -> None:
    with_settings(uses_mail_sink=False)
    result = app.test_cli_runner().invoke(args=["mail-sink"])
    assert result.exit_code != 0
    assert "onecode: MAIL_SERVER is set" in str(result.exception) + result.output
