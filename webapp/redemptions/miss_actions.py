"""Counting misses of a code; `misses` says what they are and who looks at them."""

from __future__ import annotations

from sqlalchemy import text

from webapp.extensions import db

_COUNT = text(
    """
    insert into code_miss (offer_id, slot, minute, n)
    values (:offer_id, extract(minute from now()), date_trunc('minute', now()), 1)
    on conflict (offer_id, slot) do update
    set n = case when code_miss.minute = excluded.minute then code_miss.n + 1 else 1 end, minute = excluded.minute
    """
)


def count(offer_id: int) -> None:
    """One more miss of an offer's code. Commits, in a transaction of its own, whatever the request's does."""
    with db.engine.begin() as connection:
        connection.execute(_COUNT, {"offer_id": offer_id})
