"""Passwords: the rule for new ones, and their hashes (argon2id).

The rule follows NIST SP 800-63B-4 (3.1.1.2) and OWASP ASVS 5.0 (6.2): a minimum length, no rules about the kinds of
characters, a list of common passwords, and an estimate of the number of guesses that knows the words of the account.
It applies when a password is set: older passwords still work.
"""

from __future__ import annotations

import math
import re
import secrets
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import current_app
from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.settings import Settings

MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 10, 200
# Only the start of a longer text is normalised, which takes a time that grows with the square of the number of accents
# in a row. The start is still too long for a password, since at most four characters are composed into one.
MAX_NORMALISED_LENGTH = 5 * MAX_PASSWORD_LENGTH
# The lowest accepted score of zxcvbn, from 0 to 4: more than 10^8 guesses. Without its punctuation, which zxcvbn
# overestimates between words, a password may have one less: more than 10^6.
MIN_PASSWORD_SCORE = 3
MAX_PUNCTUATION_SHARE = 0.3
# zxcvbn estimates only the start of a password, since its work grows faster than the length; and also with the number
# of ways to read digits and symbols as letters, which is bounded, too. Together: less than 0.2 s for any password.
MAX_ESTIMATED_LENGTH = 48
MAX_SUBSTITUTIONS = 4
# The 10,000 most common passwords that are long enough, in lower case and in the order of their frequency. From the
# list of ten million passwords that Mark Burnett released to the public domain in 2015.
COMMON_PASSWORDS_FILE = Path(__file__).with_name("common_passwords.txt")

# One thread, so that a sign-in takes one core for about 50 ms. Tests put cheap parameters into app.config["ARGON2"].
ARGON2_PARAMETERS = {"time_cost": 2, "memory_cost": 32 * 1024, "parallelism": 1}

# Returns the name of the shop; set by `create_app`, since `shop` is above this package.
load_shop_name: Callable[[], str] = lambda: ""  # noqa: E731

_WORD = re.compile(r"[^\W_]{3,}")
# Digits and symbols that are used for letters, and letters that look alike.
_LOOKALIKES = str.maketrans("4@83601!|l5$7+", "aabegoiiiisstt")

Match = dict[str, Any]


def check_new_password(password: str, name: str, email: str) -> None:
    """Check a password before it is set.

    :param name: of the user; it is easy to guess, like the parts of their email address and the name of the shop.
    :raises InvalidInput: at the field `password`: `password_length`, `password_common` or `password_weak`.
    """
    password = _normalise_password(password)
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        message = _("Use %(min)d to %(max)d characters.", min=MIN_PASSWORD_LENGTH, max=MAX_PASSWORD_LENGTH)
        raise InvalidInput(FieldError("password", "password_length", message))
    if password.casefold() in _load_common_passwords():
        message = _("This is a commonly used password. Choose another one, such as three or four random words.")
        raise InvalidInput(FieldError("password", "password_common", message))
    weakness = _find_weakness(password, name, email)
    if weakness:
        raise InvalidInput(FieldError("password", "password_weak", weakness))


@lru_cache(1)
def _load_common_passwords() -> frozenset[str]:
    return frozenset(COMMON_PASSWORDS_FILE.read_text("utf-8").split())


def _find_weakness(password: str, name: str, email: str) -> str | None:
    """Return why a password is easy to guess and what to do; None if it is not."""
    password = password[:MAX_ESTIMATED_LENGTH]
    without_words = _remove_words(password, _list_account_words(name, email))
    if without_words != password and _estimate_strength(without_words)[0] < MIN_PASSWORD_SCORE:
        return _(
            "This password is easy to guess, because it contains your name, your email address or the name of the "
            "shop. Leave them out, or add more random words."
        )
    score, matches = _estimate_strength(password)
    if score < MIN_PASSWORD_SCORE:
        return _explain_weakness(matches)
    without_punctuation = "".join(filter(str.isalnum, password))
    if len(without_punctuation) >= (1 - MAX_PUNCTUATION_SHARE) * len(password):
        score, matches = _estimate_strength(without_punctuation)
        if score < MIN_PASSWORD_SCORE - 1:
            return _explain_weakness(matches)
    without_years = _remove_words(password, _list_recent_years())
    if without_years != password and _estimate_strength(without_years)[0] < MIN_PASSWORD_SCORE:
        return _("This password is easy to guess, because it contains a recent year. Use random words instead.")
    return None


