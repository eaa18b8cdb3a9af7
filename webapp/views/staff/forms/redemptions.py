"""What people type to redeem, to undo and to look for redemptions."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask_wtf import FlaskForm
from wtforms import DateField, Form, SelectChoice, SelectField, StringField
from wtforms.validators import Optional

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.offers.models import normalise_code
from webapp.redemptions.rules import RedemptionRequest
from webapp.views.redeem_input import parse_code_and_email

CHANNEL_LABELS = {"form": "Form", "link": "Personal link", "api": "API", "staff": "Staff"}
CHECK_LABELS = {
    "code": "The code is known",
    "customer": "The customer is known",
    "unused": "Not used yet",
    "window": "Within its time",
    "status": "Not paused",
    "audience": "In the audience",
    "personal_code": "The right kind of code",
    "room": "Not used up",
}
_CHANNEL_CHOICES = [SelectChoice(value, label) for value, label in {"": "Every channel", **CHANNEL_LABELS}.items()]


class StaffRedeemForm(FlaskForm):
    """The same, for a customer who stands at the counter or is on the phone."""

    code = StringField("Code")
    email = StringField("Customer's e-mail address")

    def to_request(self) -> RedemptionRequest:
        """What was typed, understood.

        :raises Invalid: with an error for each field that can't be read.
        """
        code, email = parse_code_and_email(self.code.data or "", self.email.data or "")
        return RedemptionRequest(channel="staff", code=code, email=email)


class WhyNotForm(Form):
    """Whose redeeming of which code is to be explained. `who` is an e-mail or the shop's own id of the customer."""

    who = StringField("Customer's e-mail or source id")
    code = StringField("Offer's code, or a personal one")

    def to_request(self) -> RedemptionRequest:
        """What was typed, understood.

        :raises Invalid: with an error for each field that can't be read.
        """
        errors: list[FieldError] = []
        who = " ".join((self.who.data or "").replace("\0", "").split())
        if not who:
            errors.append(FieldError("who", "who_missing", "Type the customer's e-mail address or source id."))
        code = ""
        try:
            if not (self.code.data or "").strip():
                raise InvalidInput(FieldError("code", "code_missing", "Type the code as the customer has it."))
            code = normalise_code(self.code.data or "")
        except InvalidInput as error:
            errors += error.errors
        if errors:
            raise InvalidInput(*errors)
        try:
            return RedemptionRequest(channel="staff", code=code, email=normalise_email(who))
        except InvalidInput:
            # What is no address may be an own id of the shop, with or without an @.
            return RedemptionRequest(channel="staff", code=code, source_id=who)


class UndoForm(FlaskForm):
    reason = StringField("Reason")


class RedemptionSearchForm(Form):
    """What a list of redemptions is narrowed to. `who` is an e-mail or the reference on a receipt."""

    who = StringField("E-mail or reference")
    code = StringField("Offer's code")
    channel = SelectField("Channel", choices=_CHANNEL_CHOICES, default="", validate_choice=False)
    first = DateField("From", validators=[Optional()])
    last = DateField("To", validators=[Optional()])

    def time_range(self, zone: str) -> tuple[datetime | None, datetime | None]:
        """From the beginning of the first day to the end of the last one, in a zone."""
        place = ZoneInfo(zone)
        since, until = (self.first.data or None), (self.last.data or None)
        return (
            _midnight_utc(since, place) if since else None,
            _midnight_utc(until + timedelta(days=1), place) if until and until < date.max else None,
        )


def _midnight_utc(day: date, place: ZoneInfo) -> datetime | None:
    if not 1970 <= day.year < 2200:
        return None
    return datetime.combine(day, time(0), place).astimezone(UTC)
