"""Who must not be mailed: putting an address on the list and taking it off again."""

from __future__ import annotations

from email.utils import parseaddr

from flask import current_app
from sqlalchemy import text

from webapp.accounts.actions import record_audit_entry
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import SUPPRESSION_REASONS, Suppression
from webapp.customers.suppression_sync import suppression_keys
from webapp.customers.suppressions import queries as suppression_queries

_UPSERT_SUPPRESSION = text(
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
DETAIL_MAX_LENGTH = 1000


def add_suppression(email: str, reason: str, source: int | str, words: str = "") -> bool:
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
        _UPSERT_SUPPRESSION,
        {
            "email": email,
            "reason": reason,
            "source": f"campaign {source}" if isinstance(source, int) else source,
            "words": words.replace("\0", "")[:DETAIL_MAX_LENGTH],
            "of_a_customer": isinstance(source, int),
        },
    )
    return done.first() is not None


# --- by customers and staff ----------------------------------------------------------------------


def unsubscribe_customer(customer_id: int, campaign_id: int) -> bool:
    """No more mails to this customer, who says so themselves; honoured before the next window. Commits.

    True when this call did it, False when it was so already or there is no such customer.
    """
    customer = customer_queries.lock_customer(customer_id)
    done = (
        customer is not None
        and customer.erased_at is None
        and add_suppression(customer.email, "unsubscribed", campaign_id)
    )
    if done:
        record_audit_entry("the customer", "customer.unsubscribed", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return done


def resubscribe_customer(customer_id: int, campaign_id: int) -> bool:
    """Take an unsubscription back, by the customer who pressed the button by mistake. Commits.

    A complaint stays: it came from somebody's mail provider, and is for staff to settle.
    """
    customer = customer_queries.lock_customer(customer_id)
    listed = suppression_queries.find_suppression_by_email(customer.email) if customer is not None else None
    if customer is None or listed is None or listed.reason != "unsubscribed":
        db.session.rollback()
        return False
    _delete_suppression(customer.email)
    record_audit_entry("the customer", "customer.subscribed_again", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return True


def add_suppression_by_staff(email: str, reason: str, by: str, words: str = "") -> tuple[Suppression, str | None]:
    """Put an address on the list by hand, whether or not it is a customer's. Commits.

    Where it stands there for a weaker reason, the words beside that stay behind the new ones.

    :returns: how it is listed now, and for which reason it was before, if it was.
    :raises Invalid: when it is no address, or the reason none of the three.
    """
    address = normalise_email(email)
    if is_own_address(address):
        raise InvalidInput(
            FieldError("email", "own_address", "Mails are sent from this address; it gets none of them.")
        )
    if reason not in SUPPRESSION_REASONS:
        raise InvalidInput(FieldError("reason", "reason_unknown", "Choose one of the reasons."))
    before = suppression_queries.find_suppression_by_email(address)
    # The row itself is about to change.
    was = before.reason if before is not None else None
    if add_suppression(address, reason, "staff", _append_previous_detail(words.strip(), before)):
        record_audit_entry(by, "suppression.added", _audit_subject(address), reason=reason)
    db.session.commit()
    found = suppression_queries.find_suppression_by_email(address)
    assert found is not None  # noqa: S101 (it has just been put there)
    return found, was


def _append_previous_detail(words: str, before: Suppression | None) -> str:
    if before is None or not before.words:
        return words
    earlier = f"before: {before.reason}, {before.words}"
    return f"{words[: DETAIL_MAX_LENGTH - len(earlier) - 2]}; {earlier}" if words else earlier


def remove_suppression(key: str, by: str) -> None:
    """Let an address be mailed again, because its owner says so. Commits.

    :param key: a normalised e-mail, or what stands for that of somebody erased.
    :raises NotFound: when it is not on the list.
    """
    found = suppression_queries.find_suppression_by_email(key) or suppression_queries.find_suppression_by_key(key)
    if found is None:
        raise NotFound("This address is not on the list.")
    reason = found.reason
    _delete_suppression(key)
    record_audit_entry(by, "suppression.lifted", _audit_subject(key), reason=reason)
    db.session.commit()


def is_own_address(address: str) -> bool:
    """Whether it is an address of the shop's own, from which mails go out or to which they come back."""
    settings = current_app.config["SETTINGS"]
    own = (parseaddr(settings.mail_default_sender)[1], settings.mail_bounce_address or "")
    return address in {given.lower() for given in own}


def check_not_suppressed(email: str) -> None:
    """Whoever sends one mail by hand is told when the address must not be mailed.

    :raises DomainError: `suppressed`.
    """
    found = suppression_queries.find_suppression_by_email(normalise_email(email))
    if found is not None:
        raise DomainError(
            "suppressed",
            f"{email} must not be mailed ({found.reason}). Take it off the list “Do not mail” first if that is wrong.",
        )


def record_suppression_export(by: str) -> None:
    """Write down that somebody takes the list out."""
    record_audit_entry(by, "suppressions.exported", "do not mail")
    db.session.commit()


def _delete_suppression(key: str) -> None:
    db.session.execute(text("delete from suppression where email in (:key, :hash)"), suppression_keys(key))


def _audit_subject(key: str) -> str:
    """How the trail, which is kept for ever, names an address: as the customer's number if it is one's, else not."""
    customer = customer_queries.find_customer_by_email(key)
    return f"customer {customer.id}" if customer is not None else "an address that is no customer's"
