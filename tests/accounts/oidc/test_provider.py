"""Responses of the OpenID Connect provider: what is accepted, and what a provider that lies gets."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import time_machine
from flask import Flask
from joserfc.jwk import RSAKey

from tests.support.oidc_provider import OidcProvider
from webapp.accounts.oidc import http
from webapp.accounts.oidc import provider as oidc_provider
from webapp.accounts.oidc.provider import OidcClaims, OidcFlow
from webapp.core.errors import DomainError, NotFound

REDIRECT_URI = "http://localhost/sign-in/oidc/callback"


def sign_in(provider: OidcProvider, **changed: str) -> OidcClaims:
    """Go through a sign-in at the provider; change parameters of its response."""
    url, flow = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    return oidc_provider.finish_flow(REDIRECT_URI, flow, provider.authorize(url) | changed)


def key_of_failure(provider: OidcProvider, **changed: str) -> str:
    with pytest.raises(DomainError) as error:
        sign_in(provider, **changed)
    return error.value.key


def test_the_claims_of_a_valid_response_are_returned(provider: OidcProvider) -> None:
    provider.claims = {"email": "Ada@example.com", "email_verified": True, "name": "Ada", "amr": ["pwd", "mfa"]}
    claims = sign_in(provider)
    assert claims == OidcClaims(provider.url, "248289761001", "Ada@example.com", True, "Ada", True)


@pytest.mark.parametrize("verified", [False, None, "true", 1])
def test_an_email_address_counts_as_verified_only_if_the_provider_says_so(
    provider: OidcProvider, verified: Any
) -> None:
    provider.claims = {"email": "ada@example.com", "email_verified": verified, "amr": "mfa"[:0]}
    claims = sign_in(provider)
    assert (claims.is_email_verified, claims.is_multi_factor) == (False, False)


def test_a_missing_email_address_is_read_from_the_user_info(provider: OidcProvider) -> None:
    provider.userinfo = {"sub": "248289761001", "email": "ada@example.com", "email_verified": True}
    assert sign_in(provider).email == "ada@example.com"
    provider.userinfo["sub"] = "another"
    assert key_of_failure(provider) == "oidc_invalid"


def test_the_id_token_counts_more_than_the_user_info(provider: OidcProvider) -> None:
    provider.claims = {"name": "Ada", "amr": ["pwd"]}
    provider.userinfo |= {"email": "ada@example.com", "name": "Eve", "amr": ["mfa"]}
    claims = sign_in(provider)
    assert (claims.email, claims.name, claims.is_multi_factor) == ("ada@example.com", "Ada", False)


def test_the_user_info_is_read_only_for_a_missing_email_address(provider: OidcProvider) -> None:
    provider.claims = {"email": "ada@example.com"}
    assert sign_in(provider).email == "ada@example.com"
    assert "/userinfo" not in provider.requests


def test_a_provider_may_have_no_user_info(provider: OidcProvider) -> None:
    metadata = provider.respond("/.well-known/openid-configuration", {}, "")[1]
    del metadata["userinfo_endpoint"]
    provider.bodies["/.well-known/openid-configuration"] = json.dumps(metadata).encode()
    assert sign_in(provider).email == ""


YEAR_2100 = 4_102_444_800


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another client"},
        {"aud": None},
        {"aud": "another client", "azp": "onecode"},
        {"aud": ["onecode", "another"], "azp": "another"},
        {"aud": ["onecode", "another"]},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "tomorrow"},
        {"iat": YEAR_2100},
        {"nbf": YEAR_2100},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "a\x00b"},
        {"at_hash": "wrong"},
        {"auth_time": 1_000_000_000},
        {"auth_time": YEAR_2100},
        {"auth_time": "now"},
        {"auth_time": ""},
        {"auth_time": True},
        {"auth_time": float("inf")},
    ],
    ids=str,
)
def test_an_id_token_with_other_claims_is_refused(provider: OidcProvider, claims: dict[str, Any]) -> None:
    provider.claims = claims
    assert key_of_failure(provider) == "oidc_invalid"


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_an_id_token_without_the_signature_of_the_provider_is_refused(provider: OidcProvider, algorithm: str) -> None:
    provider.algorithm = algorithm
    assert key_of_failure(provider) == "oidc_invalid"


@pytest.mark.parametrize("kid", ["first", "unknown"])
def test_an_id_token_signed_with_another_key_is_refused(provider: OidcProvider, kid: str) -> None:
    provider.signing_key = RSAKey.generate_key(2048, {"kid": kid})
    assert key_of_failure(provider) == "oidc_invalid"


def test_keys_are_read_again_after_the_provider_has_rotated_them(provider: OidcProvider) -> None:
    sign_in(provider)
    provider.key = RSAKey.generate_key(2048, {"kid": "second"})
    sign_in(provider)
    sign_in(provider)
    assert provider.requests.count("/jwks") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


def test_the_response_of_another_sign_in_is_refused(provider: OidcProvider) -> None:
    assert key_of_failure(provider, state="another") == "oidc_expired"
    assert key_of_failure(provider, state="ä") == "oidc_expired"
    assert key_of_failure(provider, code="another") == "oidc_invalid"
    url, _ = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    with pytest.raises(DomainError) as error:
        oidc_provider.finish_flow(REDIRECT_URI, None, provider.authorize(url))
    assert error.value.key == "oidc_expired"


def test_a_sign_in_works_once_and_for_ten_minutes(provider: OidcProvider) -> None:
    url, flow = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    oidc_provider.finish_flow(REDIRECT_URI, flow, provider.authorize(url))
    with pytest.raises(DomainError) as error:
        oidc_provider.finish_flow(REDIRECT_URI, flow, provider.authorize(url))
    assert error.value.key == "oidc_expired"
    url, flow = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    for seconds in (-1, 601):
        with time_machine.travel(flow.started_at + seconds, tick=False), pytest.raises(DomainError) as error:
            oidc_provider.finish_flow(REDIRECT_URI, flow, provider.authorize(url))
        assert error.value.key == "oidc_expired"
    with time_machine.travel(flow.started_at + 600, tick=False):
        assert oidc_provider.finish_flow(REDIRECT_URI, flow, provider.authorize(url)).subject


@pytest.mark.parametrize(("seconds", "is_accepted"), [(-60, True), (-61, False), (60, True), (61, False)])
def test_a_difference_of_the_clocks_of_a_minute_is_tolerated(
    provider: OidcProvider, with_settings: Callable[..., object], seconds: int, is_accepted: bool
) -> None:
    """The provider has authenticated the user a minute later than now, or a minute longer ago than a session lasts."""
    with_settings(session_max_days=1)
    now = int(time.time())
    with time_machine.travel(now, tick=False):
        provider.claims = {"auth_time": now + seconds if seconds > 0 else now - 86400 + seconds}
        if is_accepted:
            assert sign_in(provider).authenticated_at == provider.claims["auth_time"]
        else:
            assert key_of_failure(provider) == "oidc_invalid"


def test_an_id_token_is_accepted_a_little_after_its_end(provider: OidcProvider) -> None:
    provider.claims = {"exp": int(time.time()) - 20}
    assert sign_in(provider).subject == "248289761001"
    provider.claims = {"exp": int(time.time()) - 62}
    assert key_of_failure(provider) == "oidc_invalid"


def test_metadata_and_keys_are_read_again_after_ten_minutes(provider: OidcProvider) -> None:
    sign_in(provider)
    for seconds, count in ((0, 1), (599, 1), (600, 2)):
        oidc_provider._get_cache().update(
            {url: (time.monotonic() - seconds, body) for url, (_at, body) in oidc_provider._get_cache().items()}
        )
        sign_in(provider)
        assert provider.requests.count("/jwks") == count
        assert provider.requests.count("/.well-known/openid-configuration") == count


def test_four_requests_to_the_provider_may_run_at_a_time() -> None:
    assert [http._slots.acquire(blocking=False) for _ in range(5)] == [True] * 4 + [False]
    http._slots.release(4)


def test_a_code_that_was_stolen_needs_the_code_verifier(provider: OidcProvider) -> None:
    url, flow = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    with pytest.raises(DomainError) as error:
        oidc_provider.finish_flow(REDIRECT_URI, replace(flow, code_verifier="x" * 64), provider.authorize(url))
    assert error.value.key == "oidc_invalid"


def test_the_issuer_in_the_response_is_checked(provider: OidcProvider) -> None:
    assert key_of_failure(provider, iss="https://evil.example") == "oidc_invalid"
    sign_in(provider, iss=provider.url)


def test_an_issuer_that_the_provider_promises_must_be_in_the_response(provider: OidcProvider) -> None:
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    assert key_of_failure(provider) == "oidc_invalid"


def test_an_error_of_the_provider_is_reported(provider: OidcProvider) -> None:
    provider.error = "access_denied"
    with pytest.raises(DomainError, match="Example SSO did not sign you in") as raised:
        sign_in(provider)
    assert raised.value.key == "oidc_refused"


def test_a_long_name_is_cut_off(provider: OidcProvider) -> None:
    provider.claims = {"name": "x" * 201}
    assert sign_in(provider).name == "x" * 200


def test_a_subject_may_have_255_characters(provider: OidcProvider) -> None:
    """OpenID Connect Core 1.0, 2."""
    provider.claims = {"sub": "x" * 255, "email": "ada@example.com"}
    assert sign_in(provider).subject == "x" * 255


def test_the_client_secret_can_be_sent_in_the_form(provider: OidcProvider) -> None:
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert sign_in(provider).subject == "248289761001"


def test_texts_that_cannot_be_shown_are_ignored(provider: OidcProvider) -> None:
    provider.claims = {"name": "A\x00da", "email": "ada@example.com\r\n"}
    claims = sign_in(provider)
    assert (claims.name, claims.email) == ("", "")


def test_the_client_secret_is_sent_in_the_header_by_default(
    provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenID Connect Discovery 1.0, 3: `client_secret_basic` is the default."""
    respond = provider.respond

    def respond_to_header(path: str, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        return respond(path, form | {"client_secret": ""}, authorization)

    monkeypatch.setattr(provider, "respond", respond_to_header)
    assert sign_in(provider).subject == "248289761001"


def test_a_password_file_of_the_machine_is_not_sent(
    provider: OidcProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login eve password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    provider.userinfo |= {"email": "ada@example.com"}
    assert sign_in(provider).email == "ada@example.com"


def test_an_issuer_may_end_with_a_slash(
    provider: OidcProvider, with_settings: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed before the path of the metadata is added (OpenID Connect Discovery 1.0, 4.1)."""
    issuer, respond = f"{provider.url}/realm/", provider.respond
    monkeypatch.setattr(provider, "respond", lambda path, *data: respond(path.removeprefix("/realm"), *data))
    with_settings(oidc=replace(provider.settings, issuer=issuer))
    provider.metadata, provider.claims = {"issuer": issuer}, {"iss": issuer}
    assert sign_in(provider).issuer == issuer


def test_an_endpoint_may_have_a_query(provider: OidcProvider) -> None:
    provider.metadata = {"authorization_endpoint": f"{provider.url}/authorize?tenant=7"}
    url, _ = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    assert ("tenant", "7") in parse_qsl(urlsplit(url).query)


def test_corrected_metadata_is_used_at_once(provider: OidcProvider) -> None:
    provider.metadata = {"issuer": "https://evil.example"}
    assert key_of_failure(provider) == "oidc_unavailable"
    provider.metadata = {}
    assert sign_in(provider).subject == "248289761001"


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "http://login.example.com/authorize"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None},
        {"token_endpoint": "http://login.example.com/token"},
        {"jwks_uri": 7},
    ],
    ids=str,
)
def test_invalid_metadata_is_refused(provider: OidcProvider, metadata: dict[str, Any]) -> None:
    provider.metadata = metadata
    assert key_of_failure(provider) == "oidc_unavailable"


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/jwks", "/token"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[]"),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b""),
        (302, b"{}"),
        (404, b"{}"),
        (500, b"{}"),
        (200, b'{"keys": 7}'),
        (200, b'{"keys": [{"kty": "RSA"}]}'),
    ],
    ids=["list", "HTML", "bytes", "empty", "redirect", "missing", "failing", "keys", "key"],
)
def test_an_unusable_response_is_refused(provider: OidcProvider, path: str, status: int, body: bytes) -> None:
    provider.bodies[path], provider.statuses[path] = body, status
    assert key_of_failure(provider) in ("oidc_unavailable", "oidc_invalid")


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/jwks", "/token"])
def test_a_response_of_ten_megabytes_is_not_read(provider: OidcProvider, path: str) -> None:
    provider.padding[path] = 10_000_000
    assert key_of_failure(provider) == "oidc_unavailable"
    assert provider.cut_off.wait(10)


@pytest.mark.parametrize(("size", "is_accepted"), [(262_144, True), (262_145, False)])
def test_a_response_may_have_256_kilobytes(size: int, is_accepted: bool) -> None:
    body = io.BytesIO(b"x" * size)
    raw = SimpleNamespace(read1=lambda length, decode_content: body.read1(length))
    response: Any = SimpleNamespace(url="https://id.example.com", raw=raw)

    if is_accepted:
        assert http._read_body(response, time.monotonic() + 60) == body.getvalue()
    else:
        with pytest.raises(http.ProviderError, match="larger than 262144 bytes"):
            http._read_body(response, time.monotonic() + 60)


def test_a_provider_that_is_down_is_reported(provider: OidcProvider) -> None:
    provider.metadata = {"token_endpoint": "http://127.0.0.1:1/token"}
    assert key_of_failure(provider) == "oidc_unavailable"


def test_a_response_without_end_is_cut_off(provider: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "RESPONSE_SECONDS", -1)
    assert key_of_failure(provider) == "oidc_unavailable"


def test_a_slow_provider_is_not_waited_for(provider: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_SECONDS", 0.05)
    provider.hold = threading.Event()
    assert key_of_failure(provider) == "oidc_unavailable"


def test_a_slow_provider_does_not_occupy_all_threads(
    app: Flask, provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = threading.BoundedSemaphore(1)
    monkeypatch.setattr(http, "_slots", slots)
    slots.acquire()
    assert key_of_failure(provider) == "oidc_unavailable"
    assert provider.requests == []
    slots.release()
    sign_in(provider)
    assert slots.acquire(blocking=False)


def test_without_settings_there_is_no_provider(app: Flask) -> None:
    with pytest.raises(NotFound):
        oidc_provider.start_flow(REDIRECT_URI, "sign-in")


def test_the_provider_authenticates_the_user_again_on_request(
    provider: OidcProvider, with_settings: Callable[..., object]
) -> None:
    with_settings(session_max_days=2)
    urls = [oidc_provider.start_flow(REDIRECT_URI, "sign-in", *again)[0] for again in ((), (False,), (True,))]
    parameters = [dict(parse_qsl(urlsplit(url).query)) for url in urls]

    assert [(found.get("max_age"), found.get("prompt")) for found in parameters] == [
        ("172800", None),
        ("172800", None),
        ("0", "login"),
    ]
    assert {found["code_challenge_method"] for found in parameters} == {"S256"}
    assert {found["scope"] for found in parameters} == {"openid email profile"}


def test_a_flow_survives_the_session(provider: OidcProvider) -> None:
    _, flow = oidc_provider.start_flow(REDIRECT_URI, "sign-in")
    assert [len(value) for value in (flow.state, flow.nonce, flow.code_verifier)] == [43, 43, 64]
    assert OidcFlow.load(flow.dump()) == flow
    assert OidcFlow.load(["a"]) is None
