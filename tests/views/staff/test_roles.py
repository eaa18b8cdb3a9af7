"""Which role each page of staff needs: every view of the app is requested, so a new one has to be added here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

WITHOUT_SIGN_IN = {
    "accept_with_identity", "finish_oidc", "invitation", "oidc_callback", "passkey_options", "password_reset_requested",
    "request_password_reset", "second_factor", "sign_in", "sign_in_with_passkey", "sign_out", "start_oidc_invitation",
    "start_oidc_sign_in",
}  # fmt: skip
# Paths of pages and forms; `N` is the id of a row.
ADMIN_ONLY = re.compile(
    r"/settings/(people|invitations|api-keys|keys|audit)\b.*|/customers/N/(erase|personal-data)\b.*", re.A
)
MANAGER_PAGES = {
    "/campaigns/N/launch", "/campaigns/N/mail", "/campaigns/N/recipients.csv", "/campaigns/N/waits", "/customers.csv",
    "/customers/N/edit", "/customers/audiences/N", "/customers/do-not-mail.csv", "/customers/do-not-mail/import",
    "/customers/do-not-mail/lift", "/customers/do-not-mail/new", "/customers/import",
    "/customers/imports/N/rejected.csv", "/customers/new", "/offers/N/code", "/offers/N/edit", "/offers/N/launch",
    "/offers/N/mail", "/offers/N/reminder", "/offers/new", "/redemptions.csv", "/redemptions/new",
    "/settings/privacy", "/settings/shop", "/settings/shop/sample", "/settings/shop/sample/frame",
}  # fmt: skip
# Forms that change only the account of the user.
OWN_ACCOUNT = "/settings/profile"


def views(app: Flask) -> Iterator[tuple[str, str]]:
    """Yield method and path of every view that needs a session."""
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("staff.") and rule.endpoint.rpartition(".")[2] not in WITHOUT_SIGN_IN:
            for method in sorted((rule.methods or set()) & {"GET", "POST"}):
                yield method, re.sub(r"<[^>]*>", "N", rule.rule)


def request(client: FlaskClient, method: str, path: str) -> int:
    return client.open(path.replace("N", "1"), method=method).status_code


def test_the_views_without_sign_in_exist(app: Flask) -> None:
    exempt = {
        endpoint.rpartition(".")[2]
        for endpoint, view in app.view_functions.items()
        if endpoint.startswith("staff.") and getattr(view, "is_login_exempt", False)
    }
    assert exempt == WITHOUT_SIGN_IN


def test_all_other_views_need_a_session(app: Flask, client: FlaskClient) -> None:
    for method, path in views(app):
        response = client.open(path.replace("N", "1"), method=method)
        # A form with a long input is shown again, so that it can be copied.
        is_kept = response.status_code == 400 and "Nothing was saved: your session has ended" in response.text
        assert is_kept or (response.location or "").startswith("/sign-in"), (method, path)


@pytest.mark.parametrize("role", ["viewer", "manager"])
def test_each_role_is_refused_exactly_what_is_above_it(
    app: Flask, sign_in: Callable[..., FlaskClient], role: str
) -> None:
    client = sign_in(role)
    for method, path in views(app):
        is_above = ADMIN_ONLY.fullmatch(path) is not None
        if role == "viewer":
            is_write = method == "POST" and not path.startswith(OWN_ACCOUNT)
            is_above = is_above or is_write or path in MANAGER_PAGES
        # Forms that the role may send are not sent.
        if is_above or method == "GET":
            assert (request(client, method, path) == 403) == is_above, (method, path)
