"""Erase personal data from the deliveries of customers who are erased."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.core.extensions import db

# Filtered by campaign, which the primary key of `mail_issue` starts with; this needs no index on `customer_id` alone.
_CLEAR_REPLY_TEXTS_SQL = text(
    """
    update mail_issue set text = ''
    where campaign_id in (select id from campaign) and customer_id = any(:ids) and text <> '' and state <> 'skipped'
    """
)


def clear_reply_texts(customer_ids: Sequence[int]) -> None:
    """Erase the relay replies stored for these customers.

    They often contain the email address (GDPR, article 17). Delivery states and all counts stay. The caller commits.
    """
    db.session.execute(_CLEAR_REPLY_TEXTS_SQL, {"ids": list(customer_ids)})
