"""Parse and check single settings.

An invalid value raises a `SettingsError`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parseaddr
from urllib.parse import urlsplit

import idna

# A shorter period would delete what running campaigns, retries of tills and disputes still need.
MIN_RETENTION_DAYS, MAX_RETENTION_DAYS = 30, 36_500


class SettingsError(Exception):
    """A setting is missing or invalid.

    The message is one line and says what to change.
    """


def parse_public_url(text: str) -> str:
    """Return the URL for emails: in ASCII, without a trailing slash.

    The host is encoded as IDNA 2008.
    """
    invalid = SettingsError(
        "PUBLIC_URL must be a URL such as https://offers.example.com, optionally with a port and a plain path"
    )
    try:
        parts = urlsplit(text)
        host = _normalise_host(parts.hostname or "")
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise invalid from error
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise invalid
    if not re.fullmatch(r"[A-Za-z0-9/._~!$&'()*+,;=:%-]*", parts.path) or any(
        character in text for character in "?# \t\r\n"
    ):
        raise invalid
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}".rstrip("/")


def parse_mail_server(text: str) -> str:
    """Return the host name or IP address of the mail relay in ASCII."""
    try:
        return _normalise_host(text.strip())
    except ValueError as error:
        raise SettingsError("MAIL_SERVER must be a host name such as relay.example.com, or an IP address") from error


def parse_sender(text: str) -> str:
    """Return the sender unchanged, if its address is valid (RFC 5321)."""
    local, _, domain = parseaddr(text)[1].rpartition("@")
    try:
        if not text.isprintable() or not re.fullmatch(
            r"(?=.{1,64}$)[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*", local, re.A
        ):
            raise ValueError(local)
        _normalise_host(domain)
    except ValueError as error:
        raise SettingsError("MAIL_DEFAULT_SENDER must be an address such as Shop <offers@example.com>") from error
    return text


def _normalise_host(name: str) -> str:
    """Return a host name in ASCII, by IDNA 2008 if necessary, or an IP address.

    :raises ValueError: when it is neither.
    """
    if ":" in name:
        return str(ipaddress.ip_address(name))
    # Container names may have underscores, which IDNA does not allow.
    host = name.lower() if name.isascii() else idna.encode(name, uts46=True).decode()
    label = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    if len(host) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*\.?", host):
        raise ValueError(name)
    return host


def parse_bounce_address(variables: Mapping[str, str]) -> str | None:
    """Return the bounce address, or None.

    The tag that identifies an email needs 45 of the 64 characters before the @ (RFC 5321).
    """
    address = variables.get("MAIL_BOUNCE_ADDRESS", "").strip()
    if not address:
        return None
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,19}@[A-Za-z0-9.-]{1,185}", address):
        raise SettingsError(
            "MAIL_BOUNCE_ADDRESS must be an address such as bounces@example.com, at most 19 characters before the @"
        )
    return address


def parse_security_contact(variables: Mapping[str, str]) -> str | None:
    """Return the URI for reports about security, or None."""
    contact = variables.get("SECURITY_CONTACT", "").strip()
    if not contact:
        return None
    if (
        not re.fullmatch(r"(?:mailto:[^\s@/?#]+@[^\s@/?#]+|https://[^\s@/?#]+(?:[/?#]\S*)?)", contact)
        or not contact.isascii()
    ):
        raise SettingsError(
            "SECURITY_CONTACT must be an address or a page such as mailto:security@example.com or "
            "https://example.com/security"
        )
    return contact


def check_relay_settings(variables: Mapping[str, str]) -> None:
    """Check that the settings of the relay are consistent.

    :raises SettingsError: when they are not.
    """
    names = [name for name in ("MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL") if variables.get(name)]
    if names and not variables.get("MAIL_SERVER") and names[0] in ("MAIL_USERNAME", "MAIL_PASSWORD"):
        raise SettingsError(f"{names[0]} is set and MAIL_SERVER is not; set MAIL_SERVER, or remove {names[0]}")
    if parse_boolean(variables, "MAIL_USE_TLS") and parse_boolean(variables, "MAIL_USE_SSL"):
        raise SettingsError(
            "MAIL_USE_TLS and MAIL_USE_SSL can't both be true; use TLS with port 587, or SSL with port 465"
        )
    if bool(variables.get("MAIL_USERNAME")) != bool(variables.get("MAIL_PASSWORD")):
        raise SettingsError("set both MAIL_USERNAME and MAIL_PASSWORD, or neither")


def require_external_services(variables: Mapping[str, str]) -> None:
    """Check that every external service is configured.

    This is necessary where there are no embedded services as a default.
    """
    for name, example in (
        ("DATABASE_URL", "postgresql://user:password@host/database"),
        ("MAIL_SERVER", "relay.example.com"),
        ("SECRET_KEY", "40 random characters, the same for every machine"),
    ):
        if not variables.get(name):
            raise SettingsError(f"{name} must be set, for example to {example}: this installation has no default")


def parse_ip_address(variables: Mapping[str, str], name: str, default: str) -> str:
    """Return an IP address in its canonical form."""
    text = variables.get(name, "").strip() or default
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise SettingsError(f"{name} must be an IP address such as 127.0.0.1 or 0.0.0.0, not {text!r}") from error


def parse_integer(variables: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`."""
    text = variables.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def parse_retention_days(variables: Mapping[str, str], name: str) -> int:
    """Return a retention period in days: 0 to keep the data, or at least `MIN_RETENTION_DAYS`."""
    days = parse_integer(variables, name, 0, 0, MAX_RETENTION_DAYS)
    if 0 < days < MIN_RETENTION_DAYS:
        raise SettingsError(
            f"{name} must be 0 (keep), or a whole number from {MIN_RETENTION_DAYS} to {MAX_RETENTION_DAYS}, "
            f"not {str(days)!r}"
        )
    return days


