"""Load the facts that the eligibility checks need: one SELECT without redemptions, one for those of an offer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import queries as offer_queries
from webapp.redemptions import personal_codes
from webapp.redemptions.errors import InvalidOfferCounter
from webapp.redemptions.rules import OfferFacts, PersonalCodeStatus, RedemptionFacts, RedemptionRequest, RedemptionRow

REDEMPTION_COLUMNS = (
    "redeemed_at, channel, api_key_id, staff_user_id, order_id, order_amount, order_currency, discount_amount, "
    "order_metadata, idempotency_key, body_hash"
)
ROLLBACK_COLUMNS = "rolled_back_at, rolled_back_by, reason"
ROW_FIELDS = [name.strip() for name in f"{REDEMPTION_COLUMNS}, {ROLLBACK_COLUMNS}".split(",")]  # no translation
_OFFER_COLUMNS = (
    "id, code_as_written, name, discount_type, percent, amount, currency, starts_at, ends_at, time_zone, "
    "paused_at, audience_id, personal_code_required, max_redemptions, frozen_at"
)

# Whether the row `b` of `rollback` was made by the request `t`: it has the same Idempotency-Key or, without a key, the
# same order.
SAME_REQUEST_AS_ROLLBACK = (
    "b.customer_id = t.customer_id and b.api_key_id = t.api_key_id and case when t.idempotency_key is null "
    "then b.order_id = t.order_id else b.idempotency_key = t.idempotency_key end"
)


def _qualify_columns(alias: str, columns: str) -> str:
    return ", ".join(f"{alias}.{name.strip()}" for name in columns.split(","))


# Every lookup is lateral with a limit, so that the planner uses the index even while its statistics of a growing table
# are out of date. For speed, columns are read by position: those of the offer, then nine of the request and the
# customer. The time is the same for all requests. Redemptions and counters are not joined: a statement reads either
# them or what staff edit, so that they can be distributed (docs/operations/scaling.md).
_SELECT_OFFERS_AND_CUSTOMERS = f"""
    select {_qualify_columns("o", _OFFER_COLUMNS)},
      statement_timestamp(), t.suffix, k.match_rank, k.closed, c.id, c.email_as_given, c.locale,
      o.audience_id is null or m.yes is not null,
      (select count(*) + count(retired_at) from signing_key where purpose = '{personal_codes.PERSONAL_CODE_PURPOSE}')
    from json_to_recordset(cast(%(requests)s as json)) as t(
      n int, code text, prefix text, suffix text, offer_id bigint, email text, source_id text, customer_id bigint
    )
    left join lateral (
      select offer_id, 1 as match_rank, closed_at is not null as closed from offer_code where code = t.code
      union all select offer_id, 2, closed_at is not null from offer_code where code = t.prefix
      union all select t.offer_id, 3, false where t.offer_id is not null
      order by closed, match_rank limit 1
    ) k on true
    left join offer o on o.id = k.offer_id
    left join lateral (
      select id, email_as_given, locale from customer where email = t.email and erased_at is null
      union all select id, email_as_given, locale from customer where source_id = t.source_id and erased_at is null
      union all select id, email_as_given, locale from customer where id = t.customer_id and erased_at is null
      limit 1
    ) c on true
    left join lateral (
      select 1 as yes from audience_member where audience_id = o.audience_id and customer_id = c.id limit 1
    ) m on true
    order by t.n
    """  # noqa: S608
# All lookups are for one offer: if the tables are distributed by offer, the statement goes to one node. Redemptions are
# read as JSON, because most requests have none.
_SELECT_REDEMPTIONS_OF_OFFER = f"""
    select t.n, counter.max_redemptions, counter.redeemed, row_to_json(r), row_to_json(b)
    from json_to_recordset(cast(%(requests)s as json)) as t(
      n int, customer_id bigint, api_key_id bigint, idempotency_key text, order_id text
    )
    left join lateral (
      select max_redemptions, redeemed from offer_counter where offer_id = %(offer_id)s limit 1
    ) counter on true
    left join lateral (
      select * from redemption where offer_id = %(offer_id)s and customer_id = t.customer_id limit 1
    ) r on true
    left join lateral (
      select * from rollback b
      where offer_id = %(offer_id)s and {SAME_REQUEST_AS_ROLLBACK} order by redeemed_at desc limit 1
    ) b on true
    """  # noqa: S608
_SELECT_COUNTERS_AND_REDEMPTIONS_OF_CUSTOMER = text(
    "select o.offer_id, o.max_redemptions, o.redeemed, row_to_json(r) from offer_counter o "
    "left join redemption r on r.offer_id = o.offer_id and r.customer_id = :customer_id "
    "where o.offer_id = any(:offer_ids)"
)
_OFFER_COLUMN_COUNT = len(_OFFER_COLUMNS.split(","))


def load_facts(requests: Sequence[RedemptionRequest], connection: Connection | None = None) -> list[RedemptionFacts]:
    """Load the facts about each request, in order.

    :param connection: the connection to use; by default that of the session.
    :raises InvalidOfferCounter: when an offer has no counter, or one that contradicts the offer.
    """
    all_facts = look_up_redemptions(requests, load_facts_without_redemptions(requests, connection), connection)
    for facts in all_facts:
        require_counter(facts)
    return all_facts


def require_counter(facts: RedemptionFacts) -> None:
    """Check that `look_up_redemptions` has found a valid counter of the offer, if there is an offer.

    :raises InvalidOfferCounter: when there is none.
    """
    if facts.offer is not None and facts.offer.redeemed is None:
        raise InvalidOfferCounter(facts.offer.id)


def load_facts_without_redemptions(
    requests: Sequence[RedemptionRequest], connection: Connection | None = None
) -> list[RedemptionFacts]:
    """Load the facts about each request without redemptions and counters, in order; `look_up_redemptions` adds these.

    The statement is the same for all requests, and so is `evaluated_at`.

    :param connection: the connection to use; by default that of the session.
    """
    values = json.dumps([_lookup_values(index, request) for index, request in enumerate(requests)])
    rows = (connection or db.session.connection()).exec_driver_sql(_SELECT_OFFERS_AND_CUSTOMERS, {"requests": values})
    offers: dict[int, OfferFacts] = {}
    return [_build_facts(request, tuple(row), offers) for request, row in zip(requests, rows, strict=True)]


def look_up_redemptions(
    requests: Sequence[RedemptionRequest], facts: Sequence[RedemptionFacts], connection: Connection | None = None
) -> list[RedemptionFacts]:
    """Return the facts with the redemptions of their customers, current and rolled back, and with the counters.

    One statement per offer. Without a valid counter, the number of redemptions remains None (`require_counter`).

    :param facts: the facts about each request without redemptions, in the same order.
    :param connection: the connection to use; by default that of the session.
    """
    values_by_offer: dict[int, list[dict[str, str | int | None]]] = {}
    for index, (request, known) in enumerate(zip(requests, facts, strict=True)):
        # Unknown customers are looked up too, so that the time of the lookup does not reveal whether a customer exists.
        if known.offer is not None:
            values_by_offer.setdefault(known.offer.id, []).append(
                {
                    "n": index,
                    "customer_id": known.customer_id or 0,
                    "api_key_id": request.api_key_id,
                    "idempotency_key": request.idempotency_key,
                    "order_id": request.order.id if request.order else None,
                }
            )
    result = list(facts)
    for offer_id, values in values_by_offer.items():
        parameters = {"offer_id": offer_id, "requests": json.dumps(values)}
        rows = (connection or db.session.connection()).exec_driver_sql(_SELECT_REDEMPTIONS_OF_OFFER, parameters)
        for index, max_redemptions, redeemed, current, rolled_back in rows:
            result[index] = dataclasses.replace(
                _with_counter(result[index], max_redemptions, redeemed),
                redemption=_row_from_json(current),
                rolled_back_redemption=_row_from_json(rolled_back),
            )
    return result


def _with_counter(facts: RedemptionFacts, max_redemptions: int | None, redeemed: int | None) -> RedemptionFacts:
    """Return the facts with the counter of the offer and its cap, unless the counter is invalid.

    :param redeemed: None if the counter is missing.
    """
    if facts.offer is None:
        raise RuntimeError("a counter belongs to an offer")
    # Once an offer is frozen, a cap can neither be added nor removed.
    is_contradictory = facts.offer.is_frozen and (max_redemptions is None) != (facts.offer.max_redemptions is None)
    if redeemed is None or is_contradictory:
        return facts
    offer = dataclasses.replace(facts.offer, max_redemptions=max_redemptions, redeemed=redeemed)
    return dataclasses.replace(facts, offer=offer)


def _lookup_values(index: int, request: RedemptionRequest) -> dict[str, str | int | None]:
    prefix, suffix = personal_codes.split_personal_code(request.code) if request.code else (None, None)
    return {
        "n": index,
        "code": request.code,
        "prefix": prefix,
        "suffix": suffix,
        "offer_id": request.offer_id,
        "email": request.email,
        "source_id": request.source_id,
        "customer_id": request.customer_id,
    }


def _build_facts(request: RedemptionRequest, row: tuple[Any, ...], offers: dict[int, OfferFacts]) -> RedemptionFacts:
    """Build the facts of one row.

    :param offers: the offers of earlier rows, which are shared, because many requests are for the same offer.
    """
    offer_id = row[0]
    offer = offers.get(offer_id)
    if offer is None and offer_id is not None:
        offer = offers[offer_id] = _build_offer_facts(row)
    evaluated_at, suffix, match_rank, is_closed, customer_id, email, locale, is_in_audience, key_revision = row[
        _OFFER_COLUMN_COUNT:
    ]
    match = _CodeMatch(match_rank, suffix, key_revision)
    return RedemptionFacts(
        evaluated_at=evaluated_at,
        offer=offer,
        is_code_closed=bool(is_closed),
        customer_id=customer_id,
        email=email,
        locale=locale,
        is_in_audience=is_in_audience,
        personal_code_status=_personal_code_status(request, offer_id, customer_id, match),
    )


def _build_offer_facts(row: tuple[Any, ...]) -> OfferFacts:
    (
        id_,
        code,
        name,
        discount_type,
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
        frozen_at,
    ) = row[:_OFFER_COLUMN_COUNT]
    return OfferFacts(
        id=id_,
        code=code,
        name=name,
        discount=build_discount(discount_type, percent, amount, currency),
        starts_at=starts_at,
        ends_at=ends_at,
        time_zone=time_zone,
        is_paused=paused_at is not None,
        audience_id=audience_id,
        personal_code_required=personal_code_required,
        max_redemptions=max_redemptions,
        redeemed=None,
        is_frozen=frozen_at is not None,
    )


def _row_from_json(row: dict[str, Any] | None) -> RedemptionRow | None:
    """Parse a row in the JSON that PostgreSQL's `row_to_json` produces; None stays None."""
    if row is None:
        return None
    values: dict[str, Any] = {name: row.get(name) for name in ROW_FIELDS}
    for name in ("redeemed_at", "rolled_back_at"):
        values[name] = values[name] and datetime.fromisoformat(values[name])
    values["body_hash"] = values["body_hash"] and bytes.fromhex(values["body_hash"].removeprefix("\\x"))
    return RedemptionRow(**values)


