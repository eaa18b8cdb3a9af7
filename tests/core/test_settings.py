"""Settings: addresses are normalised, invalid values refused, secrets hidden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from webapp.core import setting_parsers
from webapp.core import settings as app_settings
from webapp.core.setting_parsers import SettingsError


def _load(tmp_path: Path, **given: str) -> app_settings.Settings:
    return app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), **given})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://münze.example", "https://xn--mnze-0ra.example"),
        ("https://Straße.example:8443/angebote/", "https://xn--strae-oqa.example:8443/angebote"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_the_public_url_is_normalised_to_ascii(tmp_path: Path, given: str, expected: str) -> None:
    assert _load(tmp_path, PUBLIC_URL=given).public_url == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUBLIC_URL", "example.com"),
        ("PUBLIC_URL", "https://"),
        ("PUBLIC_URL", "https://shop..example"),
        ("PUBLIC_URL", "https://-ü.example"),
        ("PUBLIC_URL", "https://shop.example/münze"),
        ("PUBLIC_URL", "https://shop.example/a b"),
        ("PUBLIC_URL", "https://me:secret@shop.example"),
        ("PUBLIC_URL", "https://shop.example/?a=b"),
        ("PUBLIC_URL", "https://shop.example/#a"),
        ("PUBLIC_URL", "https://shop.example:99999"),
        ("PUBLIC_URL", "https://shop.example\n.evil.example"),
        ("MAIL_SERVER", "relay..example.com"),
        ("MAIL_SERVER", "relay example.com"),
        ("MAIL_SERVER", "relay.example.com:25"),
        ("MAIL_DEFAULT_SENDER", "Shop"),
        ("MAIL_DEFAULT_SENDER", "Shop <offers@shop..example>"),
        ("MAIL_DEFAULT_SENDER", "Shop <münze@shop.example>"),
        ("MAIL_DEFAULT_SENDER", "Shop <a@b.example>\r\nBcc: x@y.example"),
        ("SECURITY_CONTACT", "security@shop.example"),
        ("SECURITY_CONTACT", "http://shop.example/security"),
        ("SECURITY_CONTACT", "https://"),
        ("SECURITY_CONTACT", "mailto:a@shop.example\nExpires: 1999-01-01T00:00:00Z"),
        ("SECURITY_CONTACT", "mailto:münze@shop.example"),
    ],
)
def test_an_invalid_address_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(setting_parsers.SettingsError, match=f"^{name} must be ") as error:
        _load(tmp_path, **{name: value})

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("relay.example.com", "relay.example.com"),
        ("mail_relay", "mail_relay"),
        ("::1", "::1"),
        ("10.0.0.1", "10.0.0.1"),
        ("pöst.example", "xn--pst-sna.example"),
        # Full-width and upper-case letters are mapped (UTS 46).
        ("ＰÖＳＴ.example", "xn--pst-sna.example"),
        ("relay.example.com.", "relay.example.com."),
    ],
)
def test_the_relay_is_a_host_name_or_an_ip_address(tmp_path: Path, given: str, expected: str) -> None:
    assert _load(tmp_path, MAIL_SERVER=given).mail_server == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"MAIL_USERNAME": "shop", "MAIL_PASSWORD": "secret"}, "MAIL_USERNAME is set and MAIL_SERVER is not"),
        ({"MAIL_PASSWORD": "secret"}, "MAIL_PASSWORD is set and MAIL_SERVER is not"),
        ({"MAIL_SERVER": "relay", "MAIL_USERNAME": "shop"}, "set both MAIL_USERNAME and MAIL_PASSWORD"),
        ({"MAIL_SERVER": "relay", "MAIL_PASSWORD": "secret"}, "set both MAIL_USERNAME and MAIL_PASSWORD"),
        ({"MAIL_SERVER": "relay", "MAIL_USE_TLS": "1", "MAIL_USE_SSL": "1"}, "can't both be true"),
    ],
)
def test_contradictory_settings_of_the_relay_are_rejected(tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        _load(tmp_path, **given)

    assert "secret" not in str(error.value)


def test_a_shop_without_a_name_is_called_onecode(tmp_path: Path) -> None:
    assert (_load(tmp_path).shop_name, _load(tmp_path, SHOP_NAME="Florist").shop_name) == ("Onecode", "Florist")


@pytest.mark.parametrize("given", ["offers@example.com", "Münze <offers@münze.example>", '"A, B" <o@localhost>'])
def test_the_sender_is_not_changed(tmp_path: Path, given: str) -> None:
    assert _load(tmp_path, MAIL_DEFAULT_SENDER=given).mail_default_sender == given


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", None),
        (" mailto:security@shop.example ", "mailto:security@shop.example"),
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example/security?lang=en", "https://shop.example/security?lang=en"),
    ],
)
def test_the_security_contact_is_a_uri(tmp_path: Path, given: str, expected: str | None) -> None:
    assert _load(tmp_path, SECURITY_CONTACT=given).security_contact == expected


@pytest.mark.parametrize("password", ["a@S3cret", "a/S3cret", "a@b@S3cret", "a@S3cret:1"])
def test_a_password_with_unescaped_characters_is_rejected(tmp_path: Path, password: str) -> None:
    with pytest.raises(setting_parsers.SettingsError, match=r"^DATABASE_URL cannot be parsed; .* @ as %40") as error:
        _load(tmp_path, DATABASE_URL=f"postgresql://onecode:{password}@127.0.0.1:1/onecode")

    assert "S3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://onecode:a%40S3cret@db.example:5432/onecode?sslmode=require",
        "postgres://onecode:a#b+c@[::1]/onecode",
        "postgresql:///onecode?host=/run/postgresql&user=onecode&password=a",
        "postgresql://onecode@/onecode?host=/run/postgresql",
    ],
)
def test_an_unambiguous_database_url_is_accepted(tmp_path: Path, url: str) -> None:
    assert _load(tmp_path, DATABASE_URL=url).libpq_url == "postgresql://" + url.partition("://")[2]


def test_the_repr_of_the_settings_has_no_secret(tmp_path: Path) -> None:
    given = {"DATABASE_URL": "postgresql://u:S3cret@h/d", "SECRET_KEY": "S3cret", "MAIL_SERVER": "relay.example.com"}

    assert "S3cret" not in repr(_load(tmp_path, **given, MAIL_USERNAME="u", MAIL_PASSWORD="S3cret"))


LONG_HOST = f"{'a' * 62}.{'b' * 62}.{'c' * 62}.{'d' * 62}.e"
assert len(LONG_HOST) == 253


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("MAIL_SERVER", LONG_HOST, "mail_server", LONG_HOST),
        ("MAIL_SERVER", f"{'a' * 63}.example", "mail_server", f"{'a' * 63}.example"),
        ("MAIL_DEFAULT_SENDER", f"{'a' * 64}@example.com", "mail_default_sender", f"{'a' * 64}@example.com"),
        ("MAIL_PER_SECOND", "", "mail_per_second", 0.0),
        ("MAIL_PER_SECOND", "0.5", "mail_per_second", 0.5),
        ("MAIL_PER_SECOND", "999999.9999", "mail_per_second", 999999.9999),
        ("MAIL_CONNECTIONS", "", "mail_connections", 2),
        ("MAIL_CONNECTIONS", "1", "mail_connections", 1),
        ("MAIL_CONNECTIONS", "32", "mail_connections", 32),
        ("PORT", "65533", "port", 65533),
        ("WEB_WORKERS", "64", "web_workers", 64),
        ("TRUSTED_PROXIES", "10", "trusted_proxies", 10),
        ("PUBLIC_CUSTOMERS_PER_ADDRESS", "", "public_customers_per_address", 10),
        ("PUBLIC_CUSTOMERS_PER_ADDRESS", "0", "public_customers_per_address", 0),
        ("PUBLIC_CUSTOMERS_PER_ADDRESS", "1000", "public_customers_per_address", 1000),
        ("PORT", "", "port", 8000),
        ("PUBLIC_URL", "", "public_url", "http://127.0.0.1:8000"),
        ("WEB_HOST", "", "web_host", "127.0.0.1"),
        ("WEB_HOST", " ::0 ", "web_host", "::"),
        ("WEB_WORKERS", "", "web_workers", 2),
        ("TRUSTED_PROXIES", "", "trusted_proxies", 0),
        ("MAIL_PORT", "", "mail_port", 25),
        ("MAIL_DEFAULT_SENDER", "", "mail_default_sender", "offers@example.com"),
        ("SESSION_IDLE_HOURS", "", "session_idle_hours", 12),
        ("SESSION_IDLE_HOURS", "8760", "session_idle_hours", 8760),
        ("SESSION_MAX_DAYS", "", "session_max_days", 14),
        ("SESSION_MAX_DAYS", "365", "session_max_days", 365),
        ("SECRET_KEY", "chosen", "secret_key", "chosen"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("LOG_FORMAT", "", "log_format", "text"),
        ("LOG_LEVEL", "warning", "log_level", "WARNING"),
        ("LOG_LEVEL", "", "log_level", None),
        *(("MAIL_USE_TLS", value, "mail_use_tls", True) for value in ("1", "true", "Yes", " ON ")),
        *(("MAIL_USE_TLS", value, "mail_use_tls", False) for value in ("", "0", "false", "NO", "off")),
    ],
)
def test_a_valid_value_is_accepted_up_to_its_limits(
    tmp_path: Path, name: str, value: str, attribute: str, expected: object
) -> None:
    given = {"MAIL_SERVER": "relay.example.com"} | {name: value}

    assert getattr(_load(tmp_path, **given), attribute) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIL_SERVER", f"a{LONG_HOST}"),
        ("MAIL_SERVER", f"{'a' * 64}.example"),
        ("MAIL_DEFAULT_SENDER", f"{'a' * 65}@example.com"),
        ("MAIL_PER_SECOND", "-1"),
        ("MAIL_PER_SECOND", "1000000"),
        ("MAIL_PER_SECOND", "fast"),
        ("MAIL_CONNECTIONS", "0"),
        ("MAIL_CONNECTIONS", "33"),
        ("PORT", "0"),
        ("PORT", "65534"),
        ("PORT", "８０００"),
        ("WEB_HOST", "localhost"),
        ("SESSION_IDLE_HOURS", "0"),
        ("SESSION_IDLE_HOURS", "8761"),
        ("SESSION_MAX_DAYS", "0"),
        ("SESSION_MAX_DAYS", "366"),
        ("MAIL_PORT", "65536"),
        ("WEB_WORKERS", "65"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "11"),
        ("PUBLIC_CUSTOMERS_PER_ADDRESS", "-1"),
        ("PUBLIC_CUSTOMERS_PER_ADDRESS", "1001"),
        ("MAIL_USE_TLS", "perhaps"),
    ],
)
def test_a_value_beyond_its_limits_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        _load(tmp_path, **{name: value})


RETENTION_SETTINGS = [name for name in app_settings.SETTING_NAMES if name.startswith("RETENTION_")]


@pytest.mark.parametrize("name", RETENTION_SETTINGS)
@pytest.mark.parametrize(("given", "days"), [("", 0), ("0", 0), ("30", 30), ("36500", 36_500)])
def test_a_retention_period_is_a_number_of_days(tmp_path: Path, name: str, given: str, days: int) -> None:
    assert getattr(_load(tmp_path, **{name: given}), name.lower()) == days


@pytest.mark.parametrize("name", RETENTION_SETTINGS)
@pytest.mark.parametrize("given", ["1", "29", "36501", "-1", "30.5", "a month"])
def test_a_retention_period_that_is_too_short_or_no_number_is_rejected(tmp_path: Path, name: str, given: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        _load(tmp_path, **{name: given})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"PUBLIC_URL": "http://localhost:8000"}, True),
        ({"PUBLIC_URL": "https://shop.example"}, False),
        ({"PUBLIC_URL": "https://localhost.shop.example"}, False),
        ({"PUBLIC_URL": "https://shop.example", "MAIL_SERVER": "relay.example.com"}, True),
    ],
)
def test_users_are_emailed_by_a_relay_or_on_the_machine_of_the_mail_sink(
    tmp_path: Path, given: dict[str, str], expected: bool
) -> None:
    assert _load(tmp_path, **given).can_email_users == expected


@pytest.mark.parametrize(
    ("user", "length", "is_inside"), [(0, 20, False), (1000, 80, True), (1000, 81, False)], ids=["root", "80", "81"]
)
def test_the_path_of_the_socket_is_short(
    monkeypatch: pytest.MonkeyPatch, user: int, length: int, is_inside: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    instance = Path("/" + "x" * (length - len("//socket")))
    # Bytes count, not characters.
    assert len(os.fsencode(app_settings.socket_folder(Path("/" + "ü" * 40)))) <= 80

    folder = app_settings.socket_folder(instance)

    assert (folder == instance / "socket") is is_inside
    assert len(str(folder)) <= 80
    assert is_inside or folder != app_settings.socket_folder(Path("/other") / instance.name)


@pytest.mark.parametrize(("text", "reason"), [(b"A=\xff\n", "it is not UTF-8"), (None, "Is a directory")])
def test_an_unreadable_env_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)
    assert app_settings.read_env_file() == {}
    path = tmp_path / ".env"
    if text is None:
        path.mkdir()
        # python-dotenv takes only a file or a pipe for an existing file.
        monkeypatch.setattr(app_settings, "dotenv_values", lambda found: found.read_text())
    else:
        path.write_bytes(text)

    with pytest.raises(SettingsError, match=f"cannot be read \\({reason}\\)"):
        app_settings.read_env_file()


def test_settings_come_from_environment_then_env_file_then_saved_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)
    for name in app_settings.SETTING_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAIL_CONNECTIONS", "6")
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / "port").write_text("8123\n")
    (tmp_path / ".env").write_text("MAIL_CONNECTIONS=5\nSHOP_NAME=Florist\n")

    settings = app_settings.load_settings()

    assert (settings.mail_connections, settings.shop_name, settings.port) == (6, "Florist", 8123)
    # The mail sink and its page.
    assert (settings.mail_port, settings.sink_page_port, settings.public_url) == (8124, 8125, "http://127.0.0.1:8123")
    assert settings.mail_server == "127.0.0.1"
    (tmp_path / ".env").write_text("PORT=8200\n")
    assert app_settings.load_settings().port == 8200


def test_the_secret_is_created_once_in_a_folder_of_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    first, second = (app_settings.load_settings({"INSTANCE_PATH": "~/a/b"}) for _ in range(2))

    assert first.instance_path == tmp_path / "a" / "b"
    assert len(first.secret_key) == 43
    assert first.secret_key == second.secret_key == (tmp_path / "a" / "b" / "secret_key").read_text()
    assert (tmp_path / "a" / "b" / "secret_key").stat().st_mode & 0o777 == 0o600


def test_database_direct_url_requires_database_url(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_DIRECT_URL is set and DATABASE_URL is not; "):
        _load(tmp_path, DATABASE_DIRECT_URL="postgresql://h/d")


def test_the_env_file_has_the_variables_with_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)
    (tmp_path / ".env").write_text("PORT=8000\nSHOP_NAME=\nMAIL_SERVER\n")

    assert app_settings.read_env_file() == {"PORT": "8000", "SHOP_NAME": ""}
