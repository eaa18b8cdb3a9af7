"""The kinds of data with a retention period, and their settings."""

from __future__ import annotations

from typing import Literal, get_args

from flask import current_app

from webapp.core.settings import Settings

RetentionKind = Literal["customers", "redemptions", "deliveries", "audit"]
RETENTION_KINDS: tuple[RetentionKind, ...] = get_args(RetentionKind)


def get_retention_days(kind: RetentionKind) -> int:
    """Return the retention period of a kind of data in days; 0 to keep it."""
    settings: Settings = current_app.config["SETTINGS"]
    return {
        "customers": settings.retention_customer_days,
        "redemptions": settings.retention_redemption_days,
        "deliveries": settings.retention_delivery_days,
        "audit": settings.retention_audit_days,
    }[kind]