def parse_choice(variables: Mapping[str, str], name: str, *choices: str) -> str | None:
    """Return one of the choices; None if the variable is not set.

    The variable may be in upper or lower case.
    """
    text = variables.get(name, "").strip()
    choice = next((choice for choice in choices if choice.lower() == text.lower()), None)
    if text and choice is None:
        raise SettingsError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
    return choice


def parse_choices(variables: Mapping[str, str], name: str, *choices: str) -> tuple[str, ...]:
    """Return some of the choices, from a list with commas; empty if the variable is not set."""
    texts = [text.strip().lower() for text in variables.get(name, "").split(",") if text.strip()]
    unknown = [text for text in texts if text not in choices]
    if unknown:
        raise SettingsError(
            f"{name} must be a list of {', '.join(choices)} with commas; {unknown[0]!r} is not one of them"
        )
    return tuple(choice for choice in choices if choice in texts)


@dataclass(frozen=True)
class OidcSettings:
    """The OpenID Connect provider with which staff can sign in.

    :ivar name: what the button calls it.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    name: str


def parse_oidc(variables: Mapping[str, str]) -> OidcSettings | None:
    """Return the settings of the OpenID Connect provider; None if none of them is set."""
    names = ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET")
    values = {name: variables.get(name, "").strip() for name in names}
    if not any(values.values()):
        return None
    missing = [name for name in names if not values[name]]
    if missing:
        raise SettingsError(f"set {missing[0]} too, or none of {', '.join(names)}")
    issuer = values["OIDC_ISSUER"]
    host = check_oidc_url(issuer)
    return OidcSettings(
        issuer, values["OIDC_CLIENT_ID"], values["OIDC_CLIENT_SECRET"], variables.get("OIDC_NAME", "").strip() or host
    )


def check_oidc_url(url: str) -> str:
    """Check the URL of an OpenID Connect provider; return its host.

    :raises SettingsError: unless it uses HTTPS, or the loopback interface.
    """
    invalid = SettingsError("OIDC_ISSUER must be a URL such as https://login.example.com, without a query")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise invalid from error
    is_secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(host))
    if not host or not is_secure or "@" in parts.netloc or any(character in url for character in "?# \t\r\n"):
        raise invalid
    return host


def is_loopback_host(host: str) -> bool:
    """Return whether a host name or IP address is that of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_mail_rate(variables: Mapping[str, str]) -> float:
    """Return the maximum number of emails per second; 0 for no limit."""
    text = variables.get("MAIL_PER_SECOND", "").strip()
    if not re.fullmatch(r"(?:[0-9]{1,6}(?:\.[0-9]{1,4})?)?", text):
        raise SettingsError(f"MAIL_PER_SECOND must be a number such as 14 or 0.5, or 0 for no limit, not {text!r}")
    return float(text or 0)


def parse_boolean(variables: Mapping[str, str], name: str) -> bool:
    """Return a boolean; False if the variable is not set."""
    text = variables.get(name, "").strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return False
    if text in ("1", "true", "yes", "on"):
        return True
    raise SettingsError(f"{name} must be true or false, not {text!r}")
