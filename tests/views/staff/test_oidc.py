"""Signing in, linking and accepting invitations with an OpenID Connect provider, in a browser's steps."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from tests.support import oidc_provider
from tests.support.factors import add_app, code_now
from tests.support.oidc_provider import SUBJECT, OidcProvider
from webapp.accounts import invitation_actions
from webapp.accounts.models import AccessCount, StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc import queries as oidc_queries
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core.extensions import db

PAGE = "/settings/profile/two-step"
CALLBACK = "/sign-in/oidc/callback"
# A link on a page of this site.
CLICKED = {"Sec-Fetch-Site": "same-origin"}
MakeUser = Callable[..., StaffUser]


@pytest.fixture
def provider(app: Flask, with_settings: Callable[..., object]) -> Iterator[OidcProvider]:
    """A running provider."""
    with oidc_provider.running() as provider:
        with_settings(oidc=provider.settings)
        yield provider
    app.extensions.pop("oidc", None)


def link(user: StaffUser, provider: OidcProvider) -> None:
    oidc_actions.link_identity(user.id, OidcClaims(provider.url, SUBJECT, "", False, "Ada", False))


def return_from(client: FlaskClient, provider: OidcProvider, url: str) -> TestResponse:
    return go_on(client, f"{CALLBACK}?{urlencode(provider.authorize(url))}")


def go_on(client: FlaskClient, url: str) -> TestResponse:
    """Follow the page with which the program receives the response of the provider."""
    return client.get(next_url(client.get(url).text))


def next_url(page: str) -> str:
    return html.unescape(re.search('content="0; url=([^"]*)"', page)[1])  # type: ignore[index]


def sign_in_at(client: FlaskClient, provider: OidcProvider, start: str = "/sign-in/oidc?next=/offers") -> TestResponse:
    response = client.get(start, headers=CLICKED)
    assert response.location.startswith(f"{provider.url}/authorize?")
    return return_from(client, provider, response.location)


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/settings/profile").status_code == 200


def link_url(client: FlaskClient) -> str:
    """Start linking on the settings page; return the URL of the provider."""
    return next_url(client.post(f"{PAGE}/provider").text)


class TestSignIn:
    def test_a_linked_account_signs_in(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        link(make_staff_user("viewer"), provider)
        assert "Sign in with Example SSO" in client.get("/sign-in").text
        assert sign_in_at(client, provider).location == "/offers"
        assert is_signed_in(client)

    def test_an_email_address_links_nobody(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        make_staff_user("admin")
        provider.claims = {"email": "admin@example.com", "email_verified": True}
        response = sign_in_at(client, provider)
        assert response.status_code == 403
        assert "This account is not linked" in response.text
        response.close()
        assert db.session.scalars(select(AccessCount.kind)).all() == ["sign_in.failed"]
        assert not is_signed_in(client)

    def test_a_failed_sign_in_is_counted(self, client: FlaskClient, provider: OidcProvider) -> None:
        sign_in_at(client, provider).close()
        client.get("/sign-in/oidc/finish?state=x&code=y", buffered=True)
        assert db.session.execute(
            select(AccessCount.kind, func.sum(AccessCount.n)).group_by(AccessCount.kind)
        ).all() == [("sign_in.failed", 2)]

    def test_a_disabled_user_is_refused(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        user = make_staff_user("viewer")
        link(user, provider)
        user.disabled_at = user.created_at
        db.session.commit()
        assert sign_in_at(client, provider).location == "/sign-in"
        assert "Your account is disabled." in client.get("/sign-in").text

    @pytest.mark.parametrize(("methods", "asks"), [(["pwd"], True), (None, True), (["pwd", "mfa"], False)])
    def test_the_second_factor_is_asked_for_unless_the_provider_has_checked_one(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser, methods: object, asks: bool
    ) -> None:
        user = make_staff_user("viewer")
        link(user, provider)
        secret, _ = add_app(user)
        provider.claims = {"amr": methods}
        response = sign_in_at(client, provider)
        assert is_signed_in(client) is not asks
        if asks:
            assert client.post(response.location, data={"code": code_now(secret)}).location == "/offers"
            assert is_signed_in(client)

    def test_a_required_factor_can_be_that_of_the_provider(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser, with_settings: MakeUser
    ) -> None:
        with_settings(second_factor_roles=("viewer",))
        link(make_staff_user("viewer"), provider)
        sign_in_at(client, provider)
        assert client.get("/offers").location == PAGE
        provider.claims = {"amr": ["mfa"]}
        client.post("/sign-out")
        sign_in_at(client, provider)
        assert client.get("/offers").status_code == 200

    def test_the_response_for_another_browser_is_refused(
        self, app: Flask, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        link(make_staff_user("viewer"), provider)
        url = client.get("/sign-in/oidc", headers=CLICKED).location
        victim = app.test_client()
        assert return_from(victim, provider, url).location == "/sign-in"
        assert "has expired or was already used" in victim.get("/sign-in").text
        assert not is_signed_in(victim)

    @pytest.mark.parametrize("site", ["cross-site", "same-site", None])
    def test_another_site_cannot_start_a_sign_in(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser, site: str | None
    ) -> None:
        link(make_staff_user("viewer"), provider)
        response = client.get("/sign-in/oidc?next=/offers", headers={"Sec-Fetch-Site": site} if site else {})
        assert (response.status_code, "Continue only if you want to sign in" in response.text) == (200, True)
        assert provider.requests == []
        page = client.post("/sign-in/oidc?next=/offers").text
        assert return_from(client, provider, next_url(page)).location == "/offers"
        assert is_signed_in(client)

    def test_the_click_needs_the_csrf_token(self, csrf_client: FlaskClient, provider: OidcProvider) -> None:
        assert csrf_client.post("/sign-in/oidc").status_code == 400
        assert provider.requests == []

    @pytest.mark.parametrize(
        ("minutes", "query", "is_recent"),
        [(1, "", True), (60, "", False), (60, "&confirm=", False), (None, "", False), (None, "&confirm=", True)],
    )
    def test_a_sign_in_is_recent_if_the_provider_has_just_authenticated_the_user(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser,
        minutes: int | None, query: str, is_recent: bool,
    ) -> None:  # fmt: skip
        link(make_staff_user("admin"), provider)
        provider.claims = {"auth_time": int(time.time()) - minutes * 60 if minutes is not None else None}
        assert sign_in_at(client, provider, f"/sign-in/oidc?next=/offers{query}").location == "/offers"
        response = client.post("/settings/api-keys", data={"name": "Till", "scopes": "read"})
        assert response.status_code == (200 if is_recent else 403)
        assert ("/sign-in/oidc?" in response.text) is not is_recent

    @pytest.mark.parametrize(("minutes", "is_recent"), [(1, True), (16, False)])
    def test_a_factor_of_the_provider_is_as_recent_as_its_sign_in(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser, minutes: int, is_recent: bool
    ) -> None:
        user = make_staff_user("admin")
        link(user, provider)
        add_app(user)
        provider.claims = {"auth_time": int(time.time()) - minutes * 60, "amr": ["mfa"]}
        sign_in_at(client, provider)
        response = client.post(f"{PAGE}/app/remove")
        assert (response.status_code, "recent_code" in response.text) == ((302, False) if is_recent else (403, True))

    def test_a_factor_of_onecode_does_not_make_an_old_sign_in_recent(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        user = make_staff_user("admin")
        link(user, provider)
        secret, _ = add_app(user)
        provider.claims = {"auth_time": int(time.time()) - 3600}
        sign_in_at(client, provider)
        assert client.post("/sign-in/second-factor", data={"code": code_now(secret)}).status_code == 302
        assert client.post("/settings/api-keys", data={"name": "Till", "scopes": "read"}).status_code == 403

    def test_a_confirmation_asks_the_provider_to_authenticate_the_user(
        self, client: FlaskClient, provider: OidcProvider
    ) -> None:
        query = parse_qs(urlsplit(client.get("/sign-in/oidc?confirm=", headers=CLICKED).location).query)
        assert (query["prompt"], query["max_age"]) == (["login"], ["0"])
        query = parse_qs(urlsplit(client.get("/sign-in/oidc", headers=CLICKED).location).query)
        assert ("prompt" in query, query["max_age"]) == (False, [str(14 * 86400)])

    def test_a_refused_sign_in_is_counted(self, client: FlaskClient, provider: OidcProvider) -> None:
        sign_in_at(client, provider).close()
        provider.claims = {"nonce": "another"}
        sign_in_at(client, provider).close()
        counts = select(AccessCount.kind, AccessCount.subject, func.sum(AccessCount.n))
        assert db.session.execute(counts.group_by(AccessCount.kind, AccessCount.subject)).all() == [
            ("sign_in.failed", "provider", 2)
        ]

    def test_a_provider_that_is_down_is_reported(self, client: FlaskClient, provider: OidcProvider) -> None:
        provider.statuses = {"/.well-known/openid-configuration": 500}
        assert client.get("/sign-in/oidc", headers=CLICKED).location == "/sign-in"
        assert "Example SSO does not respond as expected." in client.get("/sign-in").text

    @pytest.mark.parametrize("query", ["", "?state=x", "?state=x&code=y", "?error=access_denied", "?state=%00&iss=%00"])
    def test_a_response_that_was_not_asked_for_is_refused(
        self, client: FlaskClient, provider: OidcProvider, query: str
    ) -> None:
        assert go_on(client, CALLBACK + query).location == "/sign-in"
        assert provider.requests == []

    def test_responses_are_limited(self, client: FlaskClient, provider: OidcProvider) -> None:
        for _ in range(21):
            response = go_on(client, CALLBACK)
        assert response.status_code == 302
        assert "Please wait" in client.get("/sign-in").text

    def test_without_settings_there_are_no_pages(self, client: FlaskClient) -> None:
        assert "Sign in with" not in client.get("/sign-in").text.replace("Sign in with a passkey", "")
        assert client.get("/sign-in/oidc", headers=CLICKED).status_code in (302, 404)
        assert client.get(CALLBACK).status_code in (302, 404)


class TestLinking:
    def test_an_account_is_linked_after_a_confirmation_and_unlinked(
        self, sign_in: Callable[..., FlaskClient], provider: OidcProvider
    ) -> None:
        client = sign_in("viewer")
        assert "Link account" in client.get(PAGE).text
        provider.claims = {"email": "ada@sso.example"}
        page = return_from(client, provider, link_url(client)).text
        user = db.session.scalars(select(StaffUser)).one()
        assert "ada@sso.example" in page
        assert oidc_queries.find_identity_of_user(user.id, provider.url) is None
        assert client.post(f"{PAGE}/provider/link").location == PAGE
        assert "Linked with ada@sso.example" in client.get(PAGE).text
        assert client.post(f"{PAGE}/provider/unlink").location == PAGE
        assert oidc_queries.find_identity_of_user(user.id, provider.url) is None

    def test_nothing_is_linked_without_the_sign_in_at_the_provider(
        self, sign_in: Callable[..., FlaskClient], provider: OidcProvider
    ) -> None:
        client = sign_in("viewer")
        client.post(f"{PAGE}/provider/link")
        assert "This took too long." in client.get(PAGE).text

    def test_the_sign_in_of_one_user_is_not_linked_with_another(
        self, sign_in: Callable[..., FlaskClient], provider: OidcProvider
    ) -> None:
        client = sign_in("viewer")
        url = link_url(client)
        with client.session_transaction() as session:
            flow = session["oidc_flow"]
            session["oidc_flow"] = [*flow[:-1], "link 999"]
        assert return_from(client, provider, url).location == "/sign-in"
        client.post(f"{PAGE}/provider/link")
        assert "This took too long." in client.get(PAGE).text

    def test_an_account_of_another_user_is_refused(
        self, sign_in: Callable[..., FlaskClient], provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        link(make_staff_user("admin"), provider)
        client = sign_in("viewer")
        return_from(client, provider, link_url(client))
        client.post(f"{PAGE}/provider/link")
        assert "This account is linked with another user of Onecode." in client.get(PAGE).text


class TestInvitations:
    def test_an_invitation_is_accepted(
        self, client: FlaskClient, provider: OidcProvider, make_invitation_token: Callable[..., str]
    ) -> None:
        token = make_invitation_token("manager", "ada@example.com")
        assert "Continue with Example SSO" in client.get(f"/invitations/{token}").text
        provider.claims = {"email": "Ada@example.com", "email_verified": True, "name": "Ada Lovelace"}
        response = sign_in_at(client, provider, f"/invitations/{token}/provider")
        assert response.location == f"/invitations/{token}/accept"
        assert 'value="Ada Lovelace"' in client.get(response.location).text
        form = {"name": "Ada", "email": "ada@example.com", "time_zone": "UTC"}
        assert client.post(response.location, data=form).location == "/"
        assert "Welcome, Ada." in client.get("/").text
        client.post("/sign-out")
        assert sign_in_at(client, provider).location == "/offers"

    def test_an_addressed_invitation_needs_its_verified_address(
        self, client: FlaskClient, provider: OidcProvider, make_invitation_token: Callable[..., str]
    ) -> None:
        token = make_invitation_token("admin", "ada@example.com")
        provider.claims = {"email": "ada@example.com", "email_verified": False}
        response = sign_in_at(client, provider, f"/invitations/{token}/provider")
        assert response.location == f"/invitations/{token}"
        assert "has not verified yours" in client.get(response.location).text
        assert client.get(f"/invitations/{token}/accept").location == f"/invitations/{token}"

    def test_the_sign_in_for_one_invitation_does_not_accept_another(
        self, client: FlaskClient, provider: OidcProvider, make_invitation_token: Callable[..., str]
    ) -> None:
        viewer, admin = make_invitation_token("viewer"), make_invitation_token("admin")
        sign_in_at(client, provider, f"/invitations/{viewer}/provider")
        form = {"name": "Ada", "email": "ada@example.com", "time_zone": "UTC"}
        assert client.post(f"/invitations/{admin}/accept", data=form).location == f"/invitations/{admin}"
        assert not db.session.scalars(select(StaffUser)).all()

    def test_an_invalid_field_is_reported(
        self, client: FlaskClient, provider: OidcProvider, make_invitation_token: Callable[..., str]
    ) -> None:
        token = make_invitation_token("viewer")
        path = sign_in_at(client, provider, f"/invitations/{token}/provider").location
        response = client.post(path, data={"name": "", "email": "no address", "time_zone": "UTC"})
        assert response.status_code == 422
        assert "Enter a name." in response.text

    def test_a_reset_link_is_not_accepted_with_the_provider(
        self, client: FlaskClient, provider: OidcProvider, make_staff_user: MakeUser
    ) -> None:
        user = make_staff_user("viewer")
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        assert client.get(f"/invitations/{token}/provider").status_code == 404
        assert client.get("/invitations/unknown/provider").status_code == 404
