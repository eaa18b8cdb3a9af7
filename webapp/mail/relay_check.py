"""Whether the mail relay takes mail from us: everything up to the moment in which a mail would begin."""

from __future__ import annotations

import smtplib
import socket
from dataclasses import dataclass

from flask import current_app

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import addresses, smtp
from webapp.mail.smtp import RelayRejected, RelayUnavailable


@dataclass(frozen=True)
class RelayCheckResult:
    """How the check went: one sentence, and what to do about it."""

    is_ok: bool
    message: str
    hint: str = ""


def check_relay_connection() -> RelayCheckResult:
    """Connect, encrypt, sign in and name our sender, as a mailing does, then hang up."""
    settings: Settings = current_app.config["SETTINGS"]
    place = f"{settings.mail_server}, port {settings.mail_port}"
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    if settings.mail_username and not settings.mail_password:
        return RelayCheckResult(
            False, "There is a user name for the relay and no password.", "Set MAIL_PASSWORD as well."
        )
    try:
        with smtp.create_relay_connection() as relay:
            relay.open()
            return _check_sender(relay, settings, place)
    except RelayRejected as error:
        return _explain_refusal(str(error), settings, place)
    except RelayUnavailable as error:
        return _explain_connection_failure(error, place)


def _check_sender(relay: smtp.RelayConnection, settings: Settings, place: str) -> RelayCheckResult:
    host, sender = relay.host, addresses.sender_address(settings.mail_default_sender)
    try:
        code, words = host.mail(sender) if host is not None else (0, b"")
    except (OSError, smtplib.SMTPException) as error:
        return RelayCheckResult(False, f"{place} broke off the conversation: {error}.", "Try again in a moment.")
    if code != 250:
        said = f"{code} {words.decode('utf-8', 'replace')}"
        return RelayCheckResult(
            False,
            f"{place} will not have mail from {sender}; it says: {said}",
            "Set MAIL_DEFAULT_SENDER to an address the relay knows, or tell whoever runs it about this one.",
        )
    return RelayCheckResult(
        True,
        f"{place} takes our mail{_describe_security(settings)}. The sender is {sender}.",
        _suggest_improvement(settings),
    )


def _describe_security(settings: Settings) -> str:
    how = []
    if settings.mail_use_tls or settings.mail_use_ssl:
        how.append("encrypted, with a certificate that is right")
    if settings.mail_username:
        how.append(f"signed in as {settings.mail_username}")
    return f" ({'; '.join(how)})" if how else ""


def _suggest_improvement(settings: Settings) -> str:
    if settings.uses_mail_sink:
        return "It is the built-in one, which only keeps mails to look at: set MAIL_SERVER before you mail customers."
    encrypted = settings.mail_use_tls or settings.mail_use_ssl
    if encrypted or _is_local_host(settings.mail_server):
        return ""
    what = "Mails and the password go" if settings.mail_username else "Mails go"
    return f"{what} there unencrypted: set MAIL_USE_TLS=true, or MAIL_USE_SSL=true where the relay wants that."


def _explain_refusal(said: str, settings: Settings, place: str) -> RelayCheckResult:
    if said.startswith("TLS:"):
        words = said.removeprefix("TLS:").strip()
        if "wrong version number" in words.lower() or "record layer" in words.lower():
            return RelayCheckResult(
                False,
                f"{place} does not begin with encryption.",
                "Set MAIL_USE_TLS=true instead of MAIL_USE_SSL, or use the port for TLS, often 465.",
            )
        return RelayCheckResult(
            False,
            f"The certificate of {place} can't be trusted: {words}.",
            "MAIL_SERVER must be the name that stands in the certificate, and it must not have run out.",
        )
    if "STARTTLS" in said:
        return RelayCheckResult(
            False, f"{place} offers no encryption (STARTTLS).", "Use another port, often 587, or MAIL_USE_SSL with 465."
        )
    if "AUTH" in said or said.startswith(("530", "534", "535", "538")):
        return RelayCheckResult(
            False,
            f"{place} does not let us sign in as {settings.mail_username or 'nobody'}; it says: {said}",
            "Check MAIL_USERNAME and MAIL_PASSWORD; some relays want a password made for programs.",
        )
    return RelayCheckResult(
        False, f"{place} refuses us; it says: {said}", "Ask whoever runs the relay to let this machine send."
    )


def _explain_connection_failure(error: RelayUnavailable, place: str) -> RelayCheckResult:
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return RelayCheckResult(
            False, f"There is no machine of this name: {place}.", "Check MAIL_SERVER for typing errors."
        )
    if isinstance(cause, ConnectionRefusedError):
        return RelayCheckResult(
            False, f"Nobody answers at {place}.", "Check MAIL_SERVER and MAIL_PORT, and that the relay is running."
        )
    if isinstance(cause, TimeoutError):
        return RelayCheckResult(
            False,
            f"{place} did not answer in time.",
            "A firewall may be in between, or the port is the wrong one: 25, 587 and 465 are usual.",
        )
    if str(error)[:3].isdigit():
        return RelayCheckResult(False, f"{place} takes no mails just now; it says: {error}", "Try again in a moment.")
    return RelayCheckResult(
        False, f"{place} can't be used just now: {error}.", "Try again in a moment; check MAIL_PORT."
    )


def _is_local_host(server: str) -> bool:
    return server in ("localhost", "::1") or server.startswith("127.")
