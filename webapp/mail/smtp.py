"""Flask-Mail without its traps: one connection to the relay, driven command by command.

What Flask-Mail 0.10 does by itself and this file does otherwise:

- under TESTING it sends nothing; here a mail is sent or an outcome says why not;
- sockets wait for ever and certificates are not looked at; here every step has a limit and TLS is verified;
- `sendmail` raises the same error before and after the body; here the outcome tells whether the mail can have arrived;
- `quit()` and MAIL_MAX_EMAILS can raise after the relay has taken a mail; here nothing after that moment is a failure;
- addresses go through IDNA 2003, which turns `faß.de` into somebody else's `fass.de`, and a non-ASCII local part
  raises; here the address is sent as it stands, which is the customer's normalised one;
- long headers are encoded (RFC 2047) or pass with line breaks in them, and the Message-ID names this host; here the
  message comes finished, as bytes.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast

import flask_mail
from flask import current_app

from webapp.mail import timeouts

# The first digit of the answers by which a command is taken (RFC 5321, 4.2.1).
SUCCESS_REPLY_CLASS = {"MAIL": 2, "RCPT": 2, "DATA": 3}

# In bytes; an answer is a line or a few.
MAX_REPLY_BYTES = 64 * 1024
# Reasons of OpenSSL for which trying again is no use: the two sides have no way to encrypt in common.
PERMANENT_TLS_ERRORS = (
    "WRONG_VERSION_NUMBER",
    "UNSUPPORTED_PROTOCOL",
    "NO_PROTOCOLS_AVAILABLE",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
)

OutcomeKind = Literal["accepted", "failed", "deferred", "trouble", "refused", "uncertain", "stopped"]


@dataclass(frozen=True)
class SmtpOutcome:
    """What became of one attempt.

    accepted: the relay has it · failed: never for this recipient · deferred: later for this recipient ·
    trouble: the connection broke before the body was complete, so nothing arrived · refused: the relay will have
    nothing from us · uncertain: the connection broke after the body · stopped: the caller called it off in time.
    """

    kind: OutcomeKind
    code: int | None = None
    text: str = ""
    stage: str = ""


class RelayUnavailable(Exception):
    """The relay can't be reached, or breaks off before a mail was begun. Try later."""


class RelayRejected(Exception):
    """The relay refuses us: TLS, the user name and password, or a sender it will not have. Somebody must act."""


class OutgoingMessage(flask_mail.Message):
    """A message that is finished: the bytes for one recipient, with the addresses of its envelope."""

    def __init__(self, sender: str, to: str, raw: bytes) -> None:
        # Not Flask-Mail's own: that would look this host's name up for a Message-ID that nobody sees.
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


class _SmtpSession(smtplib.SMTP):
    """smtplib's side of a conversation, with an end to it: all that is heard until `deadline` (of `time.monotonic`)
    counts, however slowly it comes, and only so much of it."""

    def __init__(self, server: str, port: int) -> None:
        self.deadline = time.monotonic() + timeouts.CONNECT_TIMEOUT
        self.buffer = b""
        super().__init__(server, port, timeout=timeouts.CONNECT_TIMEOUT)

    def set_deadline(self, seconds: float) -> None:
        """What is heard from now on has to come within so many seconds."""
        self.deadline = time.monotonic() + seconds

    def getreply(self) -> tuple[int, bytes]:
        """(code, words) of the next answer, all its lines; code -1 for nonsense (RFC 5321, 4.2)."""
        lines, size = [], 0
        while True:
            line = self._read_line()
            size += len(line)
            if size > MAX_REPLY_BYTES:
                self.close()
                raise smtplib.SMTPServerDisconnected("its answer has no end")
            if not line[:3].isdigit():
                return -1, line.strip()
            lines.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(lines)

    def _read_line(self) -> bytes:
        while b"\n" not in self.buffer:
            if self.sock is None or len(self.buffer) > MAX_REPLY_BYTES:
                self.close()
                raise smtplib.SMTPServerDisconnected("its answer has no end" if self.buffer else "not connected")
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self.sock.settimeout(left)
            heard = self.sock.recv(8192)
            if not heard:
                self.close()
                raise smtplib.SMTPServerDisconnected("it closed the connection")
            self.buffer += heard
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line


class _ImplicitTlsSmtpSession(_SmtpSession, smtplib.SMTP_SSL):
    """The same, encrypted from the first byte."""

    def __init__(self, server: str, port: int) -> None:
        self.deadline = time.monotonic() + timeouts.CONNECT_TIMEOUT
        self.buffer = b""
        smtplib.SMTP_SSL.__init__(self, server, port, timeout=timeouts.CONNECT_TIMEOUT, context=_create_tls_context())


