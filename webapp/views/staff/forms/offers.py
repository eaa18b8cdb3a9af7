"""Staff forms for offers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from babel.numbers import get_currency_precision, is_currency
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from wtforms import (
    BooleanField,
    DateField,
    Form,
    HiddenField,
    RadioField,
    SelectChoice,
    SelectField,
    StringField,
)
from wtforms.validators import Optional

from webapp.core import local_time
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.local_time import LocalDateTime
from webapp.core.money import Discount
from webapp.customers.models import Audience
from webapp.offers import actions as offer_actions
from webapp.offers.models import Offer, OfferState, OfferValues
from webapp.views.form_base import PostForm
from webapp.views.staff.forms.local_times import FOLD_CHOICES, TimeOfDayField, needs_fold_choice, parse_local_datetime

T = TypeVar("T")
D = TypeVar("D")
# A version that no offer has, so that saving fails with a conflict.
NO_VERSION = -1
# Longer than any valid number, so that `offer_actions` reports a number that is too large with the limit.
_INTEGER_PATTERN = re.compile(r"-?[0-9]{1,100}", re.ASCII)
_NUMBER_PATTERN = re.compile(r"[0-9]{1,100}([.,][0-9]{1,12})?", re.ASCII)
# Stands for an invalid discount while the other fields are checked.
_PLACEHOLDER_DISCOUNT = Discount("percent", percent=Decimal(1))
_STATE_LABELS = {
    "": _l("All statuses"),
    "live": _l("Live"),
    "scheduled": _l("Scheduled"),
    "paused": _l("Paused"),
    "used_up": _l("Limit reached"),
    "ended": _l("Ended"),
}


class OfferSearchForm(Form):
    """The filters of the list of offers."""

    q = StringField(_l("Name or code"))
    state = SelectField(
        _l("Status"),
        choices=[SelectChoice(value, label) for value, label in _STATE_LABELS.items()],
        default="",
        validate_choice=False,
    )

    def selected_state(self) -> OfferState | None:
        """Return the state to filter by; None for all states and for an unknown one."""
        return self.state.data if self.state.data and self.state.data in _STATE_LABELS else None


class RenewCodeForm(PostForm):
    """The new code of an offer; generated if empty."""

    code = StringField(_l("New code"))


class OfferForm(PostForm):
    """The form to create or edit an offer.

    After the first launch or redemption the offer is frozen: fields that are then hidden keep their values.
    """

    name = StringField(_l("Name"))
    code = StringField(_l("Code"))
    discount_type = RadioField(
        _l("Discount"),
        choices=[SelectChoice("percent", _l("Percentage of the order")), SelectChoice("amount", _l("Fixed amount"))],
        default="percent",
    )
    discount_percent = StringField(_l("Percentage"))
    discount_amount = StringField(_l("Amount"))
    discount_currency = StringField(_l("Currency"), default="EUR")
    time_zone = SelectField(
        _l("Time zone"),
        choices=[SelectChoice(name) for name in local_time.list_time_zones()],
        default="UTC",
        validate_choice=False,
    )
    starts_at = DateField(_l("First day"), validators=[Optional()])
    starts_at_time = TimeOfDayField(_l("Start time"))
    starts_at_fold = RadioField(_l("Which of the two times?"), choices=FOLD_CHOICES, validators=[Optional()])
    ends_at = DateField(_l("Last day"), validators=[Optional()])
    ends_at_time = TimeOfDayField(_l("End time"))
    ends_at_fold = RadioField(_l("Which of the two times?"), choices=FOLD_CHOICES, validators=[Optional()])
    max_redemptions = StringField(_l("Redemption limit"))
    audience = SelectField(_l("Audience"), default="", validate_choice=False)
    personal_code_required = BooleanField(_l("Require personal codes"))
    version = HiddenField()

    def set_audience_choices(self, audiences: Sequence[Audience]) -> None:
        """Set the choices: all customers, or one of these audiences."""
        choices = [SelectChoice(str(audience.id), audience.name) for audience in audiences]
        self.audience.choices = [SelectChoice("", _l("All customers")), *choices]

    def fill_from_offer(self, offer: Offer) -> None:
        """Fill the form with the current values of an offer."""
        for name, value in _form_data(offer).items():
            self[name].data = value
        self.version.data = str(offer.version)

    def to_values(self, offer: Offer | None = None) -> OfferValues:
        """Parse the form.

        :param offer: the offer to change; the values of fields that are hidden for it are taken from there.
        :raises InvalidInput: with an error for each invalid field.
        """
        errors: list[FieldError] = []

        def parse_or_collect(parse: Callable[[], T], default: D) -> T | D:
            try:
                return parse()
            except InvalidInput as error:
                errors.extend(error.errors)
                return default

        frozen_values = offer.values() if offer is not None and offer.frozen_at is not None else None

        def parse_unless_hidden(field: str, parse: Callable[[], T | None], frozen_value: T | None) -> T | None:
            if frozen_values is not None and not self._was_submitted(field):
                return frozen_value
            return parse_or_collect(parse, None)

        time_zone = parse_or_collect(lambda: local_time.parse_time_zone(self.time_zone.data or ""), ZoneInfo("UTC"))
        starts_at = parse_or_collect(lambda: self._parse_start(time_zone, offer), None)
        ends_at = parse_or_collect(lambda: self._parse_end(time_zone, offer), None)
        discount = parse_unless_hidden(
            "discount_type", self._parse_discount, frozen_values.discount if frozen_values else None
        )
        code = parse_unless_hidden("code", self._parse_code, frozen_values.code if frozen_values else None)
        # The cap is hidden only when the frozen offer has none.
        cap = parse_unless_hidden("max_redemptions", self._parse_cap, None)
        audience_id = parse_or_collect(self._parse_audience_id, None)
        values = OfferValues(
            name=self.name.data or "",
            discount=discount or _PLACEHOLDER_DISCOUNT,
            starts_at=starts_at or datetime.now(UTC),
            code=code,
            ends_at=ends_at if starts_at else None,
            time_zone=time_zone.key,
            audience_id=audience_id,
            personal_code_required=bool(self.personal_code_required.data),
            max_redemptions=cap,
        )
        if errors:
            # The fields that can be parsed may have errors too, and users are to see all of them at once.
            raise InvalidInput(*errors, *offer_actions.list_errors(values, offer))
        return values

    def submitted_version(self) -> int:
        """Return the version of the offer that the form was opened with.

        For anything else, return `NO_VERSION`.
        """
        text = self.version.data or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else NO_VERSION

    def needs_fold_choice(self, field: str) -> bool:
        """Return whether to ask which of two equal times is meant."""
        return needs_fold_choice(self, field)

    def _was_submitted(self, name: str) -> bool:
        """Return whether the request has the field at all, even if it is blank."""
        return bool(self[name].raw_data)

    def _parse_start(self, time_zone: ZoneInfo, offer: Offer | None) -> datetime:
        local = parse_local_datetime(self, "starts_at")
        if local is None:
            raise _invalid_field("starts_at", "day_missing", _("Choose the day on which the offer starts."))
        is_same_zone = offer is not None and time_zone.key == offer.time_zone
        if offer is not None and is_same_zone and local == _to_displayed_local_time(offer.starts_at, time_zone):
            return offer.starts_at
        return local_time.window_start(local, time_zone)

    def _parse_end(self, time_zone: ZoneInfo, offer: Offer | None) -> datetime | None:
        local = parse_local_datetime(self, "ends_at")
        if local is None:
            return None
        previous_end = offer.ends_at if offer is not None and time_zone.key == offer.time_zone else None
        if previous_end is not None and local == _to_displayed_local_time(previous_end, time_zone, is_window_end=True):
            return previous_end
        return local_time.window_end(local, time_zone)

    def _parse_discount(self) -> Discount:
        if self.discount_type.data == "amount":
            currency = (self.discount_currency.data or "").strip().upper()
            if not is_currency(currency):
                raise _invalid_field(
                    "discount_currency",
                    "currency_unknown",
                    _("Enter the three-letter code of a currency, such as EUR."),
                )
            return Discount(
                "amount", amount=_parse_discount_amount(self.discount_amount.data, currency), currency=currency
            )
        message = _("Enter a number such as 25 or 12.5.")
        return Discount("percent", percent=_parse_decimal(self.discount_percent.data, "discount_percent", message))

    def _parse_code(self) -> str | None:
        return (self.code.data or "").strip() or None

    def _parse_cap(self) -> int | None:
        text = re.sub(r"[\s,'’]", "", self.max_redemptions.data or "")
        if not text:
            return None
        # `offer_actions` rejects numbers out of range with a message of its own.
        if not _INTEGER_PATTERN.fullmatch(text):
            raise _invalid_field(
                "max_redemptions",
                "cap_invalid",
                _("Enter a whole number such as 1000, or leave this empty for no limit."),
            )
        return int(text)

    def _parse_audience_id(self) -> int | None:
        audience_id = self.audience.data or ""
        if not audience_id:
            return None
        if audience_id not in [choice.value for choice in self.audience.choices or []]:
            raise _invalid_field("audience", "audience_unknown", _("This audience does not exist. Choose another one."))
        return int(audience_id)


def _to_displayed_local_time(at: datetime, time_zone: ZoneInfo, *, is_window_end: bool = False) -> LocalDateTime:
    """Return the local time as the form shows it, without fractions of a second.

    Used to detect an unchanged field, whose stored time (with its fractions of a second) is then kept.
    """
    local = local_time.utc_to_local(at, time_zone, is_window_end=is_window_end)
    return LocalDateTime(local.day, local.time.replace(microsecond=0) if local.time else None, local.fold)


def _form_data(offer: Offer) -> dict[str, Any]:
    time_zone = ZoneInfo(offer.time_zone)
    start = _to_displayed_local_time(offer.starts_at, time_zone)
    end = _to_displayed_local_time(offer.ends_at, time_zone, is_window_end=True) if offer.ends_at else None
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


def _invalid_field(field: str, key: str, message: str) -> InvalidInput:
    return InvalidInput(FieldError(field, key, message))


def _parse_decimal(text: str | None, field: str, message: str) -> Decimal:
    number_text = re.sub(r"[\s%]", "", text or "")
    if not _NUMBER_PATTERN.fullmatch(number_text):
        raise _invalid_field(field, "discount_invalid", message)
    return Decimal(number_text.replace(",", "."))


def _parse_discount_amount(text: str | None, currency: str) -> int:
    decimals = get_currency_precision(currency)
    example = {0: "5", 2: "5.00"}.get(decimals, "5.000")
    message = _("Enter a number such as %(example)s.", example=example)
    minor_units = _parse_decimal(text, "discount_amount", message).scaleb(decimals)
    if minor_units != minor_units.to_integral_value():
        message = _("Enter a whole number: %(currency)s has no decimal places.", currency=currency)
        if decimals:
            message = ngettext(
                "Use at most %(num)s decimal place for %(currency)s.",
                "Use at most %(num)s decimal places for %(currency)s.",
                decimals,
                currency=currency,
            )
        raise _invalid_field("discount_amount", "discount_invalid", message)
    return int(minor_units)


def _format_major_units(amount: int | None, currency: str | None) -> str:
    if amount is None or currency is None:
        return ""
    return format(Decimal(amount).scaleb(-get_currency_precision(currency)), "f")
