"""Who must not be mailed: putting an address on the list and taking it off again."""

from __future__ import annotations

from email.utils import parseaddr

from flask import current_app
from sqlalchemy import text

from webapp.accounts.actions import record
from webapp.core.email_addresses import hashed_email, normalise_email
from webapp.core.errors import DomainError, FieldError, Invalid, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import REASONS, Customer, Suppression
from webapp.customers.suppressions import queries as suppression_queries

_PUT = text(
    """
    insert into suppression as known (email, reason, source, words)
    select cast(:email as text), :reason, :source, :words where not :of_a_customer or exists (
      select 1 from customer where customer.email = :email for share
    )
    on conflict (email) do update
    set reason = excluded.reason, at = now(), source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    returning 1
    """
)
WORDS_MAX = 1000


def put(email: str, reason: str, source: int | str, words: str = "") -> bool:
    """Let nobody mail this address any more, from the next window on. The caller commits.

    Who is on the list already stays with the first reason, unless the new one is stronger: complained, then
    unsubscribed, then bounced.

    :param email: normalised, as `customer.email` is.
    :param reason: `unsubscribed`, `bounced` or `complained`.
    :param source: the campaign's id, or `import`, `staff`, `api` or `relay`. What comes of a campaign is about one of
        its customers: should they have been erased at this moment, their address must not come back by this.
    :param words: what the server said, or whoever asked for it.
    :returns: whether that changed anything.
    """
    done = db.session.execute(
        _PUT,
        {
            "email": email,
            "reason": reason,
            "source": f"campaign {source}" if isinstance(source, int) else source,
            "words": words.replace("\0", "")[:WORDS_MAX],
            "of_a_customer": isinstance(source, int),
        },
    )
    return done.first() is not None


# --- by customers and staff ----------------------------------------------------------------------


def unsubscribe(customer_id: int, campaign_id: int) -> bool:
    """No more mails to this customer, who says so themselves; honoured before the next window. Commits.

    True when this call did it, False when it was so already or there is no such customer.
    """
    customer = customer_queries.locked(customer_id)
    done = customer is not None and customer.erased_at is None and put(customer.email, "unsubscribed", campaign_id)
    if done:
        record("the customer", "customer.unsubscribed", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return done


def subscribe_again(customer_id: int, campaign_id: int) -> bool:
    """Take an unsubscription back, by the customer who pressed the button by mistake. Commits.

    A complaint stays: it came from somebody's mail provider, and is for staff to settle.
    """
    customer = customer_queries.locked(customer_id)
    listed = suppression_queries.of_email(customer.email) if customer is not None else None
    if customer is None or listed is None or listed.reason != "unsubscribed":
        db.session.rollback()
        return False
    _lift(customer.email)
    record("the customer", "customer.subscribed_again", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return True


def add(email: str, reason: str, by: str, words: str = "") -> tuple[Suppression, str | None]:
    """Put an address on the list by hand, whether or not it is a customer's. Commits.

    Where it stands there for a weaker reason, the words beside that stay behind the new ones.

    :returns: how it is listed now, and for which reason it was before, if it was.
    :raises Invalid: when it is no address, or the reason none of the three.
    """
    address = normalise_email(email)
    if is_own(address):
        raise Invalid(FieldError("email", "own_address", "Mails are sent from this address; it gets none of them."))
    if reason not in REASONS:
        raise Invalid(FieldError("reason", "reason_unknown", "Choose one of the reasons."))
    before = suppression_queries.of_email(address)
    # The row itself is about to change.
    was = before.reason if before is not None else None
    if put(address, reason, "staff", _with_earlier(words.strip(), before)):
        record(by, "suppression.added", _named(address), reason=reason)
    db.session.commit()
    found = suppression_queries.of_email(address)
    assert found is not None  # noqa: S101 (it has just been put there)
    return found, was


def _with_earlier(words: str, before: Suppression | None) -> str:
    if before is None or not before.words:
        return words
    earlier = f"before: {before.reason}, {before.words}"
    return f"{words[: WORDS_MAX - len(earlier) - 2]}; {earlier}" if words else earlier


def lift(key: str, by: str) -> None:
    """Let an address be mailed again, because its owner says so. Commits.

    :param key: a normalised e-mail, or what stands for that of somebody erased.
    :raises NotFound: when it is not on the list.
    """
    found = suppression_queries.of_email(key) or suppression_queries.by_key(key)
    if found is None:
        raise NotFound("This address is not on the list.")
    reason = found.reason
    _lift(key)
    record(by, "suppression.lifted", _named(key), reason=reason)
    db.session.commit()


def is_own(address: str) -> bool:
    """Whether it is an address of the shop's own, from which mails go out or to which they come back."""
    settings = current_app.config["SETTINGS"]
    own = (parseaddr(settings.mail_default_sender)[1], settings.mail_bounce_address or "")
    return address in {given.lower() for given in own}


def refuse_listed(email: str) -> None:
    """Whoever sends one mail by hand is told when the address must not be mailed.

    :raises DomainError: `suppressed`.
    """
    found = suppression_queries.of_email(normalise_email(email))
    if found is not None:
        raise DomainError(
            "suppressed",
            f"{email} must not be mailed ({found.reason}). Take it off the list “Do not mail” first if that is wrong.",
        )


def note_export(by: str) -> None:
    """Write down that somebody takes the list out."""
    record(by, "suppressions.exported", "do not mail")
    db.session.commit()


def _lift(key: str) -> None:
    db.session.execute(text("delete from suppression where email in (:key, :hash)"), _both(key))


def _both(email: str) -> dict[str, str]:
    return {"key": email, "hash": hashed_email(email)}


def _named(key: str) -> str:
    """How the trail, which is kept for ever, names an address: as the customer's number if it is one's, else not."""
    customer = customer_queries.by_email(key)
    return f"customer {customer.id}" if customer is not None else "an address that is no customer's"


# --- when a customer's e-mail changes, goes or comes back -----------------------------------------

_TO_HASH = text(
    """
    with gone as (delete from suppression where email = :key returning *)
    insert into suppression as known (email, reason, at, source)
    select :hash, reason, at, source from gone where :bounced or reason <> 'bounced'
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)
_COPY = text(
    """
    insert into suppression as known (email, reason, at, source, words)
    select :new, reason, at, source, words from suppression where email = :old and reason <> 'bounced'
    on conflict (email) do update
    set reason = excluded.reason, at = excluded.at, source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)
_FROM_HASH = text(
    """
    with gone as (delete from suppression where email = :hash returning *)
    insert into suppression as known (email, reason, at, source)
    select :key, reason, at, source from gone
    on conflict (email) do update set reason = excluded.reason, at = excluded.at, source = excluded.source
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    """
)


def come(email: str) -> None:
    """Somebody becomes a customer under this address: what its owner asked for before being erased, or under another
    customer's name, is there again by name. The caller commits."""
    db.session.execute(_FROM_HASH, _both(email))


def move(old: str, new: str) -> None:
    """A customer's e-mail has changed: that they asked not to be mailed follows them, that an address bounced does not.
    For the old address, which is nobody's now, it stays under its hash. The caller commits."""
    db.session.execute(_COPY, {"old": old, "new": new})
    db.session.execute(_TO_HASH, {**_both(old), "bounced": True})
    come(new)


def forget(customer: Customer) -> None:
    """A customer is about to be erased: that they asked not to be mailed stays, under a hash. The caller commits."""
    db.session.execute(_TO_HASH, {**_both(customer.email), "bounced": False})
