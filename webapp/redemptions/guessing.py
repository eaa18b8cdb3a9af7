"""Detect guessing: failed attempts at an existing code with other email addresses.

A failed attempt is an existing code with an email address that may not redeem it. All processes count them per offer
and minute, for an hour, in one small table. Too many in ten minutes block the form for that code; too many in an hour
raise an alert for staff, which ends an hour after the last failed attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from webapp.core.extensions import db
from webapp.redemptions import personal_codes

# Fewer failed attempts per hour are usually typing errors, or customers with two email addresses.
ALERT_MIN_ATTEMPTS = 30
# About one in twenty attempts is a typing error; more than one failed attempt per four redemptions is suspicious.
ALERT_REDEMPTIONS_PER_ATTEMPT = 4
# More attempts than a single client address may make in ten minutes (60 a minute), so that it cannot block a code.
BLOCK_MIN_ATTEMPTS = 1000
BLOCK_RETRY_AFTER_SECONDS = 60

_SELECT_RECENT_ATTEMPTS = """
    select m.offer_id, m.attempts from (
      select offer_id, sum(n) as attempts from code_miss
      where minute > now() - cast(:window as interval) {of_offer}
      group by offer_id having sum(n) >= :min_attempts
    ) m
    where m.attempts * :ratio > (
      -- Count no further than the comparison needs.
      select count(*) from (
        select from redemption r
        where r.offer_id = m.offer_id and r.redeemed_at > now() - cast(:window as interval) limit m.attempts * :ratio
      ) used
    )
"""
_OFFER_OF_CODE = """and offer_id = (
        select offer_id from offer_code where code = any(:codes) and closed_at is null
        order by length(code) desc limit 1
      )"""
_SELECT_BLOCKED = text(_SELECT_RECENT_ATTEMPTS.format(of_offer=_OFFER_OF_CODE))
_SELECT_ALERTS = text(_SELECT_RECENT_ATTEMPTS.format(of_offer="and offer_id = any(:offer_ids)"))
_SELECT_TOP_ALERTS = text(f"{_SELECT_RECENT_ATTEMPTS.format(of_offer='')} order by m.attempts desc limit :limit")
_ALERT_VALUES = {"window": "1 hour", "min_attempts": ALERT_MIN_ATTEMPTS, "ratio": ALERT_REDEMPTIONS_PER_ATTEMPT}


def is_code_blocked(code: str) -> bool:
    """Return whether failed attempts block the form for a normalised code.

    The code may be a shared or a personal one. A code with more redemptions than failed attempts is never blocked: that
    is a launch, not guessing.
    """
    shared_code, _ = personal_codes.split_personal_code(code)
    values = {"codes": [code, shared_code], "window": "10 minutes", "min_attempts": BLOCK_MIN_ATTEMPTS, "ratio": 1}
    with _autocommit_connection() as connection:
        return connection.execute(_SELECT_BLOCKED, values).first() is not None


def find_guessing_alerts(offer_ids: Sequence[int]) -> dict[int, int]:
    """Return the guessing alerts of these offers.

    :returns: the failed attempts in the last hour, by offer id.
    """
    rows = db.session.execute(_SELECT_ALERTS, _ALERT_VALUES | {"offer_ids": list(offer_ids)})
    return {offer_id: int(attempts) for offer_id, attempts in rows}


def list_top_guessing_alerts(limit: int) -> dict[int, int]:
    """Return the guessing alerts of all offers, highest number of attempts first.

    :returns: the failed attempts in the last hour, by offer id.
    """
    rows = db.session.execute(_SELECT_TOP_ALERTS, _ALERT_VALUES | {"limit": limit})
    return {offer_id: int(attempts) for offer_id, attempts in rows}


def _autocommit_connection() -> Connection:
    # Uses its own connection, so that the request keeps no transaction open while it redeems.
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
    """Count a failed attempt at an offer's code.

    Commits in its own transaction, independently of that of the request.
    """
    with db.engine.begin() as connection:
        connection.execute(_INCREMENT_FAILED_ATTEMPTS, {"offer_id": offer_id})
