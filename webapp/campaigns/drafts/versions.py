"""Which words somebody had before them when they began to write, so that nobody overwrites what they have not seen."""

from __future__ import annotations

from hashlib import sha256

from webapp.campaigns.models import Campaign

VERSIONED_FIELDS = ("subject", "text", "html", "uncertain_policy")
# What a form carries that was opened before there was a draft.
NO_DRAFT = "none"


def draft_version(campaign: Campaign | None) -> str:
    """A short word for the stored words of a draft; one part for each field."""
    if campaign is None:
        return NO_DRAFT
    return ".".join(sha256(getattr(campaign, name).encode()).hexdigest()[:12] for name in VERSIONED_FIELDS)


def find_changed_fields(seen: str, campaign: Campaign) -> list[str]:
    """The fields that differ from what was seen; all of them where that was nothing, or can't be read."""
    parts, now = seen.split("."), draft_version(campaign).split(".")
    if len(parts) != len(now):
        return list(VERSIONED_FIELDS)
    return [name for name, old, new in zip(VERSIONED_FIELDS, parts, now, strict=True) if old != new]
