"""What staff type about an offer, and the typed value it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from babel.numbers import get_currency_precision, is_currency
from flask_wtf import FlaskForm
from wtforms import (
    BooleanField,
    DateField,
    Form,
    HiddenField,
    RadioField,
    SelectChoice,
    SelectField,
    StringField,
    TimeField,
)
from wtforms.validators import Optional

from webapp.core import local_time
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.local_time import LocalDateTime
from webapp.core.money import Discount
from webapp.offers.models import Offer, OfferState, OfferValues

T = TypeVar("T")
_NUMBER_PATTERN = re.compile(r"[0-9]{1,15}([.,][0-9]{1,6})?", re.ASCII)
FOLD_CHOICES = [
    SelectChoice("0", "The first time, before clocks go back"),
    SelectChoice("1", "The second time, after they went back"),
]
_STATE_LABELS = {
    "": "Every state",
    "live": "Live",
    "scheduled": "Scheduled",
    "paused": "Paused",
    "used_up": "Used up",
    "ended": "Ended",
}


class TimeOfDayField(TimeField):
    """A time that shows its seconds only where it has any."""

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(label, format=["%H:%M", "%H:%M:%S"], validators=[Optional()], **options)

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        if self.data is None:
            return ""
        return f"{self.data:%H:%M:%S}" if self.data.second else f"{self.data:%H:%M}"


class OfferSearchForm(Form):
    """What the list of offers is narrowed to."""

    q = StringField("Name or code")
    state = SelectField(
        "State",
        choices=[SelectChoice(value, label) for value, label in _STATE_LABELS.items()],
        default="",
        validate_choice=False,
    )

    def selected_state(self) -> OfferState | None:
        """The state to show; None for every one, and for a word that is none."""
        return self.state.data if self.state.data and self.state.data in _STATE_LABELS else None


class RenewCodeForm(FlaskForm):
    """Another code for an offer; empty has one made up."""

    code = StringField("New code")


class OfferForm(FlaskForm):
    """A new offer or a change of one. Fields that a frozen offer does not show stay as they are."""

    name = StringField("Name")
    code = StringField("Code")
    discount_type = RadioField(
        "Discount",
        choices=[SelectChoice("percent", "A share of the order"), SelectChoice("amount", "A fixed amount")],
        default="percent",
    )
    discount_percent = StringField("Percent")
    discount_amount = StringField("Amount")
    discount_currency = StringField("Currency", default="EUR")
    time_zone = SelectField(
        "Time zone",
        choices=[SelectChoice(name) for name in local_time.list_time_zones()],
        default="UTC",
        validate_choice=False,
    )
    starts_at = DateField("First day", validators=[Optional()])
    starts_at_time = TimeOfDayField("From")
    starts_at_fold = RadioField("Which one?", choices=FOLD_CHOICES, validators=[Optional()])
    ends_at = DateField("Last day", validators=[Optional()])
    ends_at_time = TimeOfDayField("Until")
    ends_at_fold = RadioField("Which one?", choices=FOLD_CHOICES, validators=[Optional()])
    max_redemptions = StringField("Cap")
    audience = SelectField("Audience", default="", validate_choice=False)
    personal_code_required = BooleanField("Ask for the personal code")
    version = HiddenField()

    def set_audience_choices(self, audiences: list[tuple[int, str]]) -> None:
        """Say which audiences there are to choose from."""
        named = [SelectChoice(str(number), name) for number, name in audiences]
        self.audience.choices = [SelectChoice("", "Everyone known"), *named]

    def fill_from_offer(self, offer: Offer) -> None:
        """Fill the form in with an offer as it stands."""
        for name, value in _form_data(offer).items():
            self[name].data = value
        self.version.data = str(offer.version)

    def values(self, offer: Offer | None = None) -> OfferValues:
        """What was typed, understood. Fields that `offer`, which it changes, did not show are taken from there.

        :raises Invalid: with an error for each field that can't be read.
        """
        errors: list[FieldError] = []

        def read(parse: Callable[[], T], otherwise: T) -> T:
            try:
                return parse()
            except InvalidInput as error:
                errors.extend(error.errors)
                return otherwise

        frozen = offer.values() if offer is not None and offer.frozen_at is not None else None
        place = read(lambda: local_time.parse_time_zone(self.time_zone.data or ""), ZoneInfo("UTC"))
        starts_at = read(lambda: self._parse_start(place, offer), None)
        ends_at = read(lambda: self._parse_end(place, offer), None)
        discount = (
            frozen.discount if frozen and not self._was_submitted("discount_type") else read(self._parse_discount, None)
        )
        cap = None if frozen and not self._was_submitted("max_redemptions") else read(self._parse_cap, None)
        audience_id = read(self._parse_audience_id, None)
        if errors or starts_at is None or discount is None:
            raise InvalidInput(*errors)
        return OfferValues(
            name=self.name.data or "",
            discount=discount,
            starts_at=starts_at,
            code=frozen.code if frozen and not self._was_submitted("code") else (self.code.data or "").strip() or None,
            ends_at=ends_at,
            time_zone=place.key,
            audience_id=audience_id,
            personal_code_required=bool(self.personal_code_required.data),
            max_redemptions=cap,
        )

    def submitted_version(self) -> int:
        """The version of the offer that was shown; one that never was for anything else."""
        text = self.version.data or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1

    def needs_fold_choice(self, field: str) -> bool:
        """Whether to ask which one is meant of a time that comes twice."""
        return needs_fold_choice(self, field)

    def _was_submitted(self, name: str) -> bool:
        return bool(self[name].raw_data)

    def _parse_start(self, place: ZoneInfo, offer: Offer | None) -> Any:
        local = parse_local_datetime(self, "starts_at")
        if local is None:
            raise _invalid_field("starts_at", "day_missing", "Say on which day it starts.")
        if offer is not None and place.key == offer.time_zone and local == _displayed_local(offer.starts_at, place):
            return offer.starts_at
        return local_time.window_start(local, place)

    def _parse_end(self, place: ZoneInfo, offer: Offer | None) -> Any:
        local = parse_local_datetime(self, "ends_at")
        if local is None:
            return None
        was = offer.ends_at if offer is not None and place.key == offer.time_zone else None
        if was is not None and local == _displayed_local(was, place, closes=True):
            return was
        return local_time.window_end(local, place)

    def _parse_discount(self) -> Discount:
        if self.discount_type.data == "amount":
            currency = (self.discount_currency.data or "").strip().upper()
            if not is_currency(currency):
                raise _invalid_field(
                    "discount_currency", "currency_unknown", "Give a currency by its three letters: EUR."
                )
            return Discount("amount", amount=_parse_minor_units(self.discount_amount.data, currency), currency=currency)
        return Discount(
            "percent", percent=_parse_decimal(self.discount_percent.data, "discount_percent", "such as 25 or 12.5")
        )

    def _parse_cap(self) -> int | None:
        text = re.sub(r"[\s,'’]", "", self.max_redemptions.data or "")
        if not text:
            return None
        sign = -1 if text.startswith("-") else 1
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 15:
            raise _invalid_field(
                "max_redemptions", "cap_invalid", "Give a whole number such as 1000, or nothing for no cap."
            )
        return sign * int(text.removeprefix("-"))

    def _parse_audience_id(self) -> int | None:
        chosen = self.audience.data or ""
        if not chosen:
            return None
        if chosen not in [choice.value for choice in self.audience.choices or []]:
            raise _invalid_field("audience", "audience_unknown", "This audience does not exist; choose another.")
        return int(chosen)


def parse_local_datetime(form: Form, name: str) -> LocalDateTime | None:
    """What was typed into the fields `name`, `name_time` and `name_fold` of a form; None for no day.

    :raises Invalid: at the field that can't be read.
    """
    day: date | None = form[name].data
    clock: time | None = form[f"{name}_time"].data
    if _has_input(form[name]) and day is None:
        raise _invalid_field(name, "day_invalid", "This is not a day of the calendar.")
    if _has_input(form[f"{name}_time"]) and clock is None:
        raise _invalid_field(f"{name}_time", "time_invalid", "Give a time such as 18:00.")
    if day is None:
        if clock is not None:
            raise _invalid_field(name, "day_missing", "Say on which day, too.")
        return None
    fold = form[f"{name}_fold"].data
    return LocalDateTime(day, clock, int(fold) if fold in ("0", "1") else None)


def needs_fold_choice(form: Form, field: str) -> bool:
    """Whether a form is to ask which one is meant of a time that comes twice."""
    told = any("comes twice" in error for error in form[field].errors)
    return told or bool(form[f"{field}_fold"].data)


def _displayed_local(at: datetime, place: ZoneInfo, *, closes: bool = False) -> LocalDateTime:
    """What the form shows of a moment. It leaves out what is below a second, which must not be lost by that."""
    local = local_time.utc_to_local(at, place, is_window_end=closes)
    return LocalDateTime(local.day, local.time.replace(microsecond=0) if local.time else None, local.fold)


def _form_data(offer: Offer) -> dict[str, Any]:
    place = ZoneInfo(offer.time_zone)
    start = _displayed_local(offer.starts_at, place)
    end = _displayed_local(offer.ends_at, place, closes=True) if offer.ends_at else None
    percent = offer.percent.normalize() if offer.percent is not None else None
    return {
        "name": offer.name,
        "code": offer.code_as_written,
        "discount_type": offer.discount_type,
        "discount_percent": "" if percent is None else format(percent, "f"),
        "discount_amount": _format_major_units(offer.amount, offer.currency),
        "discount_currency": offer.currency or "EUR",
        "time_zone": offer.time_zone,
        "starts_at": start.day,
        "starts_at_time": start.time,
        "starts_at_fold": _fold_value(start),
        "ends_at": end.day if end else None,
        "ends_at_time": end.time if end else None,
        "ends_at_fold": _fold_value(end),
        "max_redemptions": "" if offer.max_redemptions is None else str(offer.max_redemptions),
        "audience": str(offer.audience_id or ""),
        "personal_code_required": offer.personal_code_required,
    }


def _fold_value(local: LocalDateTime | None) -> str | None:
    return None if local is None or local.fold is None else str(local.fold)


def _has_input(field: Any) -> bool:
    return any(str(value).strip() for value in field.raw_data or [])


def _invalid_field(field: str, key: str, message: str) -> InvalidInput:
    return InvalidInput(FieldError(field, key, message))


def _parse_decimal(text: str | None, field: str, such_as: str) -> Decimal:
    plain = re.sub(r"[\s%]", "", text or "")
    if not _NUMBER_PATTERN.fullmatch(plain):
        raise _invalid_field(field, "discount_invalid", f"Give a number {such_as}.")
    return Decimal(plain.replace(",", "."))


def _parse_minor_units(text: str | None, currency: str) -> int:
    decimals = get_currency_precision(currency)
    example = "5.00" if decimals == 2 else "5" if decimals == 0 else "5.000"
    exact = _parse_decimal(text, "discount_amount", f"such as {example}").scaleb(decimals)
    if exact != exact.to_integral_value():
        raise _invalid_field("discount_amount", "discount_invalid", f"{currency} has {decimals or 'no'} decimals.")
    return int(exact)


def _format_major_units(amount: int | None, currency: str | None) -> str:
    if amount is None or currency is None:
        return ""
    return format(Decimal(amount).scaleb(-get_currency_precision(currency)), "f")
