"""What is done with single customers and with audiences. Imports have `import_actions`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta

from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.actions import record_audit_entry
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers import suppression_sync
from webapp.customers.models import (
    ERASED_EMAIL_PLACEHOLDER,
    Audience,
    AudienceMember,
    Customer,
    CustomerImport,
    RejectedRow,
)
from webapp.customers.validation import CustomerValues, clean_audience_name, clean_locale, clean_name, clean_source_id

MAX_UPSERT_ATTEMPTS = 3
REJECTED_ROWS_RETENTION = timedelta(days=90)
_CLEANERS: dict[str, Callable[[str], str]] = {
    "email": normalise_email,
    "name": clean_name,
    "locale": clean_locale,
    "source_id": clean_source_id,
}


def create_customer(values: CustomerValues, audience_ids: Collection[int], by: str) -> Customer:
    """A new customer, in these audiences.

    :raises Invalid: for an e-mail that is none, or a name, language or source id that can't be kept.
    :raises DomainError: `conflict` when another customer has the e-mail or the source id.
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
    """Other values for a customer, who keeps the id: a new e-mail frees no second use of any offer.

    :raises NotFound: when there is no such customer, or it was erased.
    :raises Invalid: as `create`.
    :raises DomainError: `conflict`, as `create`.
    """
    customer = customer_queries.lock_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        raise NotFound("There is no such customer.")
    before = customer.email
    changed = _apply_values(customer, _clean_values(values))
    _flush_customer()
    _carry_suppression_over(before, customer)
    if _set_audiences(customer.id, audience_ids):
        changed.append("audiences")
    if changed:
        _record_customer_entry(by, "customer.changed", customer, fields=changed)
    db.session.commit()
    return customer


def upsert_customer(
    values: CustomerValues, audiences: Iterable[str] | None, by: str, joins: str | None = None
) -> tuple[Customer, bool]:
    """The customer with this source id as it shall be, made when missing; and whether it was made.

    Somebody who is known by the e-mail only, without a source id, gets it. Who must not be mailed still must not.

    :param audiences: the names of all audiences to be in, made when missing; None leaves them as they are.
    :param joins: the name of an audience to be in besides those, as a row of an import has it.
    :raises Invalid: as `create`.
    :raises DomainError: `conflict` when another customer has the e-mail.
    """
    names = None
    if audiences is not None:
        names = sorted({_require_audience_name(name, f"audiences.{n}") for n, name in enumerate(audiences)})
    joined = _require_audience_name(joins, "audience") if joins is not None else None
    for tries_left in reversed(range(MAX_UPSERT_ATTEMPTS)):
        try:
            return _upsert_once(values, names, joined, by)
        except DomainError as error:
            # Somebody may have made or erased the same customer between two of our looks; the next try finds that out.
            if error.key != "conflict" or not tries_left:
                raise
    raise AssertionError("the loop returns or raises")


def _upsert_once(values: CustomerValues, names: list[str] | None, joined: str | None, by: str) -> tuple[Customer, bool]:
    wanted = _clean_values(values)
    if values.source_id is not None and not wanted["source_id"]:
        raise InvalidInput(
            FieldError("source_id", "source_id_missing", "A source id has at least one visible character.")
        )
    found = customer_queries.find_customer_by_source_id(wanted["source_id"] or "") or _find_customer_without_source_id(
        wanted["email"] or ""
    )
    customer = customer_queries.lock_customer(found.id) if found else None
    is_new = customer is None
    before = customer.email if customer is not None else ""
    changed: list[str] = []
    if customer is None:
        customer = Customer(**wanted)
        _check_unique(customer)
        db.session.add(customer)
    else:
        changed = _apply_values(customer, wanted)
    _flush_customer()
    _carry_suppression_over(before, customer)
    moved = names is not None and _set_audiences(customer.id, [_get_or_create_audience(name) for name in names])
    if joined is not None and _add_to_audiences(customer.id, [_get_or_create_audience(joined)]):
        moved = True
    if moved:
        changed.append("audiences")
    if is_new or changed:
        _record_customer_entry(
            by,
            "customer.created" if is_new else "customer.changed",
            customer,
            **({} if is_new else {"fields": changed}),
        )
    db.session.commit()
    return customer, is_new


def _find_customer_without_source_id(email: str) -> Customer | None:
    found = customer_queries.find_customer_by_email(email)
    return found if found is not None and found.source_id is None else None


# --- erasing -------------------------------------------------------------------------------------

