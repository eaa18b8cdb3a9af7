"""Versions of a draft, for optimistic locking.

No edit overwrites changes that its author has not seen.
"""

from __future__ import annotations

from hashlib import sha256

from webapp.campaigns.models import Campaign

VERSIONED_FIELDS = ("subject", "text", "html", "uncertain_policy")
# The version in a form that was opened before the draft existed.
NO_DRAFT = "none"


def draft_version(campaign: Campaign | None) -> str:
    """Return the version of a stored draft: one hash per field, separated by dots."""
    if campaign is None:
        return NO_DRAFT
    return ".".join(sha256(getattr(campaign, name).encode()).hexdigest()[:12] for name in VERSIONED_FIELDS)


def find_changed_fields(expected_version: str, campaign: Campaign) -> list[str]:
    """Return the fields that differ from a version.

    All fields differ from `NO_DRAFT` and from an invalid version.
    """
    expected, current = expected_version.split("."), draft_version(campaign).split(".")
    if len(expected) != len(current):
        return list(VERSIONED_FIELDS)
    hashes = zip(VERSIONED_FIELDS, expected, current, strict=True)
    return [name for name, expected_hash, current_hash in hashes if expected_hash != current_hash]
