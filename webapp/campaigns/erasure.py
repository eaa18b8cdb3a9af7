"""Erase personal data of deleted customers from campaign records (GDPR, article 17)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.core.extensions import db

# Filtered by campaign, which the primary key of mail_issue starts with; this needs no index on customer_id alone.
_CLEAR_REPLY_TEXTS_SQL = text(
    """
    update mail_issue set text = ''
    where campaign_id in (select id from campaign) and customer_id = any(:ids) and text <> '' and state <> 'skipped'
    """
)


def clear_reply_texts(customer_ids: Sequence[int]) -> None:
    """Clear the relay replies stored for these customers; they often repeat the address.

    Delivery states and all counts stay. The caller commits.
    """
    db.session.execute(_CLEAR_REPLY_TEXTS_SQL, {"ids": list(customer_ids)})
