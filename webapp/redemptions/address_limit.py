"""Limit the number of customers that one client address may find and redeem for with shared codes.

Everyone can enter a shared code with any email address, and the response shows whether it belongs to a customer. The
public form therefore counts the distinct customers of each client address, in a window that starts with the first of
them. An attempt is counted before its outcome is known, in one statement that locks the row of the address, so that of
two concurrent attempts at the limit only one is counted. It is uncounted when its outcome reveals nothing about the
customer. Email addresses are stored only as keyed hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from flask import current_app
from sqlalchemy import Connection, text

from webapp.core.extensions import db
from webapp.core.settings import Settings

# Long enough that repeating the attempts every window is slow, short enough that a busy connection soon redeems again.
WINDOW = "1 hour"
# Number of expired rows that one statement deletes.
CLEANUP_CHUNK_SIZE = 10_000


class CountedCustomer(NamedTuple):
    """A customer who counts towards the limit of a client address.

    :param expires_at: the end of the window, which identifies it.
    """

    address: str
    customer_hash: str
    expires_at: datetime


class AddressLimitReached(Exception):
    """The client address has reached its limit, so the customer was not counted."""

    def __init__(self, offer_id: int) -> None:
        super().__init__()
        self.offer_id = offer_id


# A personal code proves that the customer received it, and an offer that requires one refuses the shared code from
# everyone. Neither counts.
# Statements that write turn the synchronous commit off: see `rate_limit`.
_COUNT_CUSTOMER = text(
    """
    with shared as (
      select o.id from offer_code k join offer o on o.id = k.offer_id
      where k.code = :code and k.closed_at is null and not o.personal_code_required
    ), counted as (
      insert into address_customers as a (address, customers, expires_at)
      select :address, jsonb_build_object(cast(:customer as text), 1), now() + cast(:window as interval) from shared
      on conflict (address) do update set
        customers = case
          when a.expires_at <= now() then excluded.customers
          else a.customers || jsonb_build_object(
            cast(:customer as text), coalesce(cast(a.customers ->> :customer as int), 0) + 1
          )
        end,
        expires_at = case when a.expires_at <= now() then excluded.expires_at else a.expires_at end
      where a.expires_at <= now() or (select count(*) from jsonb_object_keys(a.customers)) < :limit
      returning expires_at, set_config('synchronous_commit', 'off', true)
    )
    select shared.id, counted.expires_at from shared left join counted on true
    """
)
_UNCOUNT_CUSTOMER = text(
    """
    update address_customers set customers = case
      when cast(customers ->> :customer as int) > 1
      then customers || jsonb_build_object(cast(:customer as text), cast(customers ->> :customer as int) - 1)
      else customers - cast(:customer as text)
    end
    where address = :address and expires_at = :expires_at
    returning set_config('synchronous_commit', 'off', true)
    """
)
_RECORD_EXCESS = text(
    """
    insert into address_excess (offer_id, address, last_at) values (:offer_id, :address, now())
    on conflict (offer_id, address) do update set last_at = excluded.last_at
    returning set_config('synchronous_commit', 'off', true)
    """
)


def count_customer(address: str, code: str, email: str) -> CountedCustomer | None:
    """Count a customer towards the limit of a client address. Commits on its own.

    Several attempts with the same email address count as one customer, whether or not it is known.

    :param address: key of the client address, see `rate_limit.client_address`.
    :param code: the normalised code.
    :param email: the normalised email address.
    :returns: None when the attempt does not count: there is no limit, or this is not an open shared code of an offer
        that accepts it.
    :raises AddressLimitReached: when the limit was reached before.
    """
    limit = _settings().public_customers_per_address
    if not limit:
        return None
    customer_hash = _hash_customer(email)
    values = {"address": address, "code": code, "customer": customer_hash, "window": WINDOW, "limit": limit}
    with _autocommit_connection() as connection:
        row = connection.execute(_COUNT_CUSTOMER, values).one_or_none()
        if row is None:
            return None
        offer_id, expires_at = row
        if expires_at is None:
            connection.execute(_RECORD_EXCESS, {"offer_id": offer_id, "address": address})
            raise AddressLimitReached(offer_id)
    return CountedCustomer(address, customer_hash, expires_at)


def uncount_customer(counted: CountedCustomer | None) -> None:
    """Undo `count_customer` for one attempt. Commits on its own.

    The customer still counts while another attempt does. Does nothing after the end of the window.
    """
    if counted is None:
        return
    values = {"address": counted.address, "customer": counted.customer_hash, "expires_at": counted.expires_at}
    with _autocommit_connection() as connection:
        connection.execute(_UNCOUNT_CUSTOMER, values)


def _hash_customer(email: str) -> str:
    """Return a short keyed hash of a normalised email address."""
    secret = _settings().secret_key.encode()
    return hmac.new(secret, f"address_customers:{email}".encode(), hashlib.sha256).hexdigest()[:16]


def _settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings


def _autocommit_connection() -> Connection:
    # Uses its own connection, so that the request keeps no transaction open while it redeems.
    return db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


_SELECT_EXCESS = """
    select offer_id, count(*) as addresses from address_excess
    where last_at > now() - cast(:window as interval) {of_offer}
    group by offer_id
"""
_SELECT_EXCESS_OF_OFFERS = text(_SELECT_EXCESS.format(of_offer="and offer_id = any(:offer_ids)"))
_SELECT_TOP_EXCESS = text(f"{_SELECT_EXCESS.format(of_offer='')} order by addresses desc, offer_id limit :limit")


def count_addresses_over_limit(offer_ids: Sequence[int]) -> dict[int, int]:
    """Return the number of client addresses that exceeded the limit in the last hour, by offer id.

    Offers without any are omitted.
    """
    values = {"window": WINDOW, "offer_ids": list(offer_ids)}
    rows = db.session.execute(_SELECT_EXCESS_OF_OFFERS, values)
    return {offer_id: int(addresses) for offer_id, addresses in rows}


def list_offers_over_address_limit(limit: int) -> dict[int, int]:
    """Return the number of client addresses that exceeded the limit in the last hour, by offer id.

    The highest numbers come first.
    """
    rows = db.session.execute(_SELECT_TOP_EXCESS, {"window": WINDOW, "limit": limit})
    return {offer_id: int(addresses) for offer_id, addresses in rows}


_DELETE_EXPIRED_CUSTOMERS = text(
    """
    delete from address_customers where address in (
      select address from address_customers where expires_at <= now() limit :limit for update skip locked
    )
    returning set_config('synchronous_commit', 'off', true)
    """
)
_DELETE_EXPIRED_EXCESS = text(
    """
    delete from address_excess where (offer_id, address) in (
      select offer_id, address from address_excess
      where last_at <= now() - cast(:window as interval) limit :limit for update skip locked
    )
    returning set_config('synchronous_commit', 'off', true)
    """
)


def delete_expired_addresses() -> None:
    """Delete the rows of client addresses that are no longer needed. Commits on its own."""
    with _autocommit_connection() as connection:
        for statement in (_DELETE_EXPIRED_CUSTOMERS, _DELETE_EXPIRED_EXCESS):
            values = {"window": WINDOW, "limit": CLEANUP_CHUNK_SIZE}
            while connection.execute(statement, values).rowcount == CLEANUP_CHUNK_SIZE:
                continue
