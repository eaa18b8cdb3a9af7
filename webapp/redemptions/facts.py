"""Load everything that decides a redemption request, in one SELECT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import queries as offer_queries
from webapp.redemptions import personal_codes
from webapp.redemptions.rules import OfferFacts, PersonalCodeStatus, RedemptionFacts, RedemptionRequest, RedemptionRow

REDEMPTION_COLUMNS = (
    "redeemed_at, channel, api_key_id, order_id, order_amount, order_currency, discount_amount, order_metadata, "
    "idempotency_key, body_hash"
)
ROLLBACK_COLUMNS = "rolled_back_at, rolled_back_by, reason"
ROW_FIELDS = [name.strip() for name in f"{REDEMPTION_COLUMNS}, {ROLLBACK_COLUMNS}".split(",")]
_OFFER_COLUMNS = (
    "id, code_as_written, name, discount_type, percent, amount, currency, starts_at, ends_at, time_zone, "
    "paused_at, audience_id, personal_code_required, max_redemptions, redeemed, frozen_at"
)


def _qualify_columns(alias: str, columns: str) -> str:
    return ", ".join(f"{alias}.{name.strip()}" for name in columns.split(","))


# Every look-up is lateral with a limit, which leaves the planner nothing but the index, whatever it thinks of the sizes
# of tables that have just begun to grow. Columns are read by their place, since every redemption waits for this: the
# offer's, then eight of the ask and the customer, then the use and what was undone, each whole, for most have none.
_SELECT_FACTS = f"""
    select {_qualify_columns("o", _OFFER_COLUMNS)},
      clock_timestamp(), t.suffix, k.nearness, k.closed, c.id, c.email_as_given,
      o.audience_id is null or m.yes is not null,
      (select count(*) + count(retired_at) from signing_key where purpose = '{personal_codes.PERSONAL_CODE_PURPOSE}'),
      row_to_json(r), row_to_json(b)
    from json_to_recordset(cast(%(asks)s as json)) as t(
      n int, code text, prefix text, suffix text, offer_id bigint, email text, source_id text, customer_id bigint,
      api_key_id bigint, key text, order_id text
    )
    left join lateral (
      select offer_id, 1 as nearness, closed_at is not null as closed from offer_code where code = t.code
      union all select offer_id, 2, closed_at is not null from offer_code where code = t.prefix
      union all select t.offer_id, 3, false where t.offer_id is not null
      order by closed, nearness limit 1
    ) k on true
    left join offer o on o.id = k.offer_id
    left join lateral (
      select id, email_as_given from customer where email = t.email and erased_at is null
      union all select id, email_as_given from customer where source_id = t.source_id and erased_at is null
      union all select id, email_as_given from customer where id = t.customer_id and erased_at is null
      limit 1
    ) c on true
    left join lateral (
      select 1 as yes from audience_member where audience_id = o.audience_id and customer_id = c.id limit 1
    ) m on true
    left join lateral (select * from redemption where customer_id = c.id and offer_id = o.id limit 1) r on true
    left join lateral (
      select * from rollback
      where customer_id = c.id and offer_id = o.id and api_key_id = t.api_key_id
        and case when t.key is null then order_id = t.order_id else idempotency_key = t.key end
      order by redeemed_at desc limit 1
    ) b on true
    order by t.n
    """  # noqa: S608
_OFFER_COLUMN_COUNT = len(_OFFER_COLUMNS.split(","))


def load_facts(asks: Sequence[RedemptionRequest], connection: Connection | None = None) -> list[RedemptionFacts]:
    """What the rule needs to know for each ask, in their order. One statement, the same whatever is asked.

    :param connection: to read on; that of the session unless another is given.
    """
    asked = json.dumps([_lookup_values(n, ask) for n, ask in enumerate(asks)])
    rows = (connection or db.session.connection()).exec_driver_sql(_SELECT_FACTS, {"asks": asked})
    offers: dict[int, OfferFacts] = {}
    return [_build_facts(ask, tuple(row), offers) for ask, row in zip(asks, rows, strict=True)]


def _lookup_values(n: int, ask: RedemptionRequest) -> dict[str, str | int | None]:
    prefix, suffix = personal_codes.split_personal_code(ask.code) if ask.code else (None, None)
    return {
        "n": n,
        "code": ask.code,
        "prefix": prefix,
        "suffix": suffix,
        "offer_id": ask.offer_id,
        "email": ask.email,
        "source_id": ask.source_id,
        "customer_id": ask.customer_id,
        "api_key_id": ask.api_key_id,
        "key": ask.idempotency_key,
        "order_id": ask.order.id if ask.order else None,
    }


def _build_facts(ask: RedemptionRequest, row: tuple[Any, ...], offers: dict[int, OfferFacts]) -> RedemptionFacts:
    """:param offers: those that rows of the same statement have told of already, for many are of the same one."""
    offer_id = row[0]
    offer = offers.get(offer_id)
    if offer is None and offer_id is not None:
        offer = offers[offer_id] = _build_offer_facts(row)
    at, suffix, nearness, closed, customer_id, email, in_audience, revision, use, undone = row[_OFFER_COLUMN_COUNT:]
    typed = _CodeMatch(nearness, suffix, revision)
    return RedemptionFacts(
        evaluated_at=at,
        offer=offer,
        is_code_closed=bool(closed),
        customer_id=customer_id,
        email=email,
        is_in_audience=in_audience,
        personal_code_status=_personal_code_status(ask, offer_id, customer_id, typed),
        redemption=None if use is None else _row_from_json(use),
        rolled_back_redemption=None if undone is None else _row_from_json(undone),
    )


def _build_offer_facts(row: tuple[Any, ...]) -> OfferFacts:
    (
        id_,
        code,
        name,
        kind,
        percent,
        amount,
        currency,
        starts_at,
        ends_at,
        time_zone,
        paused_at,
        audience_id,
        personal_code_required,
        max_redemptions,
        redeemed,
        frozen_at,
    ) = row[:_OFFER_COLUMN_COUNT]
    return OfferFacts(
        id=id_,
        code=code,
        name=name,
        discount=build_discount(kind, percent, amount, currency),
        starts_at=starts_at,
        ends_at=ends_at,
        time_zone=time_zone,
        is_paused=paused_at is not None,
        audience_id=audience_id,
        personal_code_required=personal_code_required,
        max_redemptions=max_redemptions,
        redeemed=redeemed,
        is_frozen=frozen_at is not None,
    )


def _row_from_json(row: dict[str, Any]) -> RedemptionRow:
    """A row as PostgreSQL writes it in JSON."""
    values: dict[str, Any] = {name: row.get(name) for name in ROW_FIELDS}
    for name in ("redeemed_at", "rolled_back_at"):
        values[name] = values[name] and datetime.fromisoformat(values[name])
    values["body_hash"] = values["body_hash"] and bytes.fromhex(values["body_hash"].removeprefix("\\x"))
    return RedemptionRow(**values)


class _CodeMatch(NamedTuple):
    """What the code that was typed came to: how an offer was found by it, the suffix, if it may be a personal one, and
    the revision of the keys that make such suffixes."""

    match_rank: int | None
    suffix: str | None
    key_revision: int


def _personal_code_status(
    ask: RedemptionRequest, offer_id: int | None, customer_id: int | None, typed: _CodeMatch
) -> PersonalCodeStatus:
    """Whoever is named by ids has been proven already; otherwise the suffix of what was typed decides."""
    if ask.offer_id is not None and ask.customer_id is not None:
        return "right"
    # Found by all that was typed: a shared code, the one of now or an alias.
    if offer_id is None or ask.code is None or typed.match_rank == 1:
        return "none"
    # Reckoned for somebody unknown too: what is run must not depend on whether there is such a customer.
    right = personal_codes.verify_personal_code(typed.suffix or "", offer_id, customer_id or 0, typed.key_revision)
    return "right" if right else "wrong"


def build_discount(kind: str, percent: Any, amount: int | None, currency: str | None) -> Discount:
    if kind == "percent":
        return Discount("percent", percent=percent)
    return Discount("amount", amount=amount, currency=currency)


def load_open_offer_facts(customer_id: int) -> list[RedemptionFacts]:
    """The facts about a customer and every offer that is open now, those that end soonest first."""
    asks = [
        RedemptionRequest(channel="api", offer_id=offer_id, customer_id=customer_id)
        for offer_id in offer_queries.list_open_offer_ids()
    ]
    return load_facts(asks) if asks else []
