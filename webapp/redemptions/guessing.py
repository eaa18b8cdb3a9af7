"""Misses of a code: strangers who type a code that there is with an e-mail that it is not for.

Counted for each offer, minute by minute for an hour, by all processes in one small table. Too many at once close the
form for that code; too many in the hour raise an alarm for staff, which falls silent an hour after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from webapp.core.extensions import db
from webapp.redemptions import personal_codes

# Fewer in an hour are people who mistype or have two addresses.
ALERT_MIN_ATTEMPTS = 30
# Where many redeem, many mistype: one try in twenty is usual. One miss for four redemptions is not.
ALERT_REDEMPTIONS_PER_ATTEMPT = 4
# More in ten minutes than one address is allowed tries (60 a minute), so that nobody closes a code alone.
BLOCK_MIN_ATTEMPTS = 1000
BLOCK_RETRY_AFTER_SECONDS = 60

_SELECT_RECENT_ATTEMPTS = """
    select m.offer_id, m.n from (
      select offer_id, sum(n) as n from code_miss
      where minute > now() - cast(:window as interval) {of_offer}
      group by offer_id having sum(n) >= :least
    ) m
    where m.n * :share > (
      -- No further than it takes to know.
      select count(*) from (
        select from redemption r
        where r.offer_id = m.offer_id and r.redeemed_at > now() - cast(:window as interval) limit m.n * :share
      ) used
    )
"""
_OFFER_OF_CODE = """and offer_id = (
        select offer_id from offer_code where code = any(:codes) and closed_at is null
        order by length(code) desc limit 1
      )"""
_SELECT_BLOCKED = text(_SELECT_RECENT_ATTEMPTS.format(of_offer=_OFFER_OF_CODE))
_SELECT_ALERTS = text(_SELECT_RECENT_ATTEMPTS.format(of_offer="and offer_id = any(:offer_ids)"))
_SELECT_TOP_ALERTS = text(f"{_SELECT_RECENT_ATTEMPTS.format(of_offer='')} order by m.n desc limit :limit")
_ALERT_VALUES = {"window": "1 hour", "least": ALERT_MIN_ATTEMPTS, "share": ALERT_REDEMPTIONS_PER_ATTEMPT}


def is_code_blocked(code: str) -> bool:
    """Whether a normalised code, in whichever of its spellings, is being guessed at so hard that the form is closed
    for it. A code that more people redeem than miss stays open: that is a launch, not a guesser."""
    shared, _ = personal_codes.split_personal_code(code)
    asked = {"codes": [code, shared], "window": "10 minutes", "least": BLOCK_MIN_ATTEMPTS, "share": 1}
    with _autocommit_connection() as connection:
        return connection.execute(_SELECT_BLOCKED, asked).first() is not None


def find_guessing_alerts(offer_ids: Sequence[int]) -> dict[int, int]:
    """Those of these offers whose code is being guessed at, with their misses in the last hour."""
    rows = db.session.execute(_SELECT_ALERTS, _ALERT_VALUES | {"offer_ids": list(offer_ids)})
    return {offer_id: int(n) for offer_id, n in rows}


def list_top_guessing_alerts(limit: int) -> dict[int, int]:
    """The same of all offers, those with the most misses first."""
    rows = db.session.execute(_SELECT_TOP_ALERTS, _ALERT_VALUES | {"limit": limit})
    return {offer_id: int(n) for offer_id, n in rows}


def _autocommit_connection() -> Connection:
    # One of its own, so that the request holds no transaction open while it redeems.
    return db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


_INCREMENT_FAILED_ATTEMPTS = text(
    """
    insert into code_miss (offer_id, slot, minute, n)
    values (:offer_id, extract(minute from now()), date_trunc('minute', now()), 1)
    on conflict (offer_id, slot) do update
    set n = case when code_miss.minute = excluded.minute then code_miss.n + 1 else 1 end, minute = excluded.minute
    """
)


def record_failed_attempt(offer_id: int) -> None:
    """One more miss of an offer's code. Commits, in a transaction of its own, whatever the request's does."""
    with db.engine.begin() as connection:
        connection.execute(_INCREMENT_FAILED_ATTEMPTS, {"offer_id": offer_id})
