"""What campaigns know of people who want to be forgotten."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import text

from webapp.extensions import db

# Bounded, for a relay may say anything; what is quoted may have blanks in it (RFC 5321).
_ADDRESS = re.compile(r"(?:\"[^\"@]{1,64}\"|\S{0,320})@\S{1,320}")

# By campaign, for a mail is found by its campaign first: no index over all customers has to be kept for this.
_WORDS = text(
    """
    update mail_issue set text = ''
    where campaign_id in (select id from campaign) and customer_id = any(:ids) and text <> '' and state <> 'skipped'
    """
)


def without_addresses(words: str) -> str:
    """A relay's words about a whole mailing without anything that looks like an address: they are kept and logged
    beyond the customer whom they happened to be about."""
    return _ADDRESS.sub("…", words[:2_000])


def forget(customer_ids: Sequence[int]) -> None:
    """Empty the relay's words about mails to these customers, which often repeat the address. What became of the mail
    stays, and so does every count. The caller commits."""
    db.session.execute(_WORDS, {"ids": list(customer_ids)})