# What other rooms keep about a person is emptied by functions of theirs, which create_app names here: those rooms know
# this one, not the other way round. Each takes the ids of customers, writes, and leaves the commit to us.
erasure_hooks: tuple[Callable[[Sequence[int]], None], ...] = ()


def erase_customer(customer_id: int, by: str) -> None:
    """Forget who a customer is, for good. The row keeps its id, so that redemptions, limits and counts stay true; all
    that names the person goes, here and in every other table. Once more changes nothing.

    :raises NotFound: when there never was such a customer.
    """
    customer = customer_queries.lock_customer(customer_id)
    if customer is None:
        raise NotFound("There is no such customer.")
    if customer.erased_at is not None:
        db.session.rollback()
        return
    _redact_rejected_rows(customer)
    suppression_sync.anonymise_suppression(customer)
    nobody = {
        "email": f"erased {customer_id}",
        "email_as_given": ERASED_EMAIL_PLACEHOLDER,
        "name": "",
        "locale": None,
        "source_id": None,
    }
    db.session.execute(update(Customer).where(Customer.id == customer_id).values(**nobody, erased_at=func.now()))
    _erase_related_data([customer_id])
    _record_customer_entry(by, "customer.erased", customer)
    db.session.commit()


def repeat_recent_erasures() -> None:
    """Empty once more what others keep of those who were erased a short while ago. Commits.

    Whoever was redeeming, importing or mailing at that very moment may have written after it.
    """
    if found := customer_queries.list_recently_erased_ids():
        _erase_related_data(found)
    db.session.commit()


def delete_old_rejected_rows() -> None:
    """Drop the refused rows of old imports: they hold what people misspelled of people. Their number stays. Commits."""
    old = select(CustomerImport.id).where(CustomerImport.finished_at < func.now() - REJECTED_ROWS_RETENTION)
    db.session.execute(delete(RejectedRow).where(RejectedRow.import_id.in_(old)))
    db.session.commit()


def _erase_related_data(customer_ids: Sequence[int]) -> None:
    db.session.execute(delete(AudienceMember).where(AudienceMember.customer_id.in_(customer_ids)))
    for forget in erasure_hooks:
        forget(customer_ids)


def _redact_rejected_rows(customer: Customer) -> None:
    """Empty the rows of imports that could not be taken and hold this e-mail, in whatever capitals."""
    for spelling in {customer.email, customer.email_as_given}:
        whole = re.compile(rf"(?<![\w.+-]){re.escape(spelling)}(?!\.?[\w-])", re.IGNORECASE)
        found = [
            row_id for row_id, row in customer_queries.find_rejected_rows_containing(spelling) if whole.search(row)
        ]
        db.session.execute(update(RejectedRow).where(RejectedRow.id.in_(found)).values(row=""))


# --- audiences -----------------------------------------------------------------------------------


def create_audience(name: str, by: str) -> Audience:
    """A new, empty audience.

    :raises Invalid: when the name is empty or too long, or another audience has it.
    """
    audience = Audience(name=_require_free_audience_name(name, None))
    db.session.add(audience)
    _flush_audience()
    record_audit_entry(by, "audience.created", audience.name, id=audience.id)
    db.session.commit()
    return audience


def rename_audience(audience_id: int, name: str, by: str) -> Audience:
    """Another name for an audience; offers for it are for it under any name.

    :raises NotFound: when there is no such audience.
    :raises Invalid: as `create_audience`.
    """
    audience = customer_queries.find_audience(audience_id)
    if audience is None:
        raise NotFound("There is no such audience.")
    before = audience.name
    audience.name = _require_free_audience_name(name, audience_id)
    _flush_audience()
    record_audit_entry(by, "audience.renamed", audience.name, id=audience.id, was=before)
    db.session.commit()
    return audience


def record_customer_export(audience: Audience | None, by: str) -> None:
    """Write down that somebody takes the customers' data out."""
    record_audit_entry(by, "customers.exported", audience.name if audience else "everyone")
    db.session.commit()


def record_rejected_rows_export(import_id: int, by: str) -> None:
    """Write down that somebody takes the rows out that an import could not take."""
    record_audit_entry(by, "customers.refused_rows_exported", f"import {import_id}")
    db.session.commit()


# --- the rules -----------------------------------------------------------------------------------