class RelayConnection(flask_mail.Connection):
    """One connection to the relay, reused for many mails. Not for two threads at once."""

    host: _SmtpSession | None

    def __enter__(self) -> RelayConnection:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.quit()

    @property
    def is_open(self) -> bool:
        return self.host is not None

    def open(self) -> None:
        """Connect and sign in, unless that is done already.

        :raises RelayDown: when nobody answers, or only with a 4xx.
        :raises RelayRefuses: when TLS can't be trusted, the password is wrong, or the greeting is a 5xx.
        """
        if self.host is not None:
            return
        try:
            self.host = self.configure_host()
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            words = f"TLS: {getattr(error, 'verify_message', '') or reason}"
            for_good = isinstance(error, ssl.SSLCertVerificationError) or error.reason in PERMANENT_TLS_ERRORS
            raise (RelayRejected if for_good else RelayUnavailable)(words) from error
        except smtplib.SMTPNotSupportedError as error:
            raise RelayRejected(str(error)) from error
        except smtplib.SMTPResponseException as error:
            words = (
                f"{error.smtp_code} {_normalise_reply_text(error.smtp_error)}"
                if error.smtp_code > 0
                else _describe_error(error)
            )
            raise (RelayRejected if error.smtp_code >= 500 else RelayUnavailable)(words) from error
        except (OSError, smtplib.SMTPException) as error:
            raise RelayUnavailable(_describe_error(error)) from error
        except ValueError as error:
            raise RelayRejected("the server's name, the user name or the password can't be sent as it is") from error

    def configure_host(self) -> _SmtpSession:
        """A connection that is greeted, encrypted as configured and signed in."""
        host = self._connect()
        try:
            host.set_deadline(timeouts.CONNECT_TIMEOUT)
            _send_ehlo(host)
            if self.mail.use_tls:
                code, words = host.starttls(context=_create_tls_context())
                if code != 220:
                    raise smtplib.SMTPResponseException(code, words)
                # What came before is not of this conversation: it may be anybody's (CVE-2011-0411).
                host.buffer = b""
                _send_ehlo(host)
            if self.mail.username and self.mail.password:
                host.login(self.mail.username, self.mail.password)
        except BaseException:
            host.close()
            raise
        return host

    def _connect(self) -> _SmtpSession:
        talk = _ImplicitTlsSmtpSession if self.mail.use_ssl else _SmtpSession
        host = talk(self.mail.server, self.mail.port or 0)
        if host.sock is not None:
            # A body's last piece must not wait until the relay has confirmed the piece before.
            host.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return host

    def send(self, message: flask_mail.Message, envelope_from: str | tuple[str, str] | None = None) -> None:
        """Flask-Mail's way in, for a letter that must go out now or not at all.

        :raises RelayDown: when the relay does not take it now.
        :raises RelayRefuses: when it never will.
        """
        self.open()
        outcome = self.deliver(cast(OutgoingMessage, message))
        if outcome.kind in ("failed", "refused"):
            raise RelayRejected(f"{outcome.code} {outcome.text}" if outcome.code else outcome.text)
        if outcome.kind != "accepted":
            raise RelayUnavailable(f"{outcome.code} {outcome.text}" if outcome.code else outcome.text)

    def deliver(
        self,
        letter: OutgoingMessage,
        may_send: Callable[[], bool] = lambda: True,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> SmtpOutcome:
        """Hand one letter over, step by step. After anything but a plain answer the connection is closed.

        :param may_send: asked right before the body, the point of no return; False calls the mail off.
        :param meanwhile: done while the relay reads the envelope.
        """
        host = self.host
        if host is None:
            return SmtpOutcome("trouble", None, "not connected", "connect")
        if letter.has_bad_headers():
            return SmtpOutcome("failed", None, "this can't be written as an address", "address")
        try:
            refusal = self._send_envelope(host, letter, meanwhile)
            if refusal is not None:
                return refusal
            if not may_send():
                self.close()
                return SmtpOutcome("stopped")
            return self._send_body(host, letter)
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            return SmtpOutcome("trouble", None, _describe_error(error), "before the body")

    def _send_envelope(
        self, host: _SmtpSession, letter: OutgoingMessage, meanwhile: Callable[[], object]
    ) -> SmtpOutcome | None:
        """MAIL, RCPT and DATA; None when all were taken. At once where the relay reads ahead (RFC 2920), which saves
        two of four round trips; every command has its own answer all the same."""
        options = "" if letter.to.isascii() else " SMTPUTF8 BODY=8BITMIME"
        if options and not host.has_extn("smtputf8"):
            return SmtpOutcome("failed", None, "the relay takes no addresses with such letters (SMTPUTF8)", "address")
        commands = {"MAIL": f"MAIL FROM:<{letter.sender}>{options}", "RCPT": f"RCPT TO:<{letter.to}>", "DATA": "DATA"}
        host.set_deadline(timeouts.REPLY_TIMEOUT)
        _set_socket_timeout(host, timeouts.REPLY_TIMEOUT)
        groups = [tuple(commands)] if host.has_extn("pipelining") else [(verb,) for verb in commands]
        for group in groups:
            host.send("".join(f"{commands[verb]}\r\n" for verb in group).encode())
            if group[0] == "MAIL":
                meanwhile()
            refused = self._read_replies(host, group)
            if refused is not None:
                return self._classify_refusal(host, *refused)
        return None

    def _read_replies(self, host: _SmtpSession, group: tuple[str, ...]) -> tuple[int, bytes, str] | None:
        """The first refusal among the answers to a group of commands, all of them read; None when there is none."""
        refused: tuple[int, bytes, str] | None = None
        for verb in group:
            try:
                code, words = host.getreply()
            except (OSError, smtplib.SMTPException):
                if refused is None:
                    raise
                # What was answered before the connection broke stays true.
                self.close()
                return refused
            taken = code // 100 == SUCCESS_REPLY_CLASS[verb]
            if refused is None and not taken:
                refused = code, words, verb
            if refused is not None and ((verb == "DATA" and taken) or code in (-1, 421)):
                # It waits for a body that nobody may get, or for nothing any more.
                self.close()
                return refused
        return refused

    def _send_body(self, host: _SmtpSession, letter: OutgoingMessage) -> SmtpOutcome:
        if host.sock is None:
            raise smtplib.SMTPServerDisconnected("the connection is closed")
        body = _dot_stuff(letter.raw)
        _set_socket_timeout(host, timeouts.BODY_TIMEOUT)
        # An error in here leaves the closing dot unsent, so the relay has to forget the mail.
        host.sock.sendall(body)
        host.set_deadline(timeouts.REPLY_TIMEOUT)
        try:
            code, words = host.getreply()
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            return SmtpOutcome(
                "uncertain", None, f"no answer after the mail was handed over: {_describe_error(error)}", "body"
            )
        if 200 <= code < 300:
            flask_mail.email_dispatched.send(current_app, message=letter)
            return SmtpOutcome("accepted", code, _normalise_reply_text(words))
        if not 400 <= code < 600:
            self.close()
            return SmtpOutcome("uncertain", None, "the answer after the mail was handed over makes no sense", "body")
        return self._classify_refusal(host, code, words, "body")

    def _classify_refusal(self, host: _SmtpSession, code: int, words: bytes, at: str) -> SmtpOutcome:
        text = _normalise_reply_text(words)
        if code == 421 or (at == "MAIL" and 400 <= code < 500):
            self.close()
            return SmtpOutcome("trouble", code, text, at)
        if not 400 <= code < 600:
            self.close()
            return SmtpOutcome("trouble", None, text or "the answer makes no sense", at)
        self._reset(host)
        if at == "MAIL":
            return SmtpOutcome("refused", code, text, at)
        return SmtpOutcome("failed" if code >= 500 else "deferred", code, text, at)

    def _reset(self, host: _SmtpSession) -> None:
        """Ready for the next mail; a connection that will not be is dropped, and the outcome stays what it was."""
        if self.host is None:
            return
        host.set_deadline(timeouts.RESET_TIMEOUT)
        try:
            if host.docmd("RSET")[0] != 250:
                self.close()
        except (OSError, smtplib.SMTPException):
            self.close()

    def close(self) -> None:
        """Close the connection at once, in the middle of whatever it is."""
        host, self.host = self.host, None
        if host is not None:
            host.close()

    def quit(self) -> None:
        """Take leave and close the connection. Never raises: whatever was accepted stays accepted."""
        host, self.host = self.host, None
        if host is None:
            return
        try:
            host.set_deadline(2)
            _set_socket_timeout(host, 2)
            host.quit()
        except (OSError, smtplib.SMTPException):
            host.close()


def create_relay_connection() -> RelayConnection:
    """A connection to the configured relay, not yet opened."""
    return RelayConnection(current_app.extensions["mail"])


def _send_ehlo(host: _SmtpSession) -> None:
    """EHLO, or HELO for a relay that does not know it; a relay that has no time now is not asked a second way."""
    code, words = host.ehlo()
    if 500 <= code < 600:
        code, words = host.helo()
    if code // 100 != 2:
        raise smtplib.SMTPHeloError(code, words)


def _create_tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _set_socket_timeout(host: _SmtpSession, seconds: float) -> None:
    if host.sock is not None:
        host.sock.settimeout(seconds)


def _dot_stuff(raw: bytes) -> bytes:
    """The body as RFC 5321 wants it on the wire: leading dots doubled, a lone dot at the end."""
    raw = (b"." + raw if raw.startswith(b".") else raw).replace(b"\n.", b"\n..")
    return raw + (b".\r\n" if raw.endswith(b"\r\n") else b"\r\n.\r\n")


def _has_forbidden_characters(value: str) -> bool:
    return any(c in value for c in "\r\n\0<> ")


def _normalise_reply_text(given: bytes | str) -> str:
    text = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
    return " ".join(text.replace("\0", "").split())[:500]


def _describe_error(error: Exception) -> str:
    words = _normalise_reply_text(str(error))
    if isinstance(error, TimeoutError) or words.endswith("timed out"):
        return "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code < 0:
        return f"its answer makes no sense: {_normalise_reply_text(error.smtp_error)}"
    return words or type(error).__name__
