"""Count failed sign-ins, refused requests, and views of personal data.

Each access is one upsert in its own transaction, so a million failures of one account and address in a minute are one
row. Nothing that a stranger enters is stored: the statement looks up the account, and counts unknown ones without it.

The number of rows is bounded as well. When a minute (or hour) has many rows of a kind, further accesses are counted
without address, session and subject. Each access also deletes a few rows that are older than `RETENTION_DAYS`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from flask_babel import lazy_gettext as _l
from sqlalchemy import text

from webapp.core import database_health
from webapp.core.extensions import db

log = logging.getLogger(__name__)

# Rows of one kind in one minute. Strangers can cause seven of the kinds, so they create at most 700 rows a minute.
MAX_REFUSAL_ROWS = 100
# Rows of one kind and one account in one hour.
MAX_VIEW_ROWS = 1000
RETENTION_DAYS = 90
CLEANUP_CHUNK_SIZE = 10

REFUSAL_LABELS: Mapping[str, str] = {
    "sign_in.failed": _l("Sign-in failed"),
    "sign_in.locked": _l("Sign-in refused after too many attempts"),
    "link.refused": _l("Invitation or password reset link refused"),
    "api_key.refused": _l("API key refused"),
    "scope.refused": _l("Scope of the API key not sufficient"),
    "role.refused": _l("Role of the user not sufficient"),
    "csrf.refused": _l("Form refused: no valid token, or sent from another site"),
    "request.refused": _l("Request malformed or too large"),
    "rate_limit.exceeded": _l("Too many requests"),
}
VIEW_LABELS: Mapping[str, str] = {
    "customer.viewed": _l("Customer viewed"),
    "customers.listed": _l("Customers listed"),
    "recipients.listed": _l("Recipients of a campaign listed"),
    "redemption.viewed": _l("Redemption viewed"),
    "redemptions.listed": _l("Redemptions listed"),
    "rejected_rows.listed": _l("Rejected rows of an import listed"),
    "suppressions.listed": _l("Suppression list viewed"),
}
ACCESS_LABELS: Mapping[str, str] = {**REFUSAL_LABELS, **VIEW_LABELS}


@dataclass(frozen=True, slots=True)
class Access:
    """One access to count.

    :param kind: a key of `ACCESS_LABELS`.
    :param account: the email address of the signed-in user, or the actor of an API key.
    :param entered_email: a normalised email address that was entered; it is counted only if it is that of a user.
    :param public_id: the public id of an API key that was sent; it is counted only if there is such a key.
    :param subject: what was viewed or refused, such as `customer 17`, `authenticator app` or `/settings/people`.
    """

    kind: str
    address: str
    account: str = ""
    entered_email: str | None = None
    public_id: str | None = None
    staff_session_id: int = 0
    subject: str = ""


# The settings end with this transaction. A lost count does no harm, so the statement does not wait for the disk, and at
# most a second for a row that all threads increment during an attack.
_COUNT = text(
    """
    with settings as materialized (
      select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
    ), access as materialized (
      select date_trunc(:unit, coalesce(cast(:at as timestamptz), now()), 'UTC') as period, cast(:kind as text) as kind,
        coalesce(
          (select email from staff_user where email = :entered_email),
          (select 'API key ' || name from api_key where public_id = :public_id),
          :account
        ) as account
      from settings
    ), bounded as (
      select a.*, exists (
        select from access_count c
        where c.period = a.period and c.kind = a.kind and c.account = a.account and c.address = :address
          and c.staff_session_id = :staff_session_id and c.subject = :subject
      ) or (
        select count(*) < :max_rows from (
          select from access_count c
          where c.period = a.period and c.kind = a.kind and (not :is_bound_per_account or c.account = a.account)
          limit :max_rows
        ) counted
      ) as is_counted_in_detail
      from access a
    ), deleted as (
      delete from access_count where id = any (array(
        select id from access_count where period < now() - make_interval(days => :retention_days)
        order by period limit :chunk_size for update skip locked
      ))
    )
    insert into access_count as c (period, kind, account, address, staff_session_id, subject, n)
    select period, kind, account, case when is_counted_in_detail then :address else '' end,
      case when is_counted_in_detail then cast(:staff_session_id as bigint) else 0 end,
      case when is_counted_in_detail then :subject else '' end, 1
    from bounded
    on conflict (period, kind, account, address, staff_session_id, subject) do update set n = c.n + 1
    """
)


def count_accesses(accesses: Iterable[Access], at: datetime | None = None) -> None:
    """Count accesses, each in its own transaction.

    A failure is logged and never raised.

    :param at: when they happened; now by default.
    """
    try:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for access in accesses:
                is_view = access.kind in VIEW_LABELS
                limits = {
                    "unit": "hour" if is_view else "minute",
                    "max_rows": MAX_VIEW_ROWS if is_view else MAX_REFUSAL_ROWS,
                    "is_bound_per_account": is_view,
                    "retention_days": RETENTION_DAYS,
                    "chunk_size": CLEANUP_CHUNK_SIZE,
                }
                connection.execute(_COUNT, asdict(access) | limits | {"at": at})
    except Exception as error:
        if not database_health.report_if_outage(error):
            log.warning("accesses were not counted: %s", getattr(error, "orig", error))
