"""Whether the mail relay takes mail from us: everything up to the moment in which a mail would begin."""

from __future__ import annotations

import smtplib
import socket
from dataclasses import dataclass

from flask import current_app

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import addresses, smtp
from webapp.mail.smtp import RelayDown, RelayRefuses


@dataclass(frozen=True)
class Finding:
    """How the check went: one sentence, and what to do about it."""

    ok: bool
    sentence: str
    hint: str = ""


def check() -> Finding:
    """Connect, encrypt, sign in and name our sender, as a mailing does, then hang up."""
    settings: Settings = current_app.config["SETTINGS"]
    place = f"{settings.mail_server}, port {settings.mail_port}"
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    if settings.mail_username and not settings.mail_password:
        return Finding(False, "There is a user name for the relay and no password.", "Set MAIL_PASSWORD as well.")
    try:
        with smtp.relay() as relay:
            relay.open()
            return _sender(relay, settings, place)
    except RelayRefuses as error:
        return _refused(str(error), settings, place)
    except RelayDown as error:
        return _unreachable(error, place)


def _sender(relay: smtp.Relay, settings: Settings, place: str) -> Finding:
    host, sender = relay.host, addresses.sender(settings.mail_default_sender)
    try:
        code, words = host.mail(sender) if host is not None else (0, b"")
    except (OSError, smtplib.SMTPException) as error:
        return Finding(False, f"{place} broke off the conversation: {error}.", "Try again in a moment.")
    if code != 250:
        said = f"{code} {words.decode('utf-8', 'replace')}"
        return Finding(
            False,
            f"{place} will not have mail from {sender}; it says: {said}",
            "Set MAIL_DEFAULT_SENDER to an address the relay knows, or tell whoever runs it about this one.",
        )
    return Finding(True, f"{place} takes our mail{_how(settings)}. The sender is {sender}.", _warning(settings))


def _how(settings: Settings) -> str:
    how = []
    if settings.mail_use_tls or settings.mail_use_ssl:
        how.append("encrypted, with a certificate that is right")
    if settings.mail_username:
        how.append(f"signed in as {settings.mail_username}")
    return f" ({'; '.join(how)})" if how else ""


def _warning(settings: Settings) -> str:
    if settings.mail_is_sink:
        return "It is the built-in one, which only keeps mails to look at: set MAIL_SERVER before you mail customers."
    encrypted = settings.mail_use_tls or settings.mail_use_ssl
    if encrypted or _is_here(settings.mail_server):
        return ""
    what = "Mails and the password go" if settings.mail_username else "Mails go"
    return f"{what} there unencrypted: set MAIL_USE_TLS=true, or MAIL_USE_SSL=true where the relay wants that."


def _refused(said: str, settings: Settings, place: str) -> Finding:
    if said.startswith("TLS:"):
        words = said.removeprefix("TLS:").strip()
        if "wrong version number" in words.lower() or "record layer" in words.lower():
            return Finding(
                False,
                f"{place} does not begin with encryption.",
                "Set MAIL_USE_TLS=true instead of MAIL_USE_SSL, or use the port for TLS, often 465.",
            )
        return Finding(
            False,
            f"The certificate of {place} can't be trusted: {words}.",
            "MAIL_SERVER must be the name that stands in the certificate, and it must not have run out.",
        )
    if "STARTTLS" in said:
        return Finding(
            False, f"{place} offers no encryption (STARTTLS).", "Use another port, often 587, or MAIL_USE_SSL with 465."
        )
    if "AUTH" in said or said.startswith(("530", "534", "535", "538")):
        return Finding(
            False,
            f"{place} does not let us sign in as {settings.mail_username or 'nobody'}; it says: {said}",
            "Check MAIL_USERNAME and MAIL_PASSWORD; some relays want a password made for programs.",
        )
    return Finding(
        False, f"{place} refuses us; it says: {said}", "Ask whoever runs the relay to let this machine send."
    )


def _unreachable(error: RelayDown, place: str) -> Finding:
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return Finding(False, f"There is no machine of this name: {place}.", "Check MAIL_SERVER for typing errors.")
    if isinstance(cause, ConnectionRefusedError):
        return Finding(
            False, f"Nobody answers at {place}.", "Check MAIL_SERVER and MAIL_PORT, and that the relay is running."
        )
    if isinstance(cause, TimeoutError):
        return Finding(
            False,
            f"{place} did not answer in time.",
            "A firewall may be in between, or the port is the wrong one: 25, 587 and 465 are usual.",
        )
    if str(error)[:3].isdigit():
        return Finding(False, f"{place} takes no mails just now; it says: {error}", "Try again in a moment.")
    return Finding(False, f"{place} can't be used just now: {error}.", "Try again in a moment; check MAIL_PORT.")


def _is_here(server: str) -> bool:
    return server in ("localhost", "::1") or server.startswith("127.")
