"""Write the rows of the demo.

These are import dates, API keys, redemptions, suppressions and the audit log.

No function commits.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import insert, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from local.demo import customers, scenario
from local.demo.redemptions import SimulatedRedemptions
from local.demo.scenario import MANAGER, DayConverter, OfferPlan
from webapp.accounts.models import ApiKey, AuditEntry
from webapp.core.extensions import db
from webapp.customers.models import Suppression
from webapp.offers.models import Offer, OfferCounter
from webapp.redemptions import public_ids
from webapp.redemptions.models import Redemption, Rollback
from webapp.shop.models import Shop

_BACKDATE_IMPORTS = (
    "update suppression set at = :suppressions_at",
    "update customer set created_at = case when source_id > :last_source_id then :sign_ups_at else :customers_at end",
    "update audience_member m set joined_at = c.created_at from customer c where c.id = m.customer_id",
    "update audience set created_at = :customers_at",
    """
    update customer_import set
      created_at = x.at, started_at = x.at + (started_at - created_at), finished_at = x.at + (finished_at - created_at)
    from (
      select id as import_id, case
        when status = 'failed' then cast(:failed_at as timestamptz)
        when kind = 'suppressions' then cast(:suppressions_at as timestamptz)
        when audience_id is null then cast(:customers_at as timestamptz)
        else cast(:sign_ups_at as timestamptz) end as at
      from customer_import
    ) x where x.import_id = id
    """,
    # The audit log is append-only; the owner of the table may switch that off, in this transaction.
    "alter table audit_entry disable trigger append_only",
    "update audit_entry a set at = i.created_at from customer_import i "
    "where a.action like '%.import' and cast(a.detail->>'id' as bigint) = i.id",
    "alter table audit_entry enable trigger append_only",
)
_INSERT_FAILED_ATTEMPTS = text(
    """
    insert into code_miss (offer_id, slot, minute, n)
    select offer_id, extract(minute from at), date_trunc('minute', at), 2 + ago % 3
    from unnest(cast(:offer_ids as bigint[])) offer_id, generate_series(2, 24) ago,
    lateral (select now() - make_interval(mins => ago)) x(at) on conflict do nothing
    """
)


def backdate_imports(day: DayConverter) -> None:
    """Change the time of all imports, and of all that they created, to some weeks ago."""
    values = {
        "customers_at": day(scenario.FIRST_DAY, 10, 12),
        "suppressions_at": day(scenario.FIRST_DAY, 10, 40),
        "sign_ups_at": day(scenario.SIGN_UP_DAY, 15, 5),
        "failed_at": day(-1, 11, 31),
        "last_source_id": f"MTH-{10_000 + customers.CUSTOMER_COUNT - customers.SIGN_UP_COUNT}",
    }
    for statement in _BACKDATE_IMPORTS:
        db.session.execute(text(statement), values)


def insert_api_keys(day: DayConverter) -> dict[str, int]:
    """Insert API keys with random, discarded secrets; return their ids by name."""
    ids = {}
    for name in scenario.API_KEY_NAMES:
        row = ApiKey(
            public_id=secrets.token_hex(8),
            name=name,
            secret_hash=secrets.token_bytes(32),
            key_version=1,
            scopes=["read", "redeem"],
            created_at=day(scenario.FIRST_DAY, 10, 55),
            revoked_at=None,
        )
        db.session.add(row)
        db.session.flush()
        ids[name] = row.id
    return ids


def insert_redemptions(
    plan: OfferPlan,
    offer_id: int,
    simulated: SimulatedRedemptions,
    launched_at: list[datetime],
    now: datetime,
    audit_log: list[dict[str, Any]],
) -> None:
    """Insert an offer's redemptions before `now` and its rollbacks.

    Also set its counter and the time at which it was frozen.
    """
    redemptions = [{"offer_id": offer_id, **row} for row in simulated.redemptions if row["redeemed_at"] < now]
    rollbacks = [{"offer_id": offer_id, **row} for row in simulated.rollbacks]
    for model, rows in ((Redemption, redemptions), (Rollback, rollbacks)):
        if rows:
            db.session.execute(insert(model), rows)
    for row in rollbacks:
        secret = public_ids.load_secret()
        reference = public_ids.encode_public_id(offer_id, row["customer_id"], row["redeemed_at"], secret)
        detail = {"customer": row["customer_id"], "reference": reference}
        audit_log.append(
            audit_entry(row["rolled_back_at"], "redemption.undone", plan.code, actor=row["rolled_back_by"], **detail)
        )
    uses = [*launched_at, *(row["redeemed_at"] for row in [*redemptions, *rollbacks])]
    db.session.execute(update(Offer).where(Offer.id == offer_id).values(frozen_at=min(uses, default=None)))
    if plan.max_redemptions:
        counter = update(OfferCounter).where(OfferCounter.offer_id == offer_id)
        db.session.execute(counter.values(redeemed=len(redemptions)))


def insert_suppressions(suppressions: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
    """Insert suppressions by email address before `now`.

    Those without a source are imported already.
    """
    rows = [{"email": email, **row} for email, row in suppressions.items() if "source" in row and row["at"] < now]
    db.session.execute(upsert(Suppression).on_conflict_do_nothing(), rows)


def insert_failed_attempts(offer_ids: Iterable[int]) -> None:
    """Insert recent failed attempts to redeem these offers.

    They raise the alert about guessing.
    """
    db.session.execute(_INSERT_FAILED_ATTEMPTS, {"offer_ids": list(offer_ids)})


def insert_shop(day: DayConverter, audit_log: list[dict[str, Any]]) -> None:
    """Insert the shop's settings."""
    at = day(scenario.FIRST_DAY, 9, 50)
    db.session.execute(insert(Shop).values(id=1, saved_at=at, **asdict(scenario.SHOP)))
    audit_log.append(audit_entry(at, "shop.saved", scenario.SHOP.name))


def audit_entry(
    at: datetime, action: str, subject: str, actor: str = MANAGER.email, **detail: object
) -> dict[str, Any]:
    """Return a row of the audit log."""
    return {"at": at, "actor": actor, "action": action, "subject": subject, "detail": detail or None}


def insert_audit_log(audit_log: list[dict[str, Any]], now: datetime) -> None:
    """Insert the entries before `now`, oldest first."""
    rows = sorted((row for row in audit_log if row["at"] < now), key=lambda row: row["at"])
    db.session.execute(insert(AuditEntry), rows)
