"""Password hashes (argon2id)."""

from __future__ import annotations

import secrets
import unicodedata
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import current_app

PASSWORD_MIN, PASSWORD_MAX = 10, 200

# One lane, so that a sign-in takes one core for about 50 ms. Tests put a cheap profile into app.config["ARGON2"].
PROFILE = {"time_cost": 2, "memory_cost": 32 * 1024, "parallelism": 1}


def hashed(password: str) -> str:
    """A salted hash with its parameters, to be stored."""
    return _hasher().hash(_same_however_typed(password))


def matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher().verify(password_hash, _same_however_typed(password))
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(password_hash: str) -> bool:
    """Whether the hash was made with other parameters than those of today."""
    return _hasher().check_needs_rehash(password_hash)


def refuse_slowly(password: str) -> None:
    """Do the work of a comparison for somebody who does not exist, so that the time taken tells nothing."""
    matches(_decoy(_hasher()), password)


def _same_however_typed(password: str) -> str:
    # Keyboards and systems compose accents differently.
    return unicodedata.normalize("NFKC", password)


def _hasher() -> PasswordHasher:
    return _made(**current_app.config.get("ARGON2", PROFILE))


@lru_cache
def _made(time_cost: int, memory_cost: int, parallelism: int) -> PasswordHasher:
    return PasswordHasher(time_cost, memory_cost, parallelism)


@lru_cache
def _decoy(hasher: PasswordHasher) -> str:
    return hasher.hash(secrets.token_urlsafe())
