"""Codes of authenticator apps (TOTP, RFC 6238) and the encryption of their secrets.

Six digits, SHA-1 and steps of 30 seconds: the parameters that all apps support.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
from datetime import datetime
from functools import lru_cache

import pyotp
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flask import current_app

log = logging.getLogger(__name__)

STEP_SECONDS = 30
# Codes of the previous and the next step are accepted, since clocks differ and typing takes time (RFC 6238, 5.2).
ACCEPTED_STEPS = (0, -1, 1)
_NONCE_BYTES = 12


class SecretUnreadable(Exception):
    """The secret cannot be decrypted: SECRET_KEY has changed since it was stored."""


def generate_totp_secret() -> str:
    """Return a random secret of 160 bits in Base32 (RFC 4226, 4: recommended length)."""
    return pyotp.random_base32(32)


def encrypt_totp_secret(secret: str, user_id: int, setup_session_id: int | None = None) -> bytes:
    """Encrypt a secret with a key derived from SECRET_KEY (HKDF, AES-256-GCM), for one user.

    :param setup_session_id: the only session that may read the secret, while the app is being set up.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _get_cipher().encrypt(nonce, secret.encode(), _associated_data(user_id, setup_session_id))


def decrypt_totp_secret(encrypted: bytes, user_id: int, setup_session_id: int | None = None) -> str:
    """Return the secret that `encrypt_totp_secret` has encrypted for this user and session.

    :raises SecretUnreadable: when SECRET_KEY has changed, or the secret is that of another user or session.
    """
    data = _associated_data(user_id, setup_session_id)
    try:
        plain = _get_cipher().decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], data)
    except (InvalidTag, ValueError) as error:
        # During the set-up, another session of the user is a normal cause.
        if setup_session_id is None:
            log.error("the secret of the authenticator app of user %d cannot be decrypted", user_id)
        raise SecretUnreadable from error
    return plain.decode()


def find_totp_step(secret: str, code: str, at: datetime) -> int | None:
    """Return the time step that a code is valid for at a time; None for a wrong code.

    All accepted steps are compared, so that the time does not depend on the result. Spaces in the code are ignored.
    """
    digits = re.sub(r"\s", "", code)
    # Comparing texts of other characters raises an error.
    candidate = digits if re.fullmatch(r"[0-9]{6}", digits) else ""
    generator = pyotp.TOTP(secret)
    now = int(at.timestamp()) // STEP_SECONDS
    steps = [
        now + offset
        for offset in ACCEPTED_STEPS
        if hmac.compare_digest(generator.generate_otp(now + offset), candidate)
    ]
    return steps[0] if steps else None


def build_provisioning_uri(secret: str, email: str, issuer: str) -> str:
    """Return the `otpauth://` URI of a secret, which apps read from a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=email, issuer_name=issuer)


def _associated_data(user_id: int, setup_session_id: int | None) -> bytes:
    # A row that was copied to another user cannot be decrypted.
    setup = "" if setup_session_id is None else f":setup:{setup_session_id}"
    return f"totp:{user_id}{setup}".encode()


def _get_cipher() -> AESGCM:
    return _derive_cipher(current_app.config["SECRET_KEY"])


@lru_cache(maxsize=8)
def _derive_cipher(secret_key: str) -> AESGCM:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"onecode totp secret").derive(secret_key.encode())
    return AESGCM(key)
