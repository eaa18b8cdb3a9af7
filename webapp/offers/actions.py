"""Create, update, pause, resume and freeze offers, and validate their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

from babel.numbers import is_currency
from flask_babel import gettext as _
from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from webapp.accounts.audit import record_audit_entry
from webapp.core import database_clock, formatting, local_time
from webapp.core.errors import FieldError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import queries as offer_queries
from webapp.offers.code_actions import (
    check_version,
    clean_display_code,
    code_errors,
    code_taken_error,
    list_candidate_codes,
    replace_code,
    reserve_code,
)
from webapp.offers.models import OFFER_IDS, Offer, OfferCounter, OfferValues, normalise_code

MAX_NAME_LENGTH = 200
MAX_CAP = 10**12
MAX_AMOUNT = 10**12
OFFER_YEARS = range(2000, 2200)


def create_offer(values: OfferValues, by: str) -> Offer:
    """Create an offer and commit. See `insert_offer`."""
    offer = insert_offer(values, by)
    db.session.commit()
    return offer


def insert_offer(values: OfferValues, by: str) -> Offer:
    """Create an offer in the transaction of the caller, who commits.

    :param by: the actor, for the audit log.
    :raises InvalidInput: with an error for every invalid field; the error codes are listed in docs/api.md.
    """
    _raise_if_invalid(values, None)
    row = _column_values(values)
    offer = None
    for code in list_candidate_codes(values.code):
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
    """Change an offer. Commits.

    :param changes: new values by the name of the field of `OfferValues`.
    :param version: the version that the change is based on; None accepts any.
    :param by: the actor, for the audit log.
    :param paused: whether the offer is to be paused; None leaves that unchanged.
    :raises NotFound: when the offer does not exist.
    :raises DomainError: `conflict` when the offer has another version.
    :raises InvalidInput: as `insert_offer`; also `frozen` when the discount or the code would change, or a cap would be
        added or removed, after the first launch or redemption, and `cap_below_redeemed` when the cap would be lower
        than the number of redemptions.
    """
    offer = offer_queries.lock_offer(offer_id)
    if offer is None:
        raise NotFound(_("This offer does not exist."))
    check_version(offer, version)
    values = dataclasses.replace(offer.values(), **changes)
    _raise_if_invalid(values, offer)
    if values.max_redemptions != offer.max_redemptions:
        offer_queries.lock_counter(offer)
    _raise_if_change_not_allowed(offer, values)
    before = offer.values()
    if values != before:
        _save_values(offer, values)
        names = [field.name for field in dataclasses.fields(values)]
        changed = [name for name in names if getattr(values, name) != getattr(before, name)]
        record_audit_entry(by, "offer.changed", offer.code_as_written, fields=changed)
    if paused is not None:
        _set_paused(offer, paused, by)
    db.session.commit()
    return offer


def pause_offer(offer_id: int, by: str) -> Offer:
    """Pause an offer: it cannot be redeemed until it is resumed. Idempotent. Commits.

    :raises NotFound: when the offer does not exist.
    """
    return update_offer(offer_id, {}, None, by, paused=True)


def resume_offer(offer_id: int, by: str) -> Offer:
    """Resume a paused offer: it can be redeemed again. Idempotent. Commits.

    :raises NotFound: when the offer does not exist.
    """
    return update_offer(offer_id, {}, None, by, paused=False)


def set_personal_code_required(offer_id: int, required: bool, by: str) -> Offer:
    """Require personal codes or links, or accept the shared code too.

    Idempotent. Commits.

    :raises NotFound: when the offer does not exist.
    """
    return update_offer(offer_id, {"personal_code_required": required}, None, by)


def freeze_offer(offer_id: int, connection: Connection | None = None) -> bool:
    """Freeze an offer before its first launch or redemption. The caller commits.

    Afterwards the discount cannot be changed, a cap can neither be added nor removed, and the code can be changed only
    by `code_actions.renew_code`, which keeps the previous one valid. This keeps the promises of emails that were sent
    and ensures that every redemption of a capped offer is counted. The audience, and whether personal codes are
    required, can still be changed.

    :param connection: the connection to use; by default that of the session.
    :returns: whether this call froze the offer; False if an earlier one did.
    """
    frozen_id = (connection or db.session).scalar(
        update(Offer)
        .where(Offer.id == offer_id, Offer.frozen_at.is_(None))
        .values(frozen_at=func.now())
        .returning(Offer.id)
        .execution_options(synchronize_session=False)
    )
    return frozen_id is not None


def _set_paused(offer: Offer, paused: bool, by: str) -> None:
    if (offer.paused_at is not None) == paused:
        return
    offer.paused_at = database_clock.get_database_time() if paused else None
    offer.version += 1
    record_audit_entry(by, "offer.paused" if paused else "offer.resumed", offer.code_as_written)


def _insert_with_code(row: dict[str, Any]) -> Offer | None:
    """Insert an offer and return it.

    Return None when its code is taken, even by a concurrent transaction.
    """
    offer_id = db.session.execute(select(OFFER_IDS.next_value())).scalar_one()
    try:
        with db.session.begin_nested():
            if not reserve_code(offer_id, row["code"], row["code_as_written"]):
                return None
            offer = db.session.scalars(insert(Offer).values(row | {"id": offer_id}).returning(Offer)).one()
            counter = {"offer_id": offer_id, "max_redemptions": row["max_redemptions"]}
            db.session.execute(insert(OfferCounter).values(counter))
            return offer
    except IntegrityError as error:
        _raise_domain_error(error)


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
            offer.counter.max_redemptions = offer.max_redemptions
            offer.version += 1
            db.session.flush()
    except IntegrityError as error:
        _raise_domain_error(error)


def _raise_domain_error(error: IntegrityError) -> NoReturn:
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", "")
    if constraint == "pk_offer_code":
        raise code_taken_error() from error
    if constraint == "fk_offer_audience_id":
        message = _("This audience does not exist. Choose another one.")
        raise InvalidInput(FieldError("audience", "audience_unknown", message)) from error
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


def list_errors(values: OfferValues, offer: Offer | None) -> list[FieldError]:
    """Return an error for every invalid field, also for a code of another offer.

    Whether the code is still available is decided when it is saved.

    :param offer: the offer to change; None for a new one.
    """
    return [
        *_name_errors(values),
        *(list(code_errors(values.code)) or _taken_code_errors(values.code, offer)),
        *_discount_errors(values.discount),
        *_period_errors(values),
        *_cap_errors(values),
    ]


def _taken_code_errors(code: str | None, offer: Offer | None) -> Iterator[FieldError]:
    # The code of a frozen offer cannot be changed at all.
    if code is None or (offer is not None and offer.frozen_at is not None):
        return
    if offer_queries.is_code_of_other_offer(normalise_code(code), offer):
        yield from code_taken_error().errors


def _raise_if_invalid(values: OfferValues, offer: Offer | None) -> None:
    errors = list_errors(values, offer)
    if errors:
        raise InvalidInput(*errors)


def _name_errors(values: OfferValues) -> Iterator[FieldError]:
    name = values.name.strip()
    if not name:
        yield FieldError("name", "name_missing", _("Enter a name for the offer. Customers see it."))
    elif len(name) > MAX_NAME_LENGTH:
        yield FieldError(
            "name", "name_too_long", _("The name can have at most %(max)s characters.", max=MAX_NAME_LENGTH)
        )
    elif not name.isprintable():
        yield FieldError("name", "name_invalid", _("The name must be one line of plain text."))


def _discount_errors(discount: Discount) -> Iterator[FieldError]:
    if discount.type == "percent":
        percent = discount.percent
        if percent is None or not percent.is_finite() or not 0 < percent <= 100:
            yield FieldError("discount.percent", "discount_invalid", _("Enter a percentage above 0 and up to 100."))
        elif percent != percent.quantize(Decimal("0.01")):
            yield FieldError("discount.percent", "discount_invalid", _("The percentage can have at most two decimals."))
        return
    if discount.amount is None or discount.amount <= 0:
        yield FieldError("discount.amount", "discount_invalid", _("Enter an amount above 0."))
    elif discount.amount > MAX_AMOUNT:
        yield FieldError("discount.amount", "discount_invalid", _("The amount is too large."))
    if discount.currency is None or not is_currency(discount.currency):
        message = _("Enter the three-letter code of a currency, such as EUR.")
        yield FieldError("discount.currency", "currency_unknown", message)


def _period_errors(values: OfferValues) -> Iterator[FieldError]:
    try:
        local_time.parse_time_zone(values.time_zone)
    except InvalidInput as error:
        yield from error.errors
    for field, at in (("starts_at", values.starts_at), ("ends_at", values.ends_at)):
        if at is not None and at.year not in OFFER_YEARS:
            message = _("Choose a year from %(first)s to %(last)s.", first=OFFER_YEARS[0], last=OFFER_YEARS[-1])
            yield FieldError(field, "time_out_of_range", message)
    if values.ends_at is not None and values.ends_at <= values.starts_at:
        yield FieldError("ends_at", "window_invalid", _("The end must be after the start."))


def _cap_errors(values: OfferValues) -> Iterator[FieldError]:
    cap = values.max_redemptions
    if cap is not None and cap > MAX_CAP:
        max_cap = formatting.format_number(MAX_CAP)
        message = _("The redemption limit can be at most %(max)s. Leave it empty for no limit.", max=max_cap)
        yield FieldError("max_redemptions", "cap_invalid", message)
    elif cap is not None and cap < 1:
        message = _("The redemption limit must be a whole number of at least 1. Leave it empty for no limit.")
        yield FieldError("max_redemptions", "cap_invalid", message)


def _raise_if_change_not_allowed(offer: Offer, values: OfferValues) -> None:
    if offer.frozen_at is None:
        return
    errors = [
        *_frozen_discount_errors(offer, values),
        *_frozen_code_errors(offer, values),
        *_frozen_cap_errors(offer, values),
    ]
    if errors:
        raise InvalidInput(*errors)


def _frozen_discount_errors(offer: Offer, values: OfferValues) -> Iterator[FieldError]:
    if values.discount != offer.discount:
        field = "discount.percent" if values.discount.type == "percent" else "discount.amount"
        message = _(
            "The discount can't be changed after the launch or the first redemption. Create a new offer instead."
        )
        yield FieldError(field, "frozen", message)


def _frozen_code_errors(offer: Offer, values: OfferValues) -> Iterator[FieldError]:
    if normalise_code(values.code or "") != offer.code:
        message = _(
            "The code can't be changed after the launch or the first redemption. "
            "Replace it instead: the current code then stays valid."
        )
        yield FieldError("code", "frozen", message)


def _frozen_cap_errors(offer: Offer, values: OfferValues) -> Iterator[FieldError]:
    cap = values.max_redemptions
    if (cap is None) != (offer.max_redemptions is None):
        message = _(
            "After the launch or the first redemption, the redemption limit can be raised or lowered, "
            "but not added or removed."
        )
        yield FieldError("max_redemptions", "frozen", message)
    elif cap is not None and cap < offer.redeemed:
        message = _(
            "There are already %(count)s redemptions. The redemption limit can't be lower than that.",
            count=f"{offer.redeemed:,}",
        )
        yield FieldError("max_redemptions", "cap_below_redeemed", message)
