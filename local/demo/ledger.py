"""What the demonstration writes beside its mailings: redemptions, whom not to mail, the trail, the shop; and which rows
are its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import event, insert, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, UOWTransaction

from local.demo import offers as demo_offers
from local.demo import people
from local.demo.models import DemoRow, Part
from local.demo.offers import MANAGER, Told
from local.demo.uses import Used
from webapp.accounts.models import ApiKey, AuditEntry
from webapp.core.extensions import db
from webapp.customers.models import CustomerImport, Suppression
from webapp.offers.models import Offer
from webapp.redemptions import public_ids
from webapp.redemptions.models import Redemption, Rollback
from webapp.shop.models import Shop


def own(part: Part, ids: Iterable[int]) -> None:
    """Remember that rows are the demonstration's. The caller commits."""
    rows = [{"part": part, "row_id": row_id} for row_id in ids]
    if rows:
        db.session.execute(upsert(DemoRow).on_conflict_do_nothing(), rows)


@contextmanager
def witnessed() -> Iterator[None]:
    """Imports and lines of the trail that this process writes inside are remembered in the transaction that writes
    them. What others write meanwhile, whoever they are signed in as, is not."""

    def remember(session: Session, _: UOWTransaction) -> None:
        for kind, part in ((CustomerImport, "import"), (AuditEntry, "audit")):
            rows = [{"part": part, "row_id": row.id} for row in session.new if isinstance(row, kind)]
            if rows:
                session.connection().execute(upsert(DemoRow), rows)

    event.listen(db.session, "after_flush", remember)
    try:
        yield
    finally:
        event.remove(db.session, "after_flush", remember)


def adopt() -> None:
    """Remember the customers that our imports have made, by whichever worker. The caller commits."""
    db.session.execute(_ADOPT, {"addresses": people.addresses()})


# A file of this size is merged in one transaction, so all that it makes has one moment: whoever has an address of the
# file and another moment was here before, and is not ours. Once the imports are backdated there is nothing to find.
_ADOPT = text(
    """
    with made as (
      select c.id, c.created_at, c.erased_at, i.id as import_id from customer_import i
      join customer c on c.created_at between i.started_at and coalesce(i.finished_at, 'infinity')
      where i.kind = 'customers' and i.id in (select row_id from demo_row where part = 'import')
        and (c.email = any(:addresses) or c.erased_at is not null)
    ),
    moment as (
      select import_id, mode() within group (order by created_at) as at from made where erased_at is null group by 1
    )
    insert into demo_row select 'customer', made.id from made join moment using (import_id) where created_at = at
    on conflict do nothing
    """
)
# Whether a row `s` of the list of those not to be mailed is ours, also after its customer was given another address or
# erased: it has the moment of our import, or came of a mail of ours. What the owner of a real address asked for is not.
LISTED = """
    s.source = 'import' and exists (
      select from customer_import i
      where i.kind = 'suppressions' and i.id in (select row_id from demo_row where part = 'import')
        and (s.at = i.created_at or s.at = (
          select mode() within group (order by o.at) from suppression o
          where o.source = 'import' and o.email = any(:addresses)
            and o.at between i.started_at and coalesce(i.finished_at, 'infinity')
        ))
    )
    or s.source in (
      select 'campaign ' || c.id from campaign c where c.offer_id in (select row_id from demo_row where part = 'offer')
    ) and not exists (
      select from customer c
      where c.email = s.email and c.id not in (select row_id from demo_row where part = 'customer')
    )
"""
# What goes with it: also addresses that only its files make, when somebody put them on the list while it was here, and
# what stands there for them once they are erased.
UNMAILABLE = f"""
    ({LISTED})
    or exists (select from demo_row) and s.email in (
      select unnest(array[a, 'sha256:' || encode(sha256(convert_to(a, 'UTF8')), 'hex')])
      from unnest(cast(:addresses as text[])) a
    ) and not exists (
      select from customer c
      where c.email = s.email and c.id not in (select row_id from demo_row where part = 'customer')
    )
"""  # noqa: S608
_BACKDATE = (
    f"update suppression s set at = :listed where {LISTED}",  # noqa: S608
    "update customer set created_at = case when source_id > :last then :later else :first end "
    "where id in (select row_id from demo_row where part = 'customer')",
    "update audience_member m set joined_at = c.created_at from customer c "
    "where c.id = m.customer_id and c.id in (select row_id from demo_row where part = 'customer')",
    "update audience set created_at = :first where id in (select row_id from demo_row where part = 'audience')",
    """
    update customer_import set
      created_at = x.at, started_at = x.at + (started_at - created_at), finished_at = x.at + (finished_at - created_at)
    from (
      select id as import_id, case
        when status = 'failed' then cast(:failed as timestamptz)
        when kind = 'suppressions' then cast(:listed as timestamptz)
        when audience_id is null then cast(:first as timestamptz) else cast(:later as timestamptz) end as at
      from customer_import where id in (select row_id from demo_row where part = 'import')
    ) x where x.import_id = id
    """,
    "update audit_entry a set at = i.created_at from customer_import i "
    "where a.action like '%.import' and cast(a.detail->>'id' as bigint) = i.id "
    "and i.id in (select row_id from demo_row where part = 'import')",
)