def _list_account_words(name: str, email: str) -> list[str]:
    """Return the words that someone who knows the account tries first."""
    local, _at, domain = email.rpartition("@")
    settings: Settings = current_app.config["SETTINGS"]
    texts = (name, local, email, domain.rpartition(".")[0], load_shop_name(), settings.shop_name, "onecode")
    return [word for text in texts for word in ("".join(_WORD.findall(text)), *_WORD.findall(text), text)]


def _list_recent_years() -> list[str]:
    """Return the years that zxcvbn does not recognise, until next year."""
    return [str(year) for year in range(2020, datetime.now(UTC).year + 2)]


def _remove_words(password: str, words: list[str]) -> str:
    """Return a password without these words, also where they are written with other characters or backwards."""
    folded, is_kept = _fold(password), [True] * len(password)
    for word in {_fold(_normalise_password(word)) for word in words if len(word) >= 3}:
        for found in re.finditer(f"{re.escape(word)}|{re.escape(word[::-1])}", folded):
            is_kept[found.start() : found.end()] = [False] * len(word)
    return "".join(char for char, kept in zip(password, is_kept, strict=True) if kept)


def _fold(text: str) -> str:
    """Return the text without case, accents and lookalikes; it has the same length."""
    return "".join(unicodedata.normalize("NFKD", char)[0].lower()[0] for char in text).translate(_LOOKALIKES)


def _estimate_strength(text: str) -> tuple[int, list[Match]]:
    """Return the score of zxcvbn and the parts into which it has divided the text."""
    # Imported here: its word lists take 0.2 s and 15 MB, which most processes never need. Its own parameter for the
    # words of the account is a global variable, which threads would share.
    from zxcvbn import zxcvbn

    if not text:
        return 0, []
    result = zxcvbn(_limit_substitutions(text), max_length=MAX_ESTIMATED_LENGTH)
    return result["score"], result["sequence"]


def _limit_substitutions(text: str) -> str:
    """Replace digits and symbols that stand for letters, if there are too many ways to do it.

    zxcvbn would try every combination of them, which takes seconds. It counts symbols and letters alike.
    """
    from zxcvbn.matching import L33T_TABLE

    used = {letter: [char for char in chars if char in text] for letter, chars in L33T_TABLE.items()}
    if math.prod(len(chars) or 1 for chars in used.values()) <= MAX_SUBSTITUTIONS:
        return text
    return text.translate({ord(char): letter for letter, chars in L33T_TABLE.items() for char in chars})


def _explain_weakness(matches: list[Match]) -> str:
    # The longest part with a pattern determines the explanation.
    match = max(matches, key=lambda match: (match["pattern"] != "bruteforce", len(match["token"])))
    if match.get("dictionary_name") == "passwords":
        return _(
            "This password is similar to a commonly used one. Choose another one, such as three or four random words."
        )
    if match["pattern"] == "repeat":
        return _("This password is easy to guess, because it repeats itself. Use three or four random words instead.")
    if match["pattern"] in ("sequence", "spatial"):
        return _(
            "This password is easy to guess, because it follows the order of the alphabet, of numbers or of the keys. "
            "Use three or four random words instead."
        )
    return _("This password is easy to guess. Make it longer: three or four random words make a good password.")


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
    return unicodedata.normalize("NFKC", password[:MAX_NORMALISED_LENGTH])


def _get_hasher() -> PasswordHasher:
    return _make_hasher(**current_app.config.get("ARGON2", ARGON2_PARAMETERS))


@lru_cache
def _make_hasher(time_cost: int, memory_cost: int, parallelism: int) -> PasswordHasher:
    return PasswordHasher(time_cost, memory_cost, parallelism)


@lru_cache
def _dummy_hash(hasher: PasswordHasher) -> str:
    return hasher.hash(secrets.token_urlsafe())
