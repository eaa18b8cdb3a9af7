"""A connection to the mail relay, driven command by command. Based on Flask-Mail.

Differences from Flask-Mail 0.10:

- Flask-Mail sends nothing under TESTING; here an email is sent, or the outcome contains the reason.
- Its sockets have no timeout and it does not verify certificates; here every step has a timeout and TLS is verified.
- Its `sendmail` raises the same error before and after the body; here the outcome shows whether the email can have
  arrived.
- Its `quit()` and MAIL_MAX_EMAILS can raise after the relay has accepted an email; here nothing can fail after that.
- It converts addresses with IDNA 2003, which turns `faß.de` into the different domain `fass.de`, and raises for a
  non-ASCII local part; here the normalised address of the customer is sent unchanged.
- It encodes long headers (RFC 2047) or lets line breaks through, and its Message-ID contains the host name; here the
  message is passed as finished bytes.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast

import flask_mail
from flask import current_app
from flask_babel import gettext as _

from webapp.mail import timeouts
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp_session import (
    PERMANENT_TLS_ERRORS,
    ImplicitTlsSmtpSession,
    SmtpSession,
    create_tls_context,
    send_ehlo,
    set_socket_timeout,
)

# The first digit of a positive reply to a command (RFC 5321, 4.2.1).
SUCCESS_REPLY_CLASS = {"MAIL": 2, "RCPT": 2, "DATA": 3}

OutcomeKind = Literal["accepted", "failed", "deferred", "connection_lost", "rejected", "uncertain", "aborted"]


@dataclass(frozen=True)
class SmtpOutcome:
    """The outcome of one delivery attempt.

    - accepted: the relay has accepted the email
    - failed: permanent failure for this recipient
    - deferred: temporary failure for this recipient
    - connection_lost: the connection broke before the body was complete, so nothing was delivered
    - rejected: the relay rejects this server or its sender, for every recipient
    - uncertain: the connection broke after the body
    - aborted: the caller aborted the attempt before the body

    `code` is the reply code, `text` the reply or an explanation by Onecode, and `stage` the step that did not succeed.
    """

    kind: OutcomeKind
    code: int | None = None
    text: str = ""
    stage: str = ""


class RelayUnavailable(Exception):
    """The relay cannot accept emails now; a retry may succeed.

    It cannot be reached, or closes the connection before an email was started.
    """


class RelayRejected(Exception):
    """The relay rejects this client: TLS, credentials or sender address.

    The settings need to be changed.
    """


class RelayConnection(flask_mail.Connection):
    """A connection to the relay, reused for many emails. Not thread-safe."""

    host: SmtpSession | None

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
        """Whether there is a connection; it may be broken."""
        return self.host is not None

    def open(self) -> None:
        """Connect and sign in, unless already connected.

        :raises RelayUnavailable: when the relay does not reply, or replies with a 4xx.
        :raises RelayRejected: when its certificate cannot be verified, the credentials are wrong, or it replies with a
            5xx.
        """
        if self.host is not None:
            return
        try:
            self.host = self.configure_host()
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            text = f"TLS: {getattr(error, 'verify_message', '') or reason}"
            is_permanent = isinstance(error, ssl.SSLCertVerificationError) or error.reason in PERMANENT_TLS_ERRORS
            raise (RelayRejected if is_permanent else RelayUnavailable)(text) from error
        except smtplib.SMTPNotSupportedError as error:
            raise RelayRejected(str(error)) from error
        except smtplib.SMTPResponseException as error:
            text = _describe_error(error)
            if error.smtp_code > 0:
                text = f"{error.smtp_code} {_normalise_reply_text(error.smtp_error)}"  # no translation
            raise (RelayRejected if error.smtp_code >= 500 else RelayUnavailable)(text) from error
        except (OSError, smtplib.SMTPException) as error:
            raise RelayUnavailable(_describe_error(error)) from error
        except ValueError as error:
            raise RelayRejected(_("the server name, the user name or the password has invalid characters")) from error

    def configure_host(self) -> SmtpSession:
        """Connect, start TLS as configured and sign in."""
        host = self._connect()
        try:
            host.set_deadline(timeouts.CONNECT_TIMEOUT)
            send_ehlo(host)
            if self.mail.use_tls:
                code, reply = host.starttls(context=create_tls_context())
                if code != 220:
                    raise smtplib.SMTPResponseException(code, reply)
                # Discard data received before TLS: an attacker may have injected it (CVE-2011-0411).
                host.buffer = b""
                send_ehlo(host)
            if self.mail.username and self.mail.password:
                host.login(self.mail.username, self.mail.password)
        except BaseException:
            host.close()
            raise
        return host

    def _connect(self) -> SmtpSession:
        session_class = ImplicitTlsSmtpSession if self.mail.use_ssl else SmtpSession
        host = session_class(self.mail.server, self.mail.port or 0)
        if host.sock is not None:
            # Disable Nagle's algorithm: the last segment of a body must not wait for an acknowledgement.
            host.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return host

    def send(self, message: flask_mail.Message, envelope_from: str | tuple[str, str] | None = None) -> None:
        """Send a message now or raise; overrides Flask-Mail's method.

        :raises RelayUnavailable: when the relay does not accept it now.
        :raises RelayRejected: when the relay rejects it permanently.
        """
        self.open()
        outcome = self.deliver(cast(OutgoingMessage, message))
        if outcome.kind in ("failed", "rejected"):
            raise RelayRejected(f"{outcome.code} {outcome.text}" if outcome.code else outcome.text)  # no translation
        if outcome.kind != "accepted":
            raise RelayUnavailable(f"{outcome.code} {outcome.text}" if outcome.code else outcome.text)  # no translation

    def deliver(
        self,
        message: OutgoingMessage,
        may_send: Callable[[], bool] = lambda: True,
        on_envelope_sent: Callable[[], object] = lambda: None,
    ) -> SmtpOutcome:
        """Deliver one message step by step.

        The connection is closed unless every reply is valid.

        :param may_send: called just before the body, the point of no return; False aborts the delivery.
        :param on_envelope_sent: called while the relay processes the envelope.
        """
        host = self.host
        if host is None:
            return SmtpOutcome("connection_lost", None, "not connected", "connect")
        if message.has_bad_headers():
            return SmtpOutcome("failed", None, _("the address has invalid characters"), "address")
        try:
            rejection = self._send_envelope(host, message, on_envelope_sent)
            if rejection is not None:
                return rejection
            if not may_send():
                self.close()
                return SmtpOutcome("aborted")
            return self._send_body(host, message)
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            return SmtpOutcome("connection_lost", None, _describe_error(error), "envelope")

    def _send_envelope(
        self, host: SmtpSession, message: OutgoingMessage, on_envelope_sent: Callable[[], object]
    ) -> SmtpOutcome | None:
        """Send MAIL, RCPT and DATA; None when the relay accepts all of them.

        With PIPELINING (RFC 2920) they are sent at once, which saves two of four round trips; each command still has
        its own reply.
        """
        options = "" if message.to.isascii() else " SMTPUTF8 BODY=8BITMIME"  # no translation
        if options and not host.has_extn("smtputf8"):
            return SmtpOutcome("failed", None, _("the relay does not accept non-ASCII addresses (SMTPUTF8)"), "address")
        mail_from, rcpt_to = f"MAIL FROM:<{message.sender}>{options}", f"RCPT TO:<{message.to}>"  # no translation
        commands = {"MAIL": mail_from, "RCPT": rcpt_to, "DATA": "DATA"}
        host.set_deadline(timeouts.REPLY_TIMEOUT)
        set_socket_timeout(host, timeouts.REPLY_TIMEOUT)
        groups = [tuple(commands)] if host.has_extn("pipelining") else [(verb,) for verb in commands]
        for verbs in groups:
            host.send("".join(f"{commands[verb]}\r\n" for verb in verbs).encode())
            if verbs[0] == "MAIL":
                on_envelope_sent()
            rejection = self._read_replies(host, verbs)
            if rejection is not None:
                return self._classify_rejection(host, *rejection)
        return None

    def _read_replies(self, host: SmtpSession, verbs: tuple[str, ...]) -> tuple[int, bytes, str] | None:
        """Read the replies to a group of commands.

        :returns: the first negative reply as (code, text, command), if any.
        """
        rejection: tuple[int, bytes, str] | None = None
        for verb in verbs:
            try:
                code, reply = host.getreply()
            except (OSError, smtplib.SMTPException):
                if rejection is None:
                    raise
                # A rejection received before the connection broke is still valid.
                self.close()
                return rejection
            is_positive = code // 100 == SUCCESS_REPLY_CLASS[verb]
            if rejection is None and not is_positive:
                rejection = code, reply, verb
            if rejection is not None and ((verb == "DATA" and is_positive) or code in (-1, 421)):
                # The relay expects a body that must not be sent, or has ended the session.
                self.close()
                return rejection
        return rejection

    def _send_body(self, host: SmtpSession, message: OutgoingMessage) -> SmtpOutcome:
        if host.sock is None:
            raise smtplib.SMTPServerDisconnected("the connection is closed")
        body = _dot_stuff(message.raw)
        set_socket_timeout(host, timeouts.BODY_TIMEOUT)
        # After an error here the final dot has not been sent, so the relay must discard the message.
        host.sock.sendall(body)
        host.set_deadline(timeouts.REPLY_TIMEOUT)
        try:
            code, reply = host.getreply()
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            text = _("no reply after the email was sent: %(error)s", error=_describe_error(error))
            return SmtpOutcome("uncertain", None, text, "body")
        if 200 <= code < 300:
            return SmtpOutcome("accepted", code, _normalise_reply_text(reply))
        if not 400 <= code < 600:
            self.close()
            return SmtpOutcome("uncertain", None, _("invalid reply after the email was sent"), "body")
        return self._classify_rejection(host, code, reply, "body")

    def _classify_rejection(self, host: SmtpSession, code: int, reply: bytes, stage: str) -> SmtpOutcome:
        text = _normalise_reply_text(reply)
        if code == 421 or (stage == "MAIL" and 400 <= code < 500):
            self.close()
            return SmtpOutcome("connection_lost", code, text, stage)
        if not 400 <= code < 600:
            self.close()
            return SmtpOutcome("connection_lost", None, text or _("invalid reply"), stage)
        self._reset(host)
        if stage == "MAIL":
            return SmtpOutcome("rejected", code, text, stage)
        return SmtpOutcome("failed" if code >= 500 else "deferred", code, text, stage)

    def _reset(self, host: SmtpSession) -> None:
        """Reset the session for the next email; close the connection if that fails."""
        if self.host is None:
            return
        host.set_deadline(timeouts.RESET_TIMEOUT)
        try:
            if host.docmd("RSET")[0] != 250:
                self.close()
        except (OSError, smtplib.SMTPException):
            self.close()

    def close(self) -> None:
        """Close the connection immediately, without QUIT."""
        host, self.host = self.host, None
        if host is not None:
            host.close()

    def quit(self) -> None:
        """Send QUIT and close. Never raises, because accepted emails stay accepted."""
        host, self.host = self.host, None
        if host is None:
            return
        try:
            host.set_deadline(2)
            set_socket_timeout(host, 2)
            host.quit()
        except (OSError, smtplib.SMTPException):
            host.close()


def create_relay_connection() -> RelayConnection:
    """Create a connection to the configured relay without opening it."""
    return RelayConnection(current_app.extensions["mail"])


def _dot_stuff(raw: bytes) -> bytes:
    """Apply dot-stuffing and add the final dot (RFC 5321, 4.5.2)."""
    raw = (b"." + raw if raw.startswith(b".") else raw).replace(b"\n.", b"\n..")
    return raw + (b".\r\n" if raw.endswith(b"\r\n") else b"\r\n.\r\n")


def _normalise_reply_text(reply: bytes | str) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    return " ".join(text.replace("\0", "").split())[:500]


def _describe_error(error: Exception) -> str:
    text = _normalise_reply_text(str(error))
    if isinstance(error, TimeoutError) or text.endswith("timed out"):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code < 0:
        return f"invalid reply: {_normalise_reply_text(error.smtp_error)}"
    return text or type(error).__name__
