"""Keep the suppression list in step with changed, imported and erased customers."""

from __future__ import annotations

from sqlalchemy import text

from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.customers.models import Customer

_REPLACE_EMAIL_WITH_HASH = text(
    """
    with gone as (delete from suppression where email = :key returning *)
    insert into suppression as known (email, reason, at, source)
    select :hash, reason, at, source from gone where :bounced or reason <> 'bounced'
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)
_COPY_SUPPRESSION = text(
    """
    insert into suppression as known (email, reason, at, source, words)
    select :new, reason, at, source, words from suppression where email = :old and reason <> 'bounced'
    on conflict (email) do update
    set reason = excluded.reason, at = excluded.at, source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)
_REPLACE_HASH_WITH_EMAIL = text(
    """
    with gone as (delete from suppression where email = :hash returning *)
    insert into suppression as known (email, reason, at, source)
    select :key, reason, at, source from gone
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)


def suppression_keys(email: str) -> dict[str, str]:
    """The two keys an address may be stored under: itself, and its hash once its customer was erased."""
    return {"key": email, "hash": hash_email(email)}


def restore_suppression(email: str) -> None:
    """Somebody becomes a customer under this address: what its owner asked for before being erased, or under another
    customer's name, is there again by name. The caller commits."""
    db.session.execute(_REPLACE_HASH_WITH_EMAIL, suppression_keys(email))


def move_suppression(old: str, new: str) -> None:
    """A customer's e-mail has changed: that they asked not to be mailed follows them, that an address bounced does not.
    For the old address, which is nobody's now, it stays under its hash. The caller commits."""
    db.session.execute(_COPY_SUPPRESSION, {"old": old, "new": new})
    db.session.execute(_REPLACE_EMAIL_WITH_HASH, {**suppression_keys(old), "bounced": True})
    restore_suppression(new)


def anonymise_suppression(customer: Customer) -> None:
    """A customer is about to be erased: that they asked not to be mailed stays, under a hash. The caller commits."""
    db.session.execute(_REPLACE_EMAIL_WITH_HASH, {**suppression_keys(customer.email), "bounced": False})
