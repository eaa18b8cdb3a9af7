"""Normalise, hash and redact email addresses."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import idna
from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput

# Bounded, since a relay may send any text; a quoted local part may contain spaces (RFC 5321).
_EMAIL_ADDRESS = re.compile(r"(?:\"[^\"@]{1,64}\"|\S{0,320})@\S{1,320}")


def redact_email_addresses(text: str) -> str:
    """Return the start of a text without anything that looks like an email address.

    It returns the first 2,000 characters. It is for replies of a relay, which are stored with a campaign and logged, so
    they are kept longer than the customer.
    """
    return _EMAIL_ADDRESS.sub("…", text[:2_000])


MAX_EMAIL_LENGTH = 254
# Prefix of the hashed address of an erased customer on the suppression list.
HASHED_EMAIL_PREFIX = "sha256:"
# Matches nearly every address; all others are handled by the slow path in `normalise_email`.
_COMMON_ADDRESS = re.compile(
    r"[A-Za-z0-9_+-]++(?:\.[A-Za-z0-9_+-]++)*+"
    r"@(?:[A-Za-z0-9]{1,20}+(?:-[A-Za-z0-9]{1,20}+){0,2}+\.){1,4}+[A-Za-z]{2,20}+"
)
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_ASCII_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])")


def hash_email(email: str) -> str:
    """Return the suppression list entry for the email address of an erased customer.

    :param email: the normalised email address.
    """
    return f"{HASHED_EMAIL_PREFIX}{hashlib.sha256(email.encode()).hexdigest()}"


def normalise_email(raw_email: str) -> str:
    """Return the canonical form of an email address, for comparisons.

    It is trimmed and NFC-normalised, the local part lower-cased, the domain an IDNA 2008 A-label. Plus-tags and dots
    are kept. The local part is lower-cased and not case-folded: `strauß` is not `strauss`.

    :raises InvalidInput: `email_missing` when it is blank; `email_invalid` when it is not a deliverable address
        (RFC 5321 lengths, RFC 5322 dot-atom).
    """
    if len(raw_email) <= MAX_EMAIL_LENGTH and raw_email.find("@") <= 64 and _COMMON_ADDRESS.fullmatch(raw_email):
        return raw_email.lower()
    address = raw_email.strip()
    local, at, domain = address.rpartition("@")
    if not at or len(address) > MAX_EMAIL_LENGTH:
        raise _email_error(raw_email)
    if address.isascii():
        domain = domain.lower()
        if _ASCII_DOMAIN.fullmatch(domain) and "xn--" not in domain and len(local) <= 64 and _DOT_ATOM.fullmatch(local):
            return f"{local.lower()}@{domain}"
    return f"{_normalise_local_part(local, raw_email)}@{_normalise_domain(domain, raw_email)}"


def _normalise_local_part(local: str, raw_email: str) -> str:
    local = unicodedata.normalize("NFC", local).lower()
    punctuation = "".join(
        character
        for character in local
        if not character.isalnum() and unicodedata.category(character) not in ("Mn", "Mc")
    )
    is_allowed = re.fullmatch(r"[!#$%&'*+/=?^_`{|}~.-]*", punctuation)
    if (
        not local
        or len(local.encode("utf-8", "surrogatepass")) > 64
        or not is_allowed
        or local[0] == "."
        or local[-1] == "."
        or ".." in local
    ):
        raise _email_error(raw_email)
    return local


@lru_cache(maxsize=4096)
def _encode_domain(domain: str) -> str | None:
    try:
        label = idna.encode(unicodedata.normalize("NFC", domain), uts46=True, transitional=False).decode()
    except (idna.IDNAError, UnicodeError):
        return None
    return label if _ASCII_DOMAIN.fullmatch(label) and len(label) <= 253 else None


def _normalise_domain(domain: str, raw_email: str) -> str:
    label = _encode_domain(domain)
    if label is None:
        raise _email_error(raw_email)
    return label


def _email_error(raw_email: str) -> InvalidInput:
    if not raw_email.strip():
        return InvalidInput(FieldError("email", "email_missing", _("Enter an email address.")))
    return InvalidInput(
        FieldError(
            "email",
            "email_invalid",
            _("This email address is not valid. Check it for typing errors."),
        )
    )
