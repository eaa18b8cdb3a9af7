"""Erase personal data of erased customers and users from campaigns and deliveries."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.campaigns.models import STAFF_PAUSE_PREFIX
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


_REPLACE_STAFF_SQL = (
    text("update campaign set launched_by = :label where launched_by = :email"),
    text("update campaign set pause_reason = :prefix || :label where pause_reason = :prefix || :email"),
    # Dismissed deliveries name the user who dismissed them.
    text(
        """
        update mail_issue set text = replace(text, :email, :label)
        where campaign_id in (select id from campaign) and state = 'left' and strpos(text, :email) > 0
        """
    ),
)


def replace_staff_in_campaigns(email: str, label: str) -> None:
    """Replace the email address of an erased user in campaigns and dismissed deliveries. The caller commits."""
    for statement in _REPLACE_STAFF_SQL:
        values = {"email": email, "label": label, "prefix": STAFF_PAUSE_PREFIX}
        db.session.execute(statement, {name: values[name] for name in statement.compile().params})
