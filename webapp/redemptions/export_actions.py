"""Record exports of redemptions."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from webapp.accounts.audit import record_audit_entry
from webapp.core.extensions import db
from webapp.redemptions.queries import RedemptionFilter


def record_redemption_export(redemption_filter: RedemptionFilter | None, by: str) -> None:
    """Record an export of redemptions with its filter in the audit log. Commits.

    :param redemption_filter: the filter of the export; None when it can match nothing.
    """
    details = dataclasses.asdict(redemption_filter) if redemption_filter else {"found": "nothing"}
    details = {name: value for name, value in details.items() if value is not None}
    for name, value in details.items():
        details[name] = value.isoformat() if isinstance(value, datetime) else value
    record_audit_entry(by, "redemptions.exported", **details)
    db.session.commit()
