"""Add addresses to the suppression list and remove them."""

from __future__ import annotations

from email.utils import parseaddr

from flask import current_app
from flask_babel import gettext as _
from sqlalchemy import text

from webapp.accounts.audit import CUSTOMER_ACTOR, record_audit_entry
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import SUPPRESSION_REASONS, Suppression
from webapp.customers.suppression_sync import suppression_keys
from webapp.customers.suppressions import queries as suppression_queries

_LOCK_CUSTOMER = text("select 1 from customer where email = :email for share")
# Values, because Citus inserts no row into a reference table from a SELECT in which only a subquery reads a table.
_UPSERT_SUPPRESSION = text(
    """
    insert into suppression as existing (email, reason, source, words) values (:email, :reason, :source, :detail)
    on conflict (email) do update
    set reason = excluded.reason, at = excluded.at, source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], existing.reason)
    returning 1
    """
)
MAX_DETAIL_LENGTH = 1000


def add_suppression(email: str, reason: str, source: int | str, detail: str = "") -> bool:
    """Suppress an address from the next send window of a campaign on.

    The caller commits. An existing entry keeps its reason unless the new one is stronger: complained, then
    unsubscribed, then bounced.

    :param email: normalised, as `customer.email` is.
    :param reason: `unsubscribed`, `bounced` or `complained`.
    :param source: a campaign id, or `import`, `staff`, `api` or `relay`. An entry from a campaign is added only while a
        customer has the address, because the address of a customer who is erased concurrently must not be stored in
        plain text again.
    :param detail: the reply of the mail server, or who asked for the suppression; truncated to `MAX_DETAIL_LENGTH`.
    :returns: whether the list changed.
    """
    if isinstance(source, int) and db.session.execute(_LOCK_CUSTOMER, {"email": email}).first() is None:
        return False
    result = db.session.execute(
        _UPSERT_SUPPRESSION,
        {
            "email": email,
            "reason": reason,
            "source": f"campaign {source}" if isinstance(source, int) else source,
            "detail": detail.replace("\0", "")[:MAX_DETAIL_LENGTH],
        },
    )
    return result.first() is not None


# --- by customers and staff ----------------------------------------------------------------------


def unsubscribe_customer(customer_id: int, campaign_id: int) -> bool:
    """Unsubscribe a customer at their own request. Commits.

    It takes effect from the next send window on.

    :returns: False when the customer is already suppressed for this or a stronger reason, is erased or does not exist.
    """
    customer = customer_queries.lock_customer(customer_id)
    is_unsubscribed = (
        customer is not None
        and customer.erased_at is None
        and add_suppression(customer.email, "unsubscribed", campaign_id)
    )
    if is_unsubscribed:
        record_audit_entry(CUSTOMER_ACTOR, "customer.unsubscribed", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return is_unsubscribed


def resubscribe_customer(customer_id: int, campaign_id: int) -> bool:
    """Undo an unsubscription at the customer's own request. Commits.

    A complaint stays: it was reported by an email provider, and only staff can remove it.

    :returns: False when the customer is not unsubscribed.
    """
    customer = customer_queries.lock_customer(customer_id)
    suppression = suppression_queries.find_suppression_by_email(customer.email) if customer is not None else None
    if customer is None or suppression is None or suppression.reason != "unsubscribed":
        db.session.rollback()
        return False
    _delete_suppression(customer.email)
    record_audit_entry(CUSTOMER_ACTOR, "customer.subscribed_again", f"customer {customer_id}", campaign=campaign_id)
    db.session.commit()
    return True


def add_suppression_by_staff(email: str, reason: str, by: str, detail: str = "") -> tuple[Suppression, str | None]:
    """Suppress an address by hand, with or without a customer. Commits.

    When a stronger reason replaces a weaker one, the previous detail is appended to the new one.

    :param by: email address of the staff member.
    :returns: the current entry, and its previous reason if the address was suppressed before.
    :raises InvalidInput: when the address or the reason is invalid, or the address is the shop's own.
    """
    address = normalise_email(email)
    if is_own_address(address):
        message = _("Emails are sent from this address, so it can't be suppressed. Enter another address.")
        raise InvalidInput(FieldError("email", "own_address", message))
    if reason not in SUPPRESSION_REASONS:
        raise InvalidInput(FieldError("reason", "reason_unknown", _("Choose a reason from the list.")))
    previous = suppression_queries.find_suppression_by_email(address)
    # Read before the upsert: the next query refreshes this object.
    previous_reason = previous.reason if previous is not None else None
    if add_suppression(address, reason, "staff", _append_previous_detail(detail.strip(), previous)):
        record_audit_entry(by, "suppression.added", _audit_subject(address), reason=reason)
    db.session.commit()
    current = suppression_queries.find_suppression_by_email(address)
    assert current is not None  # noqa: S101 (added above)
    return current, previous_reason


def _append_previous_detail(detail: str, previous: Suppression | None) -> str:
    if previous is None or not previous.detail:
        return detail
    earlier = f"before: {previous.reason}, {previous.detail}"
    return f"{detail[: MAX_DETAIL_LENGTH - len(earlier) - 2]}; {earlier}" if detail else earlier


def remove_suppression(key: str, by: str) -> None:
    """Remove an address from the suppression list at its owner's request. Commits.

    :param key: a normalised email address, or the hash kept for an erased customer.
    :param by: email address of the staff member.
    :raises NotFound: when it is not on the list.
    """
    suppression = suppression_queries.find_suppression_by_email(key) or suppression_queries.find_suppression_by_key(key)
    if suppression is None:
        raise NotFound(_("This address is not on the suppression list."))
    reason = suppression.reason
    _delete_suppression(key)
    record_audit_entry(by, "suppression.lifted", _audit_subject(key), reason=reason)
    db.session.commit()


def is_own_address(address: str) -> bool:
    """Return whether the shop sends email from this address or receives bounces at it."""
    settings = current_app.config["SETTINGS"]
    own_addresses = (parseaddr(settings.mail_default_sender)[1], settings.mail_bounce_address or "")
    return address in {own_address.lower() for own_address in own_addresses}


def check_not_suppressed(email: str) -> None:
    """Check that a single email may be sent by hand to this address.

    :raises DomainError: `suppressed`.
    """
    suppression = suppression_queries.find_suppression_by_email(normalise_email(email))
    if suppression is not None:
        raise DomainError(
            "suppressed",
            _(
                "%(email)s is on the suppression list (%(reason)s). Remove it from the list first if that is wrong.",
                email=email,
                reason=suppression.reason,
            ),
        )


def record_suppression_export(by: str) -> None:
    """Record an export of the suppression list in the audit log. Commits."""
    record_audit_entry(by, "suppressions.exported", "suppression list")
    db.session.commit()


def _delete_suppression(key: str) -> None:
    db.session.execute(text("delete from suppression where email in (:key, :hash)"), suppression_keys(key))


def _audit_subject(key: str) -> str:
    """Describe an address in the audit log without naming it.

    An erasure does not change the audit log, so it contains at most the customer's id.
    """
    customer = customer_queries.find_customer_by_email(key)
    return f"customer {customer.id}" if customer is not None else "an address without a customer"
