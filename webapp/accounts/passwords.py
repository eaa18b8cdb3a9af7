"""Password hashes (argon2id)."""

from __future__ import annotations

import secrets
import unicodedata
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import current_app

MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 10, 200

# One thread, so that a sign-in takes one core for about 50 ms. Tests put cheap parameters into app.config["ARGON2"].
ARGON2_PARAMETERS = {"time_cost": 2, "memory_cost": 32 * 1024, "parallelism": 1}


def hash_password(password: str) -> str:
    """Return a salted hash with its parameters."""
    return _get_hasher().hash(_normalise_password(password))


def verify_password(password_hash: str, password: str) -> bool:
    """Return whether the password matches the hash; False for a malformed hash."""
    try:
        return _get_hasher().verify(password_hash, _normalise_password(password))
    except (VerificationError, InvalidHashError):
        return False


def needs_rehash(password_hash: str) -> bool:
    """Return whether the hash has other parameters than the current ones."""
    return _get_hasher().check_needs_rehash(password_hash)


def verify_dummy_password(password: str) -> None:
    """Do the work of a verification for an unknown user.

    Then the response time does not reveal that the user is unknown.
    """
    verify_password(_dummy_hash(_get_hasher()), password)


def _normalise_password(password: str) -> str:
    # Keyboards and operating systems compose accents differently.
    return unicodedata.normalize("NFKC", password)


def _get_hasher() -> PasswordHasher:
    return _make_hasher(**current_app.config.get("ARGON2", ARGON2_PARAMETERS))


@lru_cache
def _make_hasher(time_cost: int, memory_cost: int, parallelism: int) -> PasswordHasher:
    return PasswordHasher(time_cost, memory_cost, parallelism)


@lru_cache
def _dummy_hash(hasher: PasswordHasher) -> str:
    return hasher.hash(secrets.token_urlsafe())