def imported(day: demo_offers.Day) -> None:
    """What was imported just now was imported weeks ago."""
    adopt()
    times = {
        "first": day(demo_offers.FIRST_DAY, 10, 12),
        "listed": day(demo_offers.FIRST_DAY, 10, 40),
        "later": day(demo_offers.SIGN_UPS, 15, 5),
        "failed": day(-1, 11, 31),
        "last": f"MTH-{10_000 + people.PEOPLE - people.SUBSCRIBERS}",
        "addresses": people.addresses(),
    }
    for statement in _BACKDATE:
        db.session.execute(text(statement), times)


def api_keys(day: demo_offers.Day) -> dict[str, int]:
    """Keys whose secrets nobody has seen, not even this program: they only name a shop and a till."""
    keys = {}
    for name in demo_offers.API_KEYS:
        row = ApiKey(
            public_id=secrets.token_hex(8),
            name=name,
            secret_hash=secrets.token_bytes(32),
            key_version=1,
            scopes=["read", "redeem"],
            created_at=day(demo_offers.FIRST_DAY, 10, 55),
            revoked_at=None,
        )
        db.session.add(row)
        db.session.flush()
        keys[name] = row.id
    own("api_key", keys.values())
    return keys


def used(
    told: Told, offer_id: int, rows: Used, launched: list[datetime], now: datetime, trail: list[dict[str, Any]]
) -> None:
    """The redemptions of an offer until now, the counter of its cap, and since when it is frozen."""
    live = [{"offer_id": offer_id, **row} for row in rows.live if row["redeemed_at"] < now]
    undone = [{"offer_id": offer_id, **row} for row in rows.undone]
    for model, given in ((Redemption, live), (Rollback, undone)):
        if given:
            db.session.execute(insert(model), given)
    for row in undone:
        reference = public_ids.encode_public_id(offer_id, row["customer_id"], row["redeemed_at"])
        detail = {"customer": row["customer_id"], "reference": reference}
        trail.append(
            entry(row["rolled_back_at"], "redemption.undone", told.code, actor=row["rolled_back_by"], **detail)
        )
    begun = [*launched, *(row["redeemed_at"] for row in [*live, *undone])]
    frozen = {"frozen_at": min(begun, default=None), "redeemed": len(live) if told.cap else 0}
    db.session.execute(update(Offer).where(Offer.id == offer_id).values(frozen))


def suppressions(found: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
    """Who must not be mailed since then; those of the imported list are there already."""
    rows = [{"email": email, **row} for email, row in found.items() if "source" in row and row["at"] < now]
    db.session.execute(upsert(Suppression).on_conflict_do_nothing(), rows)


def guesses(offer_ids: Iterable[int]) -> None:
    """Somebody tries addresses with these codes just now: what the alarm of an offer is for."""
    db.session.execute(
        text(
            "insert into code_miss (offer_id, slot, minute, n) "
            "select offer_id, extract(minute from at), date_trunc('minute', at), 2 + ago % 3 "
            "from unnest(cast(:ids as bigint[])) offer_id, generate_series(2, 24) ago, "
            "lateral (select now() - make_interval(mins => ago)) x(at) on conflict do nothing"
        ),
        {"ids": list(offer_ids)},
    )


def shop(day: demo_offers.Day, trail: list[dict[str, Any]]) -> None:
    """What the shop is called, unless somebody has said that already."""
    at = day(demo_offers.FIRST_DAY, 9, 50)
    row = upsert(Shop).values(id=1, saved_at=at, **asdict(demo_offers.SHOP)).on_conflict_do_nothing().returning(Shop.id)
    if db.session.execute(row).first():
        own("shop", [1])
        trail.append(entry(at, "shop.saved", demo_offers.SHOP.name))


def entry(at: datetime, action: str, subject: str, actor: str = MANAGER[0], **detail: Any) -> dict[str, Any]:
    """A line of the trail."""
    return {"at": at, "actor": actor, "action": action, "subject": subject, "detail": detail or None}


def write_trail(trail: list[dict[str, Any]], now: datetime) -> None:
    """The lines until now, the oldest first."""
    rows = sorted((row for row in trail if row["at"] < now), key=lambda row: row["at"])
    own("audit", db.session.scalars(insert(AuditEntry).returning(AuditEntry.id), rows))


def count_anew() -> None:
    """Let the sweep count all hours once more: these redemptions came behind its back. The caller commits."""
    db.session.execute(text("select pg_advisory_xact_lock(hashtext('onecode.redemption_tally'))"))
    for table in ("redemption_hour", "redemption_total", "hour_total"):
        db.session.execute(text(f"delete from {table}"))  # noqa: S608
    db.session.execute(text("update redemption_tally set counted_until = '-infinity'"))
