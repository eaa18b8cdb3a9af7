"""A rendered email with its envelope."""

from __future__ import annotations

import re
import time

import flask_mail


class OutgoingMessage(flask_mail.Message):
    """A finished message: the bytes for one recipient, with the envelope addresses."""

    def __init__(self, sender: str, to: str, raw: bytes) -> None:
        # Does not call Flask-Mail's constructor, which looks up the host name for an unused Message-ID.
        self.sender = sender
        self.recipients = [to]
        self.raw = raw
        self.to = to
        self.cc, self.bcc, self.reply_to = [], [], None
        self.mail_options, self.rcpt_options = [], []
        head = raw.partition(b"\r\n\r\n")[0]
        self.subject = (re.search(rb"^Subject: ([^\r]*)", head, re.MULTILINE) or [b"", b""])[1].decode("utf-8")
        self.date = time.time()

    def as_bytes(self) -> bytes:
        return self.raw

    def as_string(self) -> str:
        return self.raw.decode()

    def has_bad_headers(self) -> bool:
        return any(_has_forbidden_characters(address) for address in (str(self.sender), self.to))


def _has_forbidden_characters(value: str) -> bool:
    return any(character in value for character in "\r\n\0<> ")
