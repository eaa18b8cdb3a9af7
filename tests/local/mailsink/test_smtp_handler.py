"""Taking mail over real SMTP: whole, or refused for now."""

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


def test_a_mail_is_a_file_with_the_bytes_that_were_sent(relay: smtplib.SMTP, folder: Path) -> None:
    send(relay)
    assert [file.read_bytes() for file in folder.iterdir()] == [MAIL]


def test_a_folder_deleted_by_hand_is_made_again(relay: smtplib.SMTP, folder: Path) -> None:
    folder.rmdir()
    send(relay)
    assert len(list(folder.glob("*.eml"))) == 1


def test_a_mail_that_cannot_be_written_is_to_be_sent_again_later(relay: smtplib.SMTP, folder: Path) -> None:
    folder.rmdir()
    folder.write_text("a file where the folder was")
    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(relay)
    assert refused.value.smtp_code == 452


def test_there_is_no_sink_where_a_relay_is_set(app: Flask, with_settings: Callable[..., object]) -> None:
    with_settings(uses_mail_sink=False)
    result = app.test_cli_runner().invoke(args=["mail-sink"])
    assert result.exit_code != 0
    assert "onecode: MAIL_SERVER is set" in str(result.exception) + result.output
