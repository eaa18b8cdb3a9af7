"""Rotate and revoke the signing keys that can be rotated.

They sign personal codes, personal links, redemption references and API keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext

from webapp.accounts.audit import record_audit_entry
from webapp.core import database_clock, signing_keys
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.core.signing_keys import KeyVersion


@dataclass(frozen=True)
class SigningKeyPurpose:
    """The purpose of a signing key, with lazily translated texts.

    :ivar revocation_effect: what stops working when a version is revoked.
    :ivar revocation_blocker: why versions cannot be revoked; empty when they can.
    """

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
            _l("Personal codes"),
            _l("The suffix that makes a shared code personal. Emails that were sent contain it."),
            revocation_effect=_l(
                "Personal codes signed with this version stop working immediately, in sent emails and in the records "
                "of shops. Personal links keep working, and future emails contain new codes."
            ),
        ),
        SigningKeyPurpose(
            "personal_link",
            _l("Personal links"),
            _l("The links in emails that open a customer's offer, and later the receipt."),
            revocation_effect=_l(
                "Personal links signed with this version stop working within a minute, for the offer and the receipt. "
                "Customers can still enter their code and email address, and future emails contain new links."
            ),
        ),
        SigningKeyPurpose(
            "redemption_id",
            _l("Redemption references"),
            _l("The references on receipts and in the records of shops."),
            revocation_blocker=_l("References on receipts must stay valid, so versions of this key are never revoked."),
        ),
        SigningKeyPurpose(
            "api_key",
            _l("API keys"),
            _l("Verifies the API keys of shops and tills."),
            revocation_blocker=_l(
                "Revoking a version would revoke every API key created with it. Revoke individual API keys instead."
            ),
        ),
    )
}
# Processes cache the keys for a minute, so one may have signed emails with the older key during that time.
REVOCATION_DELAY = timedelta(seconds=signing_keys.CACHE_SECONDS + 30)


def rotate_signing_key(purpose: str, by: str) -> int:
    """Create a new key version; return its number. Commits.

    It signs from now on, in every process within a minute. Signatures of older versions are still accepted.

    :raises NotFound: when there is no such purpose.
    """
    _get_purpose(purpose)
    # Creates version 1 if there is none; it counts as used, since another process may have just signed with it.
    signing_keys.list_accepted_keys(purpose)
    signing_keys.lock_signing_keys()
    version = signing_keys.add_key_version(purpose)
    record_audit_entry(by, "key.renewed", purpose, version=version)
    db.session.commit()
    signing_keys.clear_key_cache()
    return version


def revoke_signing_key(purpose: str, version: int, by: str) -> None:
    """Revoke a key version permanently. Idempotent. Commits.

    Its signatures are no longer accepted.

    :raises NotFound: when there is no such purpose or version.
    :raises DomainError: `conflict` for a purpose whose versions cannot be revoked, for the version that signs now, and
        as long as a process may still be signing with the version.
    """
    blocker = _get_purpose(purpose).revocation_blocker
    if blocker:
        raise DomainError("conflict", blocker, 409)
    signing_keys.lock_signing_keys()
    versions = {row.version: row for row in signing_keys.list_key_versions(purpose)}
    if version not in versions:
        raise NotFound(_("This key has no version %(version)s.", version=version))
    if versions[version].revoked_at is None:
        _check_revocable(versions, version)
        signing_keys.revoke_key_version(purpose, version)
        record_audit_entry(by, "key.retired", purpose, version=version)
    db.session.commit()
    signing_keys.clear_key_cache()


def _check_revocable(versions: dict[int, KeyVersion], version: int) -> None:
    newer_versions = [number for number in versions if number > version]
    if not newer_versions:
        message = _(
            "Version %(version)s is the current version. Rotate the key first, then revoke this version.",
            version=version,
        )
        raise DomainError("conflict", message, 409)
    remaining = versions[min(newer_versions)].created_at + REVOCATION_DELAY - database_clock.get_database_time()
    if remaining > timedelta():
        message = ngettext(
            "The key was rotated a moment ago, and emails may still be signed with version %(version)s. "
            "Revoke it in %(num)s second.",
            "The key was rotated a moment ago, and emails may still be signed with version %(version)s. "
            "Revoke it in %(num)s seconds.",
            int(remaining.total_seconds()) + 1,
            version=version,
        )
        raise DomainError("conflict", message, 409)


def _get_purpose(purpose: str) -> SigningKeyPurpose:
    if purpose not in SIGNING_KEY_PURPOSES:
        raise NotFound(
            _(
                "There is no key for %(purpose)s. Choose one of: %(purposes)s.",
                purpose=purpose,
                purposes=", ".join(SIGNING_KEY_PURPOSES),
            )
        )
    return SIGNING_KEY_PURPOSES[purpose]
