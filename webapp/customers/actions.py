"""Create, update and erase customers.

For audiences see `customers.audience_actions`, for file imports `customers.imports.actions`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta

from flask_babel import gettext as _
from sqlalchemy import case, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.audit import record_audit_entry
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers import suppression_sync
from webapp.customers.audience_actions import get_or_create_audience, require_audience_name
from webapp.customers.models import (
    ACTIVITY_PRECISION,
    ERASED_EMAIL_PLACEHOLDER,
    Audience,
    AudienceMember,
    Customer,
    CustomerImport,
    RejectedRow,
)
from webapp.customers.rejected_rows import iter_rejected_rows_of
from webapp.customers.validation import CustomerValues, clean_locale, clean_name, clean_source_id

MAX_UPSERT_ATTEMPTS = 3
REJECTED_ROWS_RETENTION = timedelta(days=90)
_CLEANERS: dict[str, Callable[[str], str]] = {
    "email": normalise_email,
    "name": clean_name,
    "locale": clean_locale,
    "source_id": clean_source_id,
}


def create_customer(values: CustomerValues, audience_ids: Collection[int], by: str) -> Customer:
    """Create a customer who belongs to these audiences. Commits.

    :param by: email address of the staff member, or the name of the API key.
    :raises InvalidInput: when the email address, name, language or source id is invalid.
    :raises DomainError: `conflict` when another customer has the email address or the source id.
    """
    customer = Customer(**_clean_values(values))
    _check_unique(customer)
    db.session.add(customer)
    _flush_customer()
    _carry_suppression_over("", customer)
    _set_audiences(customer.id, audience_ids)
    _record_customer_entry(by, "customer.created", customer)
    db.session.commit()
    return customer


def update_customer(customer_id: int, values: CustomerValues, audience_ids: Collection[int], by: str) -> Customer:
    """Update a customer. Commits.

    The customer keeps the id, so a new email address does not allow an offer to be redeemed again.

    :raises NotFound: when there is no such customer, or it was erased.
    :raises InvalidInput: as `create_customer`.
    :raises DomainError: `conflict`, as `create_customer`.
    """
    customer = customer_queries.lock_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        raise NotFound(_("This customer does not exist."))
    previous_email = customer.email
    changed_fields = _apply_values(customer, _clean_values(values))
    _flush_customer()
    _carry_suppression_over(previous_email, customer)
    _record_activity(customer.id)
    if _set_audiences(customer.id, audience_ids):
        changed_fields.append("audiences")
    if changed_fields:
        _record_customer_entry(by, "customer.changed", customer, fields=changed_fields)
    db.session.commit()
    return customer


def upsert_customer(
    values: CustomerValues, audiences: Iterable[str] | None, by: str, extra_audience: str | None = None
) -> tuple[Customer, bool]:
    """Create or update the customer with this source id. Commits.

    A customer with the same email address and no source id gets this source id. A suppression stays in force.

    :param audiences: names of all audiences to belong to, created when missing; None keeps the memberships.
    :param extra_audience: name of one more audience to join, as in a row of an import.
    :returns: the customer, and whether it was created.
    :raises InvalidInput: as `create_customer`.
    :raises DomainError: `conflict` when another customer has the email address.
    """
    names = None
    if audiences is not None:
        names = sorted({require_audience_name(name, f"audiences.{index}") for index, name in enumerate(audiences)})
    extra_name = require_audience_name(extra_audience, "audience") if extra_audience is not None else None
    for attempts_left in reversed(range(MAX_UPSERT_ATTEMPTS)):
        try:
            return _upsert_once(values, names, extra_name, by)
        except DomainError as error:
            # A concurrent request may have created or erased the customer since the SELECT above; a retry sees that.
            if error.key != "conflict" or not attempts_left:
                raise
    raise AssertionError("the loop returns or raises")


def _upsert_once(
    values: CustomerValues, audience_names: list[str] | None, extra_audience: str | None, by: str
) -> tuple[Customer, bool]:
    columns = _clean_values(values)
    if values.source_id is not None and not columns["source_id"]:
        message = _("The source ID needs at least one visible character.")
        raise InvalidInput(FieldError("source_id", "source_id_missing", message))
    match = customer_queries.find_customer_by_source_id(columns["source_id"] or "") or _find_customer_without_source_id(
        columns["email"] or ""
    )
    customer = customer_queries.lock_customer(match.id) if match else None
    is_new = customer is None
    previous_email = customer.email if customer is not None else ""
    changed_fields: list[str] = []
    if customer is None:
        customer = Customer(**columns)
        _check_unique(customer)
        db.session.add(customer)
    else:
        changed_fields = _apply_values(customer, columns)
    _flush_customer()
    _carry_suppression_over(previous_email, customer)
    _record_activity(customer.id)
    has_moved = audience_names is not None and _set_audiences(
        customer.id, [get_or_create_audience(name) for name in audience_names]
    )
    if extra_audience is not None and _add_to_audiences(customer.id, [get_or_create_audience(extra_audience)]):
        has_moved = True
    if has_moved:
        changed_fields.append("audiences")
    if is_new or changed_fields:
        _record_customer_entry(
            by,
            "customer.created" if is_new else "customer.changed",
            customer,
            **({} if is_new else {"fields": changed_fields}),
        )
    db.session.commit()
    return customer, is_new


def _find_customer_without_source_id(email: str) -> Customer | None:
    customer = customer_queries.find_customer_by_email(email)
    return customer if customer is not None and customer.source_id is None else None


# --- erasure -------------------------------------------------------------------------------------

# Functions of other packages that erase their personal data; `create_app` registers them, because those packages import
# this one and not the other way round. Each takes customer ids and leaves the commit to the caller.
erasure_hooks: tuple[Callable[[Sequence[int]], None], ...] = ()


def erase_customer(customer_id: int, by: str, if_inactive_since: datetime | None = None) -> bool:
    """Erase all personal data of a customer in every table. Idempotent. Commits.

    The row keeps its id, so that redemptions, limits and counts stay correct.

    :param if_inactive_since: erase only if `active_at` is more than `ACTIVITY_PRECISION` before this time.
    :returns: whether the customer was erased by this call.
    :raises NotFound: when there never was such a customer.
    """
    customer = customer_queries.lock_customer(customer_id)
    if customer is None:
        raise NotFound(_("This customer does not exist."))
    is_active = if_inactive_since is not None and customer.active_at >= if_inactive_since - ACTIVITY_PRECISION
    if customer.erased_at is not None or is_active:
        db.session.rollback()
        return False
    _erase_rejected_rows(customer)
    suppression_sync.erase_suppression(customer)
    blank_values = {
        "email": f"erased {customer_id}",
        "email_as_given": ERASED_EMAIL_PLACEHOLDER,
        "name": "",
        "locale": None,
        "source_id": None,
    }
    db.session.execute(update(Customer).where(Customer.id == customer_id).values(**blank_values, erased_at=func.now()))
    _erase_related_data([customer_id])
    _record_customer_entry(by, "customer.erased", customer)
    db.session.commit()
    return True


def repeat_recent_erasures() -> None:
    """Erase the related data of recently erased customers again. Commits.

    A concurrent redemption, import or campaign may have written some of it after the erasure.
    """
    if customer_ids := customer_queries.list_recently_erased_ids():
        _erase_related_data(customer_ids)
    db.session.commit()


def delete_old_rejected_rows() -> None:
    """Delete the rejected rows of old imports. Commits.

    They contain personal data. The import keeps their number.
    """
    old_imports = select(CustomerImport.id).where(CustomerImport.finished_at < func.now() - REJECTED_ROWS_RETENTION)
    db.session.execute(delete(RejectedRow).where(RejectedRow.import_id.in_(old_imports)))
    db.session.commit()


def _erase_related_data(customer_ids: Sequence[int]) -> None:
    db.session.execute(delete(AudienceMember).where(AudienceMember.customer_id.in_(customer_ids)))
    for erase_related in erasure_hooks:
        erase_related(customer_ids)


def _erase_rejected_rows(customer: Customer) -> None:
    row_ids = [found.id for found in iter_rejected_rows_of(customer)]
    # This message quotes a value of the row.
    detail = case((RejectedRow.code == "locale_unknown", ""), else_=RejectedRow.detail)
    db.session.execute(update(RejectedRow).where(RejectedRow.id.in_(row_ids)).values(row="", detail=detail))


def record_personal_data_export(customer: Customer, by: str, form: str) -> None:
    """Record in the audit log who exported the personal data of a customer. Commits.

    :param form: `page` or `json`.
    """
    _record_customer_entry(by, "customer.personal_data_exported", customer, form=form)
    db.session.commit()


def record_customer_export(audience: Audience | None, by: str) -> None:
    """Record an export of customers in the audit log. Commits."""
    record_audit_entry(by, "customers.exported", audience.name if audience else "all customers")
    db.session.commit()


# --- helpers -------------------------------------------------------------------------------------


def _clean_values(values: CustomerValues) -> dict[str, str | None]:
    """Return the columns for these values; report the errors of all fields at once."""
    columns: dict[str, str | None] = {}
    errors: list[FieldError] = []
    for field, clean in _CLEANERS.items():
        raw_value = getattr(values, field)
        if raw_value is None:
            continue
        try:
            columns[field] = clean(raw_value)
        except InvalidInput as error:
            errors += error.errors
    if errors:
        raise InvalidInput(*errors)
    raw_email = values.email.strip()
    columns["email_as_given"] = raw_email if raw_email.isprintable() else columns["email"]
    for field in ("locale", "source_id"):
        if field in columns:
            columns[field] = columns[field] or None
    return columns


def _record_customer_entry(by: str, action: str, customer: Customer, **detail: object) -> None:
    """Record an audit entry that names the customer only by id.

    Audit entries cannot be changed, not even by an erasure.
    """
    record_audit_entry(by, action, f"customer {customer.id}", **detail)


def _apply_values(customer: Customer, columns: dict[str, str | None]) -> list[str]:
    """Set the columns of a customer; return the names of the fields that changed."""
    changed = [column for column, value in columns.items() if getattr(customer, column) != value]
    with db.session.no_autoflush:
        for column, value in columns.items():
            setattr(customer, column, value)
        _check_unique(customer)
    # A change of `email`, of `email_as_given` (such as its case) or of both is one change of the email address.
    return list(dict.fromkeys(column.removesuffix("_as_given") for column in changed))


def _record_activity(customer_id: int) -> None:
    stale = update(Customer).where(Customer.id == customer_id, Customer.active_at < func.now() - ACTIVITY_PRECISION)
    db.session.execute(stale.values(active_at=func.now()))


def _carry_suppression_over(previous_email: str, customer: Customer) -> None:
    """Update the suppression list for a new customer or a changed address."""
    if not previous_email:
        suppression_sync.restore_suppression(customer.email)
    elif previous_email != customer.email:
        suppression_sync.move_suppression(previous_email, customer.email)


def _check_unique(customer: Customer) -> None:
    other = customer_queries.find_customer_by_email(customer.email)
    if other is not None and other is not customer:
        message = _("Another customer has this email address. Change that customer first, or use another address.")
        raise _conflict("email", message)
    other = customer_queries.find_customer_by_source_id(customer.source_id) if customer.source_id else None
    if other is not None and other is not customer:
        message = _("Another customer has this source ID. Change that customer first, or use another ID.")
        raise _conflict("source_id", message)


def _conflict(field: str, message: str) -> DomainError:
    # Values already set on the customer must not be flushed by the next query.
    db.session.rollback()
    return DomainError("conflict", message, 409, field=field)


def _flush_customer() -> None:
    try:
        db.session.flush()
    except IntegrityError as error:
        field = "source_id" if "source_id" in str(error.orig) else "email"
        message = _("This customer has just been created. Search for the customer and edit the entry.")
        raise _conflict(field, message) from error


def _set_audiences(customer_id: int, audience_ids: Collection[int]) -> bool:
    """Make these the only audiences of a customer; return whether any changed.

    Unknown ids are ignored.
    """
    other_memberships = delete(AudienceMember).where(
        AudienceMember.customer_id == customer_id, AudienceMember.audience_id.not_in(audience_ids)
    )
    removed_ids = db.session.execute(other_memberships.returning(AudienceMember.audience_id)).all()
    return _add_to_audiences(customer_id, audience_ids) or bool(removed_ids)


def _add_to_audiences(customer_id: int, audience_ids: Collection[int]) -> bool:
    members = select(Audience.id, literal(customer_id)).where(Audience.id.in_(audience_ids))
    statement = upsert(AudienceMember).from_select(["audience_id", "customer_id"], members).on_conflict_do_nothing()
    return bool(db.session.execute(statement.returning(AudienceMember.audience_id)).all())
