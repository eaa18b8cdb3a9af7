"""What campaigns know of people who want to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from webapp.core.extensions import db

# By campaign, for a mail is found by its campaign first: no index over all customers has to be kept for this.
_CLEAR_REPLY_TEXTS_SQL = text(
    """
    update mail_issue set text = ''
    where campaign_id in (select id from campaign) and customer_id = any(:ids) and text <> '' and state <> 'skipped'
    """
)


def clear_reply_texts(customer_ids: Sequence[int]) -> None:
    """Empty the relay's words about mails to these customers, which often repeat the address. What became of the mail
    stays, and so does every count. The caller commits."""
    db.session.execute(_CLEAR_REPLY_TEXTS_SQL, {"ids": list(customer_ids)})
