"""Keep the suppression list consistent with new, changed and erased customers."""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.customers.models import Customer

_REPLACE_EMAIL_WITH_HASH = text(
    """
    with deleted as (delete from suppression where email = :key returning *)
    insert into suppression as existing (email, reason, at, source)
    select :hash, reason, at, source from deleted where :bounced or reason <> 'bounced'
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
    """
)
_COPY_SUPPRESSION = text(
    """
    insert into suppression as existing (email, reason, at, source, words)
    select :new, reason, at, source, words from suppression where email = :old and reason <> 'bounced'
    on conflict (email) do update
    set reason = excluded.reason, at = excluded.at, source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
    """
)
_REPLACE_HASH_WITH_EMAIL = text(
    """
    with deleted as (delete from suppression where email = :hash returning *)
    insert into suppression as existing (email, reason, at, source)
    select :key, reason, at, source from deleted
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source, words = ''
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
    """
)


def suppression_keys(email: str) -> dict[str, str]:
    """Return both keys under which an address may be suppressed.

    The key is the address itself, or its hash once its customer was erased.
    """
    return {"key": email, "hash": hash_email(email)}


def restore_suppression(email: str) -> None:
    """Replace a hashed suppression with the plain address of a new customer.

    The hash remains from an erased customer, or from a customer whose address was changed. The caller commits.
    """
    db.session.execute(_REPLACE_HASH_WITH_EMAIL, suppression_keys(email))


def move_suppression(old_email: str, new_email: str) -> None:
    """Carry a suppression over to a customer's new address.

    A complaint and an unsubscription follow the customer; a bounce belongs to the old address. The entry of the old
    address stays as a hash, because that address no longer has a customer. The caller commits.
    """
    db.session.execute(_COPY_SUPPRESSION, {"old": old_email, "new": new_email})
    db.session.execute(_REPLACE_EMAIL_WITH_HASH, {**suppression_keys(old_email), "bounced": True})
    restore_suppression(new_email)


def erase_suppression(customer: Customer) -> None:
    """Replace the address of a customer who is being erased with its hash.

    A complaint or an unsubscription is kept under the hash; a bounce is deleted. The caller commits.
    """
    db.session.execute(_REPLACE_EMAIL_WITH_HASH, {**suppression_keys(customer.email), "bounced": False})
