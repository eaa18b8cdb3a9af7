"""What is done with offers, and the rules for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from babel.numbers import is_currency
from sqlalchemy import Connection, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.actions import record_audit_entry
from webapp.core import local_time
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import queries as offer_queries
from webapp.offers.code_actions import (
    candidate_codes,
    check_version,
    clean_display_code,
    code_errors,
    code_taken_error,
    replace_code,
    reserve_code,
)
from webapp.offers.models import Offer, OfferValues, normalise_code

NAME_MAX = 200
CAP_MAX = 10**12
AMOUNT_MAX = 10**12
VALID_YEARS = range(2000, 2200)


def create_offer(values: OfferValues, by: str) -> Offer:
    """Add an offer and commit. See `add`."""
    offer = insert_offer(values, by)
    db.session.commit()
    return offer


def insert_offer(values: OfferValues, by: str) -> Offer:
    """Add an offer, in the transaction of the caller, who commits.

    :raises Invalid: with every field that can't be taken: `name_missing`, `code_taken`, `discount_invalid`,
        `window_invalid`, `cap_invalid`, `audience_unknown`, …
    """
    _raise_if_invalid(values)
    row = _column_values(values)
    offer = None
    for code in candidate_codes(values.code):
        row |= {"code": normalise_code(code), "code_as_written": clean_display_code(code)}
        offer = _insert_with_code(row)
        if offer is not None:
            break
    if offer is None:
        raise code_taken_error()
    record_audit_entry(by, "offer.created", offer.code_as_written, name=offer.name)
    return offer


def update_offer(
    offer_id: int, changes: Mapping[str, Any], version: int | None, by: str, paused: bool | None = None
) -> Offer:
    """Change an offer: `changes` names fields of OfferValues. Commits.

    :param version: the version the change was made from; None takes whatever stands now.
    :param paused: whether it shall be paused; None leaves that as it is.
    :raises NotFound: when there is no such offer.
    :raises DomainError: `conflict` when somebody else has changed it since.
    :raises Invalid: as `add`; and `frozen` when the discount, the code, or whether there is a cap would change after
        the first launch or redemption, `cap_below_redeemed` when the cap would fall below what is used.
    """
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound("There is no such offer.")
    check_version(offer, version)
    values = dataclasses.replace(offer.values(), **changes)
    _raise_if_invalid(values)
    _raise_if_frozen(offer, values)
    before = offer.values()
    if values != before:
        _save_values(offer, values)
        changed = [f.name for f in dataclasses.fields(values) if getattr(values, f.name) != getattr(before, f.name)]
        record_audit_entry(by, "offer.changed", offer.code_as_written, fields=changed)
    if paused is not None:
        _set_paused(offer, paused, by)
    db.session.commit()
    return offer


def pause_offer(offer_id: int, by: str) -> Offer:
    """Stop an offer from being redeemed until it is resumed. Pausing a paused one changes nothing. Commits.

    :raises NotFound: when there is no such offer.
    """
    return update_offer(offer_id, {}, None, by, paused=True)


def resume_offer(offer_id: int, by: str) -> Offer:
    """Let a paused offer be redeemed again. Commits.

    :raises NotFound: when there is no such offer.
    """
    return update_offer(offer_id, {}, None, by, paused=False)


def set_personal_code_required(offer_id: int, required: bool, by: str) -> Offer:
    """Have only personal codes and links work, or the shared code, too. A second time changes nothing. Commits.

    :raises NotFound: when there is no such offer.
    """
    return update_offer(offer_id, {"personal_code_required": required}, None, by)


def freeze_offer(offer_id: int, connection: Connection | None = None) -> bool:
    """Freeze the discount, the code and whether there is a cap; True when this call did it. The caller commits.

    What a mail promised or a till gave is then worth the same for good, and no redemption goes uncounted. Another code
    is then given by `code_actions.renew_code`, which leaves the old one working. Whom the offer is for, and whether it
    asks for the personal code, can still be changed.

    :param connection: to write on; that of the session unless another is given.
    """
    frozen = (connection or db.session).scalar(
        update(Offer)
        .where(Offer.id == offer_id, Offer.frozen_at.is_(None))
        .values(frozen_at=func.now())
        .returning(Offer.id)
        .execution_options(synchronize_session=False)
    )
    return frozen is not None


def _set_paused(offer: Offer, paused: bool, by: str) -> None:
    if (offer.paused_at is not None) == paused:
        return
    offer.paused_at = offer_queries.database_now() if paused else None
    offer.version += 1
    record_audit_entry(by, "offer.paused" if paused else "offer.resumed", offer.code_as_written)


def _insert_with_code(row: dict[str, Any]) -> Offer | None:
    """The new offer, or None when its code is taken; also when somebody takes it at this very moment."""
    try:
        with db.session.begin_nested() as point:
            offer = db.session.scalars(insert(Offer).values(row).returning(Offer)).one()
            if reserve_code(offer.id, row["code"], row["code_as_written"]):
                return offer
            point.rollback()
            return None
    except IntegrityError as error:
        raise _translate_integrity_error(error) from error


def _save_values(offer: Offer, values: OfferValues) -> None:
    row = _column_values(values) | {
        "code": normalise_code(values.code or ""),
        "code_as_written": clean_display_code(values.code or ""),
    }
    try:
        with db.session.begin_nested():
            replace_code(offer.code, row["code"], row["code_as_written"])
            for name, value in row.items():
                setattr(offer, name, value)
            offer.version += 1
            db.session.flush()
    except IntegrityError as error:
        raise _translate_integrity_error(error) from error


def _translate_integrity_error(error: IntegrityError) -> DomainError:
    name = getattr(getattr(error.orig, "diag", None), "constraint_name", "")
    if name == "pk_offer_code":
        return code_taken_error()
    if name == "fk_offer_audience_id":
        return InvalidInput(FieldError("audience", "audience_unknown", "This audience does not exist; choose another."))
    raise error


def _column_values(values: OfferValues) -> dict[str, Any]:
    return {
        "name": values.name.strip(),
        "discount_type": values.discount.type,
        "percent": values.discount.percent,
        "amount": values.discount.amount,
        "currency": values.discount.currency,
        "starts_at": values.starts_at,
        "ends_at": values.ends_at,
        "time_zone": values.time_zone,
        "audience_id": values.audience_id,
        "personal_code_required": values.personal_code_required,
        "max_redemptions": values.max_redemptions,
    }


def _raise_if_invalid(values: OfferValues) -> None:
    errors = [
        *_name_errors(values),
        *code_errors(values.code),
        *_discount_errors(values.discount),
        *_window_errors(values),
        *_cap_errors(values),
    ]
    if errors:
        raise InvalidInput(*errors)


def _name_errors(values: OfferValues) -> Iterator[FieldError]:
    name = values.name.strip()
    if not name:
        yield FieldError("name", "name_missing", "Give the offer a name; customers see it.")
    elif len(name) > NAME_MAX:
        yield FieldError("name", "name_too_long", f"A name has at most {NAME_MAX} characters.")
    elif not name.isprintable():
        yield FieldError("name", "name_invalid", "A name is one line of plain text.")


def _discount_errors(discount: Discount) -> Iterator[FieldError]:
    if discount.type == "percent":
        percent = discount.percent
        if percent is None or not percent.is_finite() or not 0 < percent <= 100:
            yield FieldError("discount.percent", "discount_invalid", "Give a percentage above 0 and up to 100.")
        elif percent != percent.quantize(Decimal("0.01")):
            yield FieldError("discount.percent", "discount_invalid", "A percentage has at most two decimals.")
        return
    if discount.amount is None or not 0 < discount.amount <= AMOUNT_MAX:
        yield FieldError("discount.amount", "discount_invalid", "Give an amount above 0.")
    if discount.currency is None or not is_currency(discount.currency):
        yield FieldError("discount.currency", "currency_unknown", "Give a currency by its three letters, such as EUR.")


def _window_errors(values: OfferValues) -> Iterator[FieldError]:
    try:
        local_time.parse_time_zone(values.time_zone)
    except InvalidInput as error:
        yield from error.errors
    for field, at in (("starts_at", values.starts_at), ("ends_at", values.ends_at)):
        if at is not None and at.year not in VALID_YEARS:
            yield FieldError(field, "time_out_of_range", f"Choose a day from {VALID_YEARS[0]} to {VALID_YEARS[-1]}.")
    if values.ends_at is not None and values.ends_at <= values.starts_at:
        yield FieldError("ends_at", "window_invalid", "The end must come after the start.")


def _cap_errors(values: OfferValues) -> Iterator[FieldError]:
    cap = values.max_redemptions
    if cap is not None and not 1 <= cap <= CAP_MAX:
        yield FieldError("max_redemptions", "cap_invalid", "The cap is a whole number from 1; leave it empty for none.")


def _raise_if_frozen(offer: Offer, values: OfferValues) -> None:
    if offer.frozen_at is None:
        return
    errors = []
    if values.discount != offer.discount:
        field = "discount.percent" if values.discount.type == "percent" else "discount.amount"
        errors.append(
            FieldError(
                field,
                "frozen",
                "The discount can't change any more: it was mailed or redeemed already. Make a new offer instead.",
            )
        )
    if normalise_code(values.code or "") != offer.code:
        errors.append(
            FieldError(
                "code",
                "frozen",
                "The code was mailed or redeemed already. Renew it instead; the one of now then goes on working, too.",
            )
        )
    if (values.max_redemptions is None) != (offer.max_redemptions is None):
        errors.append(
            FieldError(
                "max_redemptions",
                "frozen",
                "This offer was mailed or redeemed already: a cap can be raised or lowered, not added or removed.",
            )
        )
    elif values.max_redemptions is not None and values.max_redemptions < offer.redeemed:
        errors.append(
            FieldError(
                "max_redemptions",
                "cap_below_redeemed",
                f"{offer.redeemed:,} are used already; the cap can't be lower than that.",
            )
        )
    if errors:
        raise InvalidInput(*errors)
