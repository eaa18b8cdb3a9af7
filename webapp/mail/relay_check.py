"""Check the connection to the mail relay.

The check includes every SMTP step before an email would be sent.
"""

from __future__ import annotations

import smtplib
import socket
from dataclasses import dataclass

from flask import current_app
from flask_babel import gettext as _

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import addresses, smtp
from webapp.mail.smtp import RelayRejected, RelayUnavailable


@dataclass(frozen=True)
class RelayCheckResult:
    """The result of a check: a human-readable message, and a hint about what to do."""

    is_ok: bool
    message: str
    hint: str = ""


def check_relay_connection() -> RelayCheckResult:
    """Check the connection to the relay without sending an email.

    Connects, starts TLS, signs in and sends MAIL FROM as a campaign does, then disconnects.
    """
    settings: Settings = current_app.config["SETTINGS"]
    relay_name = _("%(server)s, port %(port)s", server=settings.mail_server, port=settings.mail_port)
    # Keep no transaction open while waiting for the relay.
    db.session.rollback()
    if settings.mail_username and not settings.mail_password:
        return RelayCheckResult(
            False, _("MAIL_USERNAME is set, but MAIL_PASSWORD is not."), _("Set MAIL_PASSWORD as well.")
        )
    try:
        with smtp.create_relay_connection() as relay:
            relay.open()
            return _check_sender(relay, settings, relay_name)
    except RelayRejected as error:
        return _explain_rejection(str(error), settings, relay_name)
    except RelayUnavailable as error:
        return _explain_connection_failure(error, relay_name)


def _check_sender(relay: smtp.RelayConnection, settings: Settings, relay_name: str) -> RelayCheckResult:
    host, sender = relay.host, addresses.sender_address(settings.mail_default_sender)
    try:
        code, text = host.mail(sender) if host is not None else (0, b"")
    except (OSError, smtplib.SMTPException) as error:
        return RelayCheckResult(
            False,
            _("%(relay)s closed the connection: %(error)s.", relay=relay_name, error=error),
            _("Try again in a moment."),
        )
    if code != 250:
        reply = f"{code} {text.decode('utf-8', 'replace')}"  # no translation
        return RelayCheckResult(
            False,
            _(
                "%(relay)s does not accept email from %(sender)s. Its reply: %(reply)s",
                relay=relay_name,
                sender=sender,
                reply=reply,
            ),
            _(
                "Set MAIL_DEFAULT_SENDER to an address that the relay accepts, or ask the provider of the relay to "
                "allow this address."
            ),
        )
    accepted = _("%(relay)s accepts email from %(sender)s.", relay=relay_name, sender=sender)
    return RelayCheckResult(True, " ".join((accepted, *_describe_security(settings))), _suggest_improvement(settings))


def _describe_security(settings: Settings) -> list[str]:
    sentences = []
    if settings.mail_use_tls or settings.mail_use_ssl:
        sentences.append(_("The connection is encrypted and the certificate is valid."))
    if settings.mail_username:
        sentences.append(_("Signed in as %(username)s.", username=settings.mail_username))
    return sentences


def _suggest_improvement(settings: Settings) -> str:
    if settings.uses_mail_sink:
        return str(
            _(
                "This is the built-in mail sink, which stores emails and does not send them. Set MAIL_SERVER before "
                "you email customers."
            )
        )
    is_encrypted = settings.mail_use_tls or settings.mail_use_ssl
    if is_encrypted or _is_local_host(settings.mail_server):
        return ""
    if settings.mail_username:
        return str(
            _(
                "Emails and the password are sent unencrypted. Set MAIL_USE_TLS=true, or MAIL_USE_SSL=true if the "
                "relay requires it."
            )
        )
    return str(_("Emails are sent unencrypted. Set MAIL_USE_TLS=true, or MAIL_USE_SSL=true if the relay requires it."))


def _explain_rejection(reply: str, settings: Settings, relay_name: str) -> RelayCheckResult:
    if reply.startswith("TLS:"):
        reason = reply.removeprefix("TLS:").strip()
        if "wrong version number" in reason.lower() or "record layer" in reason.lower():
            return RelayCheckResult(
                False,
                _("%(relay)s does not use TLS from the start.", relay=relay_name),
                _("Set MAIL_USE_TLS=true instead of MAIL_USE_SSL, or use the port for TLS, often 465."),
            )
        return RelayCheckResult(
            False,
            _("The certificate of %(relay)s can't be verified: %(reason)s.", relay=relay_name, reason=reason),
            _("MAIL_SERVER must be a name in the certificate, and the certificate must not have expired."),
        )
    if "STARTTLS" in reply:
        return RelayCheckResult(
            False,
            _("%(relay)s does not support encryption (STARTTLS).", relay=relay_name),
            _("Use another port, often 587, or MAIL_USE_SSL with port 465."),
        )
    if "AUTH" in reply or reply.startswith(("530", "534", "535", "538")):
        hint = _("Check MAIL_USERNAME and MAIL_PASSWORD. Some relays require an app password.")
        if not settings.mail_username:
            return RelayCheckResult(
                False, _("%(relay)s requires a sign-in. Its reply: %(reply)s", relay=relay_name, reply=reply), hint
            )
        return RelayCheckResult(
            False,
            _(
                "%(relay)s rejects the sign-in as %(username)s. Its reply: %(reply)s",
                relay=relay_name,
                username=settings.mail_username,
                reply=reply,
            ),
            hint,
        )
    return RelayCheckResult(
        False,
        _("%(relay)s rejects this server. Its reply: %(reply)s", relay=relay_name, reply=reply),
        _("Ask the provider of the relay to allow this server to send."),
    )


def _explain_connection_failure(error: RelayUnavailable, relay_name: str) -> RelayCheckResult:
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return RelayCheckResult(
            False,
            _("The server name can't be resolved: %(relay)s.", relay=relay_name),
            _("Check MAIL_SERVER for typing errors."),
        )
    if isinstance(cause, ConnectionRefusedError):
        return RelayCheckResult(
            False,
            _("%(relay)s refused the connection.", relay=relay_name),
            _("Check MAIL_SERVER and MAIL_PORT, and that the relay is running."),
        )
    if isinstance(cause, TimeoutError):
        return RelayCheckResult(
            False,
            _("%(relay)s timed out.", relay=relay_name),
            _("A firewall may block the connection, or the port may be wrong; usual ports are 25, 587 and 465."),
        )
    if str(error)[:3].isdigit():
        return RelayCheckResult(
            False,
            _("%(relay)s does not accept email at the moment. Its reply: %(reply)s", relay=relay_name, reply=error),
            _("Try again in a moment."),
        )
    return RelayCheckResult(
        False,
        _("%(relay)s is not usable at the moment: %(error)s.", relay=relay_name, error=error),
        _("Try again in a moment, and check MAIL_PORT."),
    )


def _is_local_host(server: str) -> bool:
    return server in ("localhost", "::1") or server.startswith("127.")
