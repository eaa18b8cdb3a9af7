"""Passkeys (W3C Web Authentication, Level 2): where they work, options for browsers, verification of responses.

Importing the library takes a fifth of a second, so that functions import it when they need it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import current_app
from flask_babel import gettext as _

from webapp.accounts.factors.models import Passkey
from webapp.core import rate_limit
from webapp.core.errors import DomainError

if TYPE_CHECKING:
    from webauthn.authentication.verify_authentication_response import VerifiedAuthentication
    from webauthn.helpers.structs import PublicKeyCredentialDescriptor
    from webauthn.registration.verify_registration_response import VerifiedRegistration

log = logging.getLogger(__name__)

CHALLENGE_SECONDS = 300
# Larger than any response of an authenticator.
MAX_RESPONSE_CHARACTERS = 64 * 1024
_CHALLENGE_BYTES = 32
# A random value of up to 64 bytes without personal data (Level 2, 14.6.1).
_USER_HANDLE_BYTES = 32


@dataclass(frozen=True)
class RelyingParty:
    """The site that passkeys are created for: its host and its origin."""

    id: str
    origin: str


@dataclass(frozen=True)
class Challenge:
    """A challenge that a browser has been given, kept in its session until the response.

    :ivar issued_at: seconds since 1970.
    :ivar user_handle: identifies the user to the authenticator; only for a new passkey.
    """

    value: bytes
    issued_at: int
    user_handle: bytes = b""

    def dump(self) -> list[str | int]:
        """Return the challenge as JSON values."""
        return [_encode(self.value), self.issued_at, _encode(self.user_handle)]

    @classmethod
    def load(cls, data: object) -> Challenge | None:
        """Return the challenge that `dump` has returned; None for anything else."""
        match data:
            case [str(value), int(issued_at), str(user_handle)]:
                return cls(_decode(value), issued_at, _decode(user_handle))
        return None


def find_relying_party() -> RelyingParty | None:
    """Return the relying party of PUBLIC_URL; None where browsers offer no passkeys.

    They require a host name, and HTTPS except for localhost (Level 2, 5.1.2 and 13.4.9).
    """
    parts = urlsplit(current_app.config["SETTINGS"].public_url)
    host = parts.hostname or ""
    if _is_ip_address(host) or not (parts.scheme == "https" or host == "localhost"):
        return None
    default_port = {"https": 443, "http": 80}[parts.scheme]
    port = "" if parts.port in (None, default_port) else f":{parts.port}"
    return RelyingParty(host, f"{parts.scheme}://{host}{port}")


def get_relying_party() -> RelyingParty:
    """Return the relying party of PUBLIC_URL.

    :raises DomainError: `passkeys_unavailable` where browsers offer no passkeys.
    """
    party = find_relying_party()
    if party is None:
        raise DomainError("passkeys_unavailable", _("Passkeys do not work at the address of this server."))
    return party


def build_registration_options(
    user_email: str, user_name: str, known: Sequence[Passkey]
) -> tuple[dict[str, Any], Challenge]:
    """Return options for `navigator.credentials.create()` as JSON values, and their challenge.

    User verification is required, so that a passkey counts as both factors.
    """
    import webauthn
    from webauthn.helpers import structs

    party = get_relying_party()
    user_handle = known[0].user_handle if known else secrets.token_bytes(_USER_HANDLE_BYTES)
    challenge = Challenge(secrets.token_bytes(_CHALLENGE_BYTES), int(time.time()), user_handle)
    options = webauthn.generate_registration_options(
        rp_id=party.id,
        rp_name="Onecode",
        user_id=user_handle,
        user_name=user_email,
        user_display_name=user_name,
        challenge=challenge.value,
        timeout=CHALLENGE_SECONDS * 1000,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            resident_key=structs.ResidentKeyRequirement.PREFERRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=_describe_passkeys(known),
    )
    return _to_json(options), challenge


def build_authentication_options(allowed: Sequence[Passkey] = ()) -> tuple[dict[str, Any], Challenge]:
    """Return options for `navigator.credentials.get()` as JSON values, and their challenge.

    :param allowed: the passkeys of the user; empty if the authenticator is to offer those of any user.
    """
    import webauthn
    from webauthn.helpers import structs

    challenge = Challenge(secrets.token_bytes(_CHALLENGE_BYTES), int(time.time()))
    options = webauthn.generate_authentication_options(
        rp_id=get_relying_party().id,
        challenge=challenge.value,
        timeout=CHALLENGE_SECONDS * 1000,
        allow_credentials=_describe_passkeys(allowed),
        user_verification=structs.UserVerificationRequirement.REQUIRED,
    )
    return _to_json(options), challenge


def consume_challenge(challenge: Challenge | None) -> Challenge:
    """Use up a challenge, which works once and for `CHALLENGE_SECONDS`.

    :raises DomainError: `passkey_expired` when it was used, is older or is missing.
    """
    is_valid = (
        challenge is not None
        and 0 <= time.time() - challenge.issued_at <= CHALLENGE_SECONDS
        and rate_limit.use_once(f"passkey:{_encode(challenge.value)}", CHALLENGE_SECONDS)
    )
    if challenge is None or not is_valid:
        raise DomainError("passkey_expired", _("This took too long, or was already sent. Try again."), 422)
    return challenge


def verify_registration(response: str, challenge: Challenge) -> VerifiedRegistration:
    """Verify the response to `build_registration_options`.

    :raises DomainError: `passkey_invalid` when it is malformed, or made for another challenge or origin.
    """
    import webauthn

    party = get_relying_party()
    try:
        return webauthn.verify_registration_response(
            credential=_parse_response(response),
            expected_challenge=challenge.value,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
        )
    # The parsers of the library raise errors of many kinds for malformed data.
    except Exception as error:
        raise _invalid_response(error) from error


def verify_authentication(response: str, challenge: Challenge, passkey: Passkey) -> VerifiedAuthentication:
    """Verify the response to `build_authentication_options`, except for the sign count.

    :raises DomainError: `passkey_invalid` when it is malformed, or made for another challenge or origin.
    """
    import webauthn

    party = get_relying_party()
    try:
        return webauthn.verify_authentication_response(
            credential=_parse_response(response),
            expected_challenge=challenge.value,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=passkey.public_key,
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except Exception as error:
        raise _invalid_response(error) from error


def parse_credential(response: str) -> tuple[bytes, bytes | None]:
    """Return the credential id and the user handle of a response to `build_authentication_options`.

    :raises DomainError: `passkey_invalid` when it is malformed.
    """
    from webauthn.helpers import parse_authentication_credential_json

    try:
        credential = parse_authentication_credential_json(_parse_response(response))
        return credential.raw_id, credential.response.user_handle
    except Exception as error:
        raise _invalid_response(error) from error


def read_transports(response: str) -> list[str]:
    """Return how the browser reaches the authenticator of a verified new passkey."""
    from webauthn.helpers import parse_registration_credential_json

    return [transport.value for transport in parse_registration_credential_json(response).response.transports or []]


def _parse_response(response: str) -> dict[str, Any]:
    if len(response) > MAX_RESPONSE_CHARACTERS:
        raise ValueError("the response is too long")
    parsed = json.loads(response)
    if not isinstance(parsed, dict):
        raise TypeError("the response is not an object")
    return parsed


def _invalid_response(error: Exception) -> DomainError:
    log.info("passkey response rejected: %s: %s", type(error).__name__, error)
    return DomainError("passkey_invalid", _("This passkey could not be verified. Try again, or use another way."), 422)


def _describe_passkeys(passkeys: Sequence[Passkey]) -> list[PublicKeyCredentialDescriptor]:
    from webauthn.helpers import structs

    return [
        structs.PublicKeyCredentialDescriptor(
            id=passkey.credential_id,
            transports=[structs.AuthenticatorTransport(name) for name in passkey.transports],
        )
        for passkey in passkeys
    ]


def _to_json(options: Any) -> dict[str, Any]:
    from webauthn.helpers import options_to_json_dict

    return options_to_json_dict(options)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text)