class _CodeMatch(NamedTuple):
    """The match of a request's code.

    :param match_rank: 1 for the whole code, 2 for its shared part, 3 for an offer id; None without a match.
    :param suffix: the last characters, if the code is long enough to be a personal one.
    :param key_revision: revision of the keys that sign such suffixes.
    """

    match_rank: int | None
    suffix: str | None
    key_revision: int


def _personal_code_status(
    request: RedemptionRequest, offer_id: int | None, customer_id: int | None, match: _CodeMatch
) -> PersonalCodeStatus:
    """Return whether the request has a personal code, and whether that is right.

    A request by ids has already identified its customer; otherwise the suffix of the code decides.
    """
    if request.offer_id is not None and request.customer_id is not None:
        return "right"
    # The whole code matched: it is a shared code, current or alias.
    if offer_id is None or request.code is None or match.match_rank == 1:
        return "none"
    # Verified for unknown customers too, so that the response time does not reveal whether a customer exists.
    is_right = personal_codes.verify_personal_code(match.suffix or "", offer_id, customer_id or 0, match.key_revision)
    return "right" if is_right else "wrong"


def build_discount(discount_type: str, percent: Any, amount: int | None, currency: str | None) -> Discount:
    """Return the discount of an offer from its columns."""
    if discount_type == "percent":
        return Discount("percent", percent=percent)
    return Discount("amount", amount=amount, currency=currency)


def load_current_offer_facts(customer_id: int) -> list[RedemptionFacts]:
    """Load the facts about a customer and every offer within its validity period.

    Paused offers are excluded, and so are offers without a valid counter, which cannot be redeemed. The facts are
    sorted by the end of the offer, earliest first.
    """
    offer_ids = list(offer_queries.list_current_offer_ids())
    if not offer_ids:
        return []
    requests = [RedemptionRequest(channel="api", offer_id=offer_id, customer_id=customer_id) for offer_id in offer_ids]
    values = {"customer_id": customer_id, "offer_ids": offer_ids}
    rows = {row.offer_id: row for row in db.session.execute(_SELECT_COUNTERS_AND_REDEMPTIONS_OF_CUSTOMER, values)}
    result = []
    for offer_id, facts in zip(offer_ids, load_facts_without_redemptions(requests), strict=True):
        _, max_redemptions, redeemed, redemption = rows.get(offer_id, (offer_id, None, None, None))
        facts = _with_counter(facts, max_redemptions, redeemed)
        if facts.offer is None or facts.offer.redeemed is None:
            continue
        result.append(dataclasses.replace(facts, redemption=_row_from_json(redemption)))
    return result
