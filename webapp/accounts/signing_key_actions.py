"""Renewing and retiring the keys that sign personal codes, personal links, references and API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from webapp.accounts import queries as account_queries
from webapp.accounts.actions import record_audit_entry
from webapp.core import signing_keys
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.core.signing_keys import KeyVersion


@dataclass(frozen=True)
class SigningKeyPurpose:
    """What a key is for. `stops` says what retiring a version ends, `keep` why that can't be done here."""

    name: str
    title: str
    description: str
    revocation_effect: str = ""
    revocation_blocker: str = ""


SIGNING_KEY_PURPOSES = {
    purpose.name: purpose
    for purpose in (
        SigningKeyPurpose(
            "personal_code",
            "Personal codes",
            "The ending that makes a shared code a customer's own. Mails that are out carry it.",
            revocation_effect="Personal codes that were made with it stop working at once: those in mails, and those "
            "that shops have kept. Personal links go on working, and each next mail carries a code that works.",
        ),
        SigningKeyPurpose(
            "personal_link",
            "Personal links",
            "The links in mails that open the form filled in, and later show the receipt.",
            revocation_effect="Personal links that were made with it lead nowhere, within a minute: neither to "
            "the form nor to the receipt. Their owners can still type code and e-mail, and each next mail "
            "carries a link that works.",
        ),
        SigningKeyPurpose(
            "redemption_id",
            "References of redemptions",
            "What stands on receipts and in the books of shops.",
            revocation_blocker="Receipts that are out there must be found for ever, so no version is ever retired.",
        ),
        SigningKeyPurpose(
            "api_key",
            "API keys",
            "What checks the keys of shops and tills.",
            revocation_blocker="Retiring a version would refuse every API key of its time. "
            "Revoke the API keys themselves.",
        ),
    )
}
# A process remembers the keys for a minute, so that long one may have gone on writing mails with the older one.
REVOCATION_DELAY = timedelta(seconds=signing_keys.CACHE_SECONDS + 30)


def rotate_signing_key(purpose: str, by: str) -> int:
    """Make a new key, which signs from now on (in every process within a minute); the version. Commits.

    What older ones have signed goes on being accepted.

    :raises NotFound: when there is no such purpose.
    """
    _get_purpose(purpose)
    # There is a first one in any case, which may have signed something a moment ago.
    signing_keys.accepted_keys(purpose)
    signing_keys.lock_signing_keys()
    version = signing_keys.add_key_version(purpose)
    record_audit_entry(by, "key.renewed", purpose, version=version)
    db.session.commit()
    signing_keys.clear_key_cache()
    return version


def revoke_signing_key(purpose: str, version: int, by: str) -> None:
    """Accept what a version has signed no longer, for good. Retiring a retired one changes nothing. Commits.

    :raises NotFound: when there is no such purpose or version.
    :raises DomainError: `conflict` for a purpose whose keys are kept, for the version that signs now, and as long as
        some process may still be signing with it.
    """
    known = _get_purpose(purpose)
    if known.revocation_blocker:
        raise DomainError("conflict", known.revocation_blocker, 409)
    signing_keys.lock_signing_keys()
    found = {row.version: row for row in signing_keys.list_key_versions(purpose)}
    if version not in found:
        raise NotFound(f"There is no version {version} of this key.")
    if found[version].retired_at is None:
        _check_revocable(found, version)
        signing_keys.revoke_key_version(purpose, version)
        record_audit_entry(by, "key.retired", purpose, version=version)
    db.session.commit()
    signing_keys.clear_key_cache()


def _check_revocable(found: dict[int, KeyVersion], version: int) -> None:
    later = [number for number in found if number > version]
    if not later:
        raise DomainError("conflict", f"Version {version} signs now. Renew the key first, then retire this one.", 409)
    wait = found[min(later)].created_at + REVOCATION_DELAY - account_queries.fetch_database_time()
    if wait > timedelta():
        raise DomainError(
            "conflict",
            f"Version {version} was renewed a moment ago, and mails may still be written with it. "
            f"Retire it in {int(wait.total_seconds()) + 1} seconds.",
            409,
        )


def _get_purpose(purpose: str) -> SigningKeyPurpose:
    if purpose not in SIGNING_KEY_PURPOSES:
        raise NotFound(f"There is no key for {purpose}. Choose from {', '.join(SIGNING_KEY_PURPOSES)}.")
    return SIGNING_KEY_PURPOSES[purpose]