def _clean_values(values: CustomerValues) -> dict[str, str | None]:
    """The columns that these values stand for; every field that can't be taken is told at once."""
    columns: dict[str, str | None] = {}
    wrong: list[FieldError] = []
    for field, clean in _CLEANERS.items():
        given = getattr(values, field)
        if given is None:
            continue
        try:
            columns[field] = clean(given)
        except InvalidInput as error:
            wrong += error.errors
    if wrong:
        raise InvalidInput(*wrong)
    given = values.email.strip()
    columns["email_as_given"] = given if given.isprintable() else columns["email"]
    for field in ("locale", "source_id"):
        if field in columns:
            columns[field] = columns[field] or None
    return columns


def _record_customer_entry(by: str, action: str, customer: Customer, **detail: object) -> None:
    """The trail names a customer by the id alone: it is kept for ever, and they may want to be forgotten."""
    record_audit_entry(by, action, f"customer {customer.id}", **detail)


def _apply_values(customer: Customer, columns: dict[str, str | None]) -> list[str]:
    """Take other values; which of them differ."""
    changed = [column for column, value in columns.items() if getattr(customer, column) != value]
    with db.session.no_autoflush:
        for column, value in columns.items():
            setattr(customer, column, value)
        _check_unique(customer)
    # An address in other capitals is a change of the e-mail; one in others altogether is no second one.
    return list(dict.fromkeys(column.removesuffix("_as_given") for column in changed))


def _carry_suppression_over(before: str, customer: Customer) -> None:
    """Whether they may be mailed is known by the address, which may be another one now, or the first."""
    if not before:
        suppression_sync.restore_suppression(customer.email)
    elif before != customer.email:
        suppression_sync.move_suppression(before, customer.email)


def _check_unique(customer: Customer) -> None:
    other = customer_queries.find_customer_by_email(customer.email)
    if other is not None and other is not customer:
        raise _conflict("email", "Another customer has this e-mail. Change that one, or type another address.")
    other = customer_queries.find_customer_by_source_id(customer.source_id) if customer.source_id else None
    if other is not None and other is not customer:
        raise _conflict("source_id", "Another customer has this source id. Change that one, or type another.")


def _conflict(field: str, sentence: str) -> DomainError:
    # What was set on the customer must not reach the database with the next query.
    db.session.rollback()
    return DomainError("conflict", sentence, 409, field=field)


def _flush_customer() -> None:
    try:
        db.session.flush()
    except IntegrityError as error:
        field = "source_id" if "source_id" in str(error.orig) else "email"
        raise _conflict(
            field, "Somebody entered the same customer at this moment. Look them up and change that."
        ) from error


def _set_audiences(customer_id: int, audience_ids: Collection[int]) -> bool:
    """Be in these audiences and in no other; whether that changed anything. Those that do not exist are passed over."""
    others = delete(AudienceMember).where(
        AudienceMember.customer_id == customer_id, AudienceMember.audience_id.not_in(audience_ids)
    )
    left = db.session.execute(others.returning(AudienceMember.audience_id)).all()
    return _add_to_audiences(customer_id, audience_ids) or bool(left)


def _add_to_audiences(customer_id: int, audience_ids: Collection[int]) -> bool:
    wanted = select(Audience.id, literal(customer_id)).where(Audience.id.in_(audience_ids))
    joining = upsert(AudienceMember).from_select(["audience_id", "customer_id"], wanted).on_conflict_do_nothing()
    return bool(db.session.execute(joining.returning(AudienceMember.audience_id)).all())


def _require_free_audience_name(given: str, own_id: int | None) -> str:
    name = _require_audience_name(given)
    other = customer_queries.find_audience_by_name(name)
    if other is not None and other.id != own_id:
        raise _audience_name_conflict()
    return name


def _require_audience_name(given: str, field: str = "name") -> str:
    try:
        name = clean_audience_name(given)
    except InvalidInput as error:
        raise InvalidInput(*(FieldError(field, item.key, item.message) for item in error.errors)) from error
    if not name:
        raise InvalidInput(FieldError(field, "name_missing", "Give the audience a name."))
    return name


def _get_or_create_audience(name: str) -> int:
    db.session.execute(upsert(Audience).values(name=name).on_conflict_do_nothing())
    return db.session.execute(select(Audience.id).where(Audience.name == name)).scalar_one()


def _flush_audience() -> None:
    try:
        db.session.flush()
    except IntegrityError as error:
        db.session.rollback()
        raise _audience_name_conflict() from error


def _audience_name_conflict() -> InvalidInput:
    return InvalidInput(FieldError("name", "name_taken", "There is an audience of this name already."))
