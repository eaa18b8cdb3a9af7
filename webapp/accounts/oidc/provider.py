"""Signing in at an OpenID Connect provider: authorization code flow with PKCE, state and nonce.

Follows OpenID Connect Core 1.0 (3.1), Discovery 1.0, RFC 7636 (PKCE), RFC 9207 (issuer in the response) and RFC 9700.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import current_app
from flask_babel import gettext as _

from webapp.core import rate_limit
from webapp.core.errors import DomainError, NotFound
from webapp.core.setting_parsers import OidcSettings, SettingsError, check_oidc_url

if TYPE_CHECKING:
    from webapp.accounts.oidc.http import ProviderSession

log = logging.getLogger(__name__)

# How long signing in at the provider may take.
FLOW_SECONDS = 600
# How long a process uses the metadata and the keys of the provider before it reads them again.
CACHE_SECONDS = 600
# Difference of the clocks that is tolerated.
LEEWAY_SECONDS = 60
# Asymmetric algorithms only: neither `none` nor those that use the client secret as key.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


@dataclass(frozen=True)
class OidcFlow:
    """What a browser keeps in its session while its user signs in at the provider.

    :ivar purpose: what the sign-in is for, chosen by the view.
    """

    state: str
    nonce: str
    code_verifier: str
    started_at: int
    purpose: str

    def dump(self) -> list[str | int]:
        """Return the flow as JSON values."""
        return [self.state, self.nonce, self.code_verifier, self.started_at, self.purpose]

    @classmethod
    def load(cls, data: object) -> OidcFlow | None:
        """Return the flow that `dump` has returned; None for anything else."""
        match data:
            case [str(state), str(nonce), str(code_verifier), int(started_at), str(purpose)]:
                return cls(state, nonce, code_verifier, started_at, purpose)
        return None


@dataclass(frozen=True)
class OidcClaims:
    """What the provider has said about a user in a verified ID token.

    :ivar email: the email address; not to be trusted unless `is_email_verified`.
    :ivar is_multi_factor: whether the user signed in there with more than one factor (`mfa` in `amr`, RFC 8176).
    :ivar authenticated_at: when the user was authenticated there, in seconds since 1970 (`auth_time`); None if the
        provider does not say it.
    """

    issuer: str
    subject: str
    email: str
    is_email_verified: bool
    name: str
    is_multi_factor: bool
    authenticated_at: int | None = None

    @property
    def label(self) -> str:
        """What the account is called on pages."""
        return self.email or self.name or self.subject


def get_oidc_settings() -> OidcSettings:
    """Return the settings of the provider.

    :raises NotFound: when none is set.
    """
    settings: OidcSettings | None = current_app.config["SETTINGS"].oidc
    if settings is None:
        raise NotFound
    return settings


def start_flow(redirect_uri: str, purpose: str, must_authenticate: bool = False) -> tuple[str, OidcFlow]:
    """Return the URL at which a user signs in, and the flow to keep until they return.

    :param must_authenticate: whether the provider has to authenticate the user now, even if they are signed in there.
        Otherwise it has to if that was longer ago than a session may last (OpenID Connect Core 1.0, 3.1.2.1).
    :raises DomainError: `oidc_unavailable` when the provider does not respond.
    """
    from webapp.accounts.oidc import http

    settings = get_oidc_settings()
    flow = OidcFlow(
        secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), int(time.time()), purpose
    )
    session = http.ProviderSession(settings, redirect_uri=redirect_uri)
    try:
        endpoint = _get_endpoint(_load_metadata(session, settings), "authorization_endpoint")
    except http.ProviderError as error:
        raise _unavailable(settings, error) from error
    options = {"max_age": 0, "prompt": "login"} if must_authenticate else {"max_age": _max_authentication_age()}
    url, _state = session.create_authorization_url(
        endpoint, state=flow.state, nonce=flow.nonce, code_verifier=flow.code_verifier, **options
    )
    return url, flow


def finish_flow(redirect_uri: str, flow: OidcFlow | None, response: dict[str, str]) -> OidcClaims:
    """Verify the response with which a user returns from the provider.

    :param response: the parameters of the redirect.
    :raises DomainError: `oidc_expired` when the flow is too old, was used or belongs to another browser; `oidc_refused`
        when the provider reports an error; `oidc_invalid` when its response or ID token is not valid;
        `oidc_unavailable` when it does not respond.
    """
    from joserfc.errors import JoseError

    from webapp.accounts.oidc import http

    settings = get_oidc_settings()
    if flow is None or not _is_current(flow, response.get("state", "")):
        raise DomainError("oidc_expired", _("This sign-in has expired or was already used. Start again."), 422)
    session = http.ProviderSession(settings, redirect_uri=redirect_uri)
    try:
        metadata = _load_metadata(session, settings)
        _check_response_issuer(settings, metadata, response)
        if "error" in response:
            log.info("OpenID Connect provider reports %s", response["error"][:100])
            message = _("%(provider)s did not sign you in. Try again, or sign in another way.", provider=settings.name)
            raise DomainError("oidc_refused", message, 422)
        token = _fetch_token(settings, redirect_uri, metadata, response.get("code", ""), flow)
        claims = _verify_id_token(session, settings, metadata, token, flow)
        return _build_claims(session, settings, metadata, token, claims)
    except (JoseError, ValueError) as error:
        raise _invalid(settings, error) from error
    except http.ProviderError as error:
        raise _unavailable(settings, error) from error


def _is_current(flow: OidcFlow, state: str) -> bool:
    return (
        secrets.compare_digest(flow.state.encode(), state.encode())
        and 0 <= time.time() - flow.started_at <= FLOW_SECONDS
        and rate_limit.use_once(f"oidc:{flow.state}", FLOW_SECONDS)
    )


def _check_response_issuer(settings: OidcSettings, metadata: dict[str, Any], response: dict[str, str]) -> None:
    """Check that the response is not that of another provider (RFC 9207)."""
    issuer = response.get("iss")
    is_required = metadata.get("authorization_response_iss_parameter_supported") is True
    if issuer != settings.issuer and (issuer is not None or is_required):
        raise _invalid(settings, "the response names another issuer")


def _fetch_token(
    settings: OidcSettings, redirect_uri: str, metadata: dict[str, Any], code: str, flow: OidcFlow
) -> dict[str, Any]:
    from authlib.common.errors import AuthlibBaseError

    from webapp.accounts.oidc import http

    methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    method = "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
    session = http.ProviderSession(settings, method, redirect_uri=redirect_uri)
    endpoint = _get_endpoint(metadata, "token_endpoint")
    try:
        with http.provider_errors():
            token: dict[str, Any] = session.fetch_token(
                endpoint, grant_type="authorization_code", code=code, code_verifier=flow.code_verifier
            )
            return token
    except AuthlibBaseError as error:
        raise _invalid(settings, error) from error


def _verify_id_token(
    session: ProviderSession,
    settings: OidcSettings,
    metadata: dict[str, Any],
    token: dict[str, Any],
    flow: OidcFlow,
) -> dict[str, Any]:
    """Return the claims of the ID token after the checks of OpenID Connect Core 1.0, 3.1.3.7.

    :raises JoseError: when a check fails.
    """
    from authlib.oidc.core import CodeIDToken
    from joserfc import jwt
    from joserfc.errors import InvalidKeyIdError, InvalidPayloadError

    id_token = token.get("id_token")
    if not isinstance(id_token, str):
        raise InvalidPayloadError("the response has no ID token")
    try:
        decoded = jwt.decode(id_token, _load_keys(session, metadata), ALGORITHMS)
    except (InvalidKeyIdError, ValueError):
        # The provider may have rotated its keys.
        decoded = jwt.decode(id_token, _load_keys(session, metadata, is_reload=True), ALGORITHMS)
    claims = CodeIDToken(
        decoded.claims,
        decoded.header,
        {
            "iss": {"essential": True, "value": settings.issuer},
            "aud": {"essential": True, "value": settings.client_id},
        },
        {"nonce": flow.nonce, "client_id": settings.client_id, "access_token": token.get("access_token")},
    )
    claims.validate(leeway=LEEWAY_SECONDS)
    return dict(claims)


def _build_claims(
    session: ProviderSession,
    settings: OidcSettings,
    metadata: dict[str, Any],
    token: dict[str, Any],
    claims: dict[str, Any],
) -> OidcClaims:
    from webapp.accounts.oidc import http

    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
        raise _invalid(settings, "the subject is not valid")
    authenticated_at = _read_authentication_time(settings, claims)
    if "email" not in claims and "userinfo_endpoint" in metadata and "access_token" in token:
        headers = {"Authorization": f"Bearer {token['access_token']}"}  # no translation
        url = _get_endpoint(metadata, "userinfo_endpoint")
        more = http.fetch_json(session, url, withhold_token=True, headers=headers)
        if more.get("sub") != subject:
            # Required by OpenID Connect Core 1.0, 5.3.2.
            raise _invalid(settings, "the user info is about another subject")
        claims = more | claims
    methods = claims.get("amr")
    return OidcClaims(
        settings.issuer,
        subject,
        _clean(claims.get("email")),
        claims.get("email_verified") is True,
        _clean(claims.get("name")),
        isinstance(methods, list) and "mfa" in methods,
        authenticated_at,
    )


def _read_authentication_time(settings: OidcSettings, claims: dict[str, Any]) -> int | None:
    """Return when the provider authenticated the user; None if it does not say it."""
    at = claims.get("auth_time")
    if at is None:
        return None
    age = time.time() - at if isinstance(at, (int, float)) and not isinstance(at, bool) else -1e9
    if not -LEEWAY_SECONDS <= age <= _max_authentication_age() + LEEWAY_SECONDS:
        raise _invalid(settings, "the time of the authentication is too long ago or not valid")
    return int(at)


def _max_authentication_age() -> int:
    """Return how long ago the provider may have authenticated a user who signs in, in seconds."""
    return int(current_app.config["SETTINGS"].session_max_days) * 86400


def _clean(value: object) -> str:
    return value[:200] if isinstance(value, str) and value.isprintable() else ""


def _load_metadata(session: ProviderSession, settings: OidcSettings) -> dict[str, Any]:
    """Return the metadata of the provider (Discovery 1.0), cached for `CACHE_SECONDS`."""
    from webapp.accounts.oidc import http

    url = f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration"
    metadata = _load_cached(session, url)
    if metadata.get("issuer") != settings.issuer:
        _get_cache().pop(url, None)
        raise http.ProviderError(f"{url} is about the issuer {metadata.get('issuer')!r}")  # no translation
    return metadata


def _load_keys(session: ProviderSession, metadata: dict[str, Any], is_reload: bool = False) -> Any:
    from joserfc.jwk import KeySet

    from webapp.accounts.oidc import http

    url = _get_endpoint(metadata, "jwks_uri")
    try:
        return KeySet.import_key_set(_load_cached(session, url, is_reload))  # type: ignore[arg-type]
    # The library raises errors of many kinds for malformed keys.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise http.ProviderError(f"{url} has no usable keys") from error  # no translation


def _load_cached(session: ProviderSession, url: str, is_reload: bool = False) -> dict[str, Any]:
    from webapp.accounts.oidc import http

    cached = _get_cache().get(url)
    if cached and not is_reload and cached[0] > time.monotonic() - CACHE_SECONDS:
        return cached[1]
    body = http.fetch_json(session, url, withhold_token=True)
    _get_cache()[url] = time.monotonic(), body
    return body


def _get_cache() -> dict[str, tuple[float, dict[str, Any]]]:
    cache: dict[str, tuple[float, dict[str, Any]]] = current_app.extensions.setdefault("oidc", {})
    return cache


def _get_endpoint(metadata: dict[str, Any], name: str) -> str:
    """Return a URL of the metadata, which uses HTTPS or the loopback interface."""
    from webapp.accounts.oidc import http

    url = metadata.get(name)
    if not isinstance(url, str):
        raise http.ProviderError(f"the metadata has no {name}")
    try:
        # An endpoint may have a query, unlike the issuer.
        check_oidc_url(urlsplit(url)._replace(query="").geturl())
    except (SettingsError, ValueError) as error:
        raise http.ProviderError(f"{name} does not use HTTPS") from error  # no translation
    return url


def _unavailable(settings: OidcSettings, error: Exception) -> DomainError:
    log.warning("OpenID Connect provider: %s", error)
    message = _(
        "%(provider)s does not respond as expected. Try again later, or sign in another way.", provider=settings.name
    )
    return DomainError("oidc_unavailable", message, 503)


def _invalid(settings: OidcSettings, error: Exception | str) -> DomainError:
    log.warning("OpenID Connect response rejected: %s", error)
    message = _("The response of %(provider)s is not valid. Try again, or sign in another way.", provider=settings.name)
    return DomainError("oidc_invalid", message, 422)
