"""Settings of second factors and of the OpenID Connect provider."""

from __future__ import annotations

from pathlib import Path

import pytest

from webapp.core import settings as app_settings
from webapp.core.setting_parsers import OidcSettings, SettingsError

PROVIDER = {"OIDC_ISSUER": "https://login.example.com", "OIDC_CLIENT_ID": "onecode", "OIDC_CLIENT_SECRET": "secret"}


def _load(tmp_path: Path, **given: str) -> app_settings.Settings:
    return app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), **given})


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ()), (" , ", ()), ("admin", ("admin",)), ("viewer, ADMIN,admin", ("admin", "viewer"))],
)
def test_roles_that_need_a_second_factor_are_a_list(tmp_path: Path, value: str, expected: tuple[str, ...]) -> None:
    assert _load(tmp_path, SECOND_FACTOR_ROLES=value).second_factor_roles == expected


@pytest.mark.parametrize("value", ["admins", "admin manager", "admin;viewer"])
def test_an_unknown_role_is_rejected(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsError, match=r"^SECOND_FACTOR_ROLES must be a list of admin, manager, viewer"):
        _load(tmp_path, SECOND_FACTOR_ROLES=value)


def test_the_provider_needs_three_settings_and_has_a_name(tmp_path: Path) -> None:
    assert _load(tmp_path).oidc is None
    oidc = _load(tmp_path, **PROVIDER).oidc
    assert oidc == OidcSettings("https://login.example.com", "onecode", "secret", "login.example.com")
    assert "secret" not in repr(_load(tmp_path, **PROVIDER))
    assert _load(tmp_path, **PROVIDER, OIDC_NAME="Example SSO").oidc.name == "Example SSO"  # type: ignore[union-attr]


@pytest.mark.parametrize("missing", PROVIDER)
def test_a_missing_setting_of_the_provider_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(SettingsError, match=f"^set {missing} too"):
        _load(tmp_path, **{name: value for name, value in PROVIDER.items() if name != missing})


@pytest.mark.parametrize("issuer", ["http://localhost:8080/realms/a", "http://127.0.0.1:9", "http://[::1]:9"])
def test_an_issuer_on_loopback_needs_no_https(tmp_path: Path, issuer: str) -> None:
    assert _load(tmp_path, **PROVIDER | {"OIDC_ISSUER": issuer}).oidc is not None


@pytest.mark.parametrize(
    "issuer",
    [
        "http://login.example.com",
        "login.example.com",
        "https://",
        "https://login.example.com/?a=b",
        "https://me:secret@login.example.com",
        "https://login.example.com:99999",
        "https://login.example.com/#a",
        "ftp://localhost",
    ],
)
def test_an_invalid_issuer_is_rejected(tmp_path: Path, issuer: str) -> None:
    with pytest.raises(SettingsError, match=r"^OIDC_ISSUER must be "):
        _load(tmp_path, **PROVIDER | {"OIDC_ISSUER": issuer})
