"""Staff forms for redemptions and eligibility."""

from __future__ import annotations

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import Form, SelectChoice, SelectField, StringField

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.offers.models import normalise_code
from webapp.redemptions.rules import RedemptionRequest, StaffEntry
from webapp.views.form_base import PostForm
from webapp.views.redeem_input import parse_code_and_email
from webapp.views.staff.forms.period import PeriodForm

CHANNEL_LABELS = {"form": _l("Form"), "link": _l("Personal link"), "api": _l("API"), "staff": _l("Staff")}
CHECK_LABELS = {
    "code": _l("Code exists"),
    "customer": _l("Customer exists"),
    "unused": _l("Unused"),
    "window": _l("Within the offer period"),
    "status": _l("Offer status"),
    "audience": _l("In the audience"),
    "personal_code": _l("Shared or personal code accepted"),
    "room": _l("Redemptions left"),
}
_CHANNEL_CHOICES = [SelectChoice(value, label) for value, label in {"": _l("All channels"), **CHANNEL_LABELS}.items()]


class StaffRedeemForm(PostForm):
    """A code and an email address, for a customer at the counter or on the phone."""

    conflict_title = _l("The offer was not redeemed.")
    code = StringField(_l("Code"))
    email = StringField(_l("Customer's email address"))

    def to_request(self, staff: StaffEntry) -> RedemptionRequest:
        """Parse the form.

        :param staff: the user who enters the redemption.
        :raises InvalidInput: with an error for each invalid field.
        """
        code, email = parse_code_and_email(self.code.data or "", self.email.data or "", by_staff=True)
        return RedemptionRequest(channel="staff", code=code, email=email, staff=staff)


class EligibilityForm(Form):
    """The code and the customer whose eligibility is explained.

    `customer` is an email address or a source id.
    """

    customer = StringField(_l("Customer's email address or source ID"), name="who")
    code = StringField(_l("Offer code or personal code"))

    def to_request(self) -> RedemptionRequest:
        """Parse the form.

        :raises InvalidInput: with an error for each invalid field.
        """
        errors: list[FieldError] = []
        customer = " ".join((self.customer.data or "").replace("\0", "").split())
        if not customer:
            errors.append(FieldError("customer", "who_missing", _("Enter the customer's email address or source ID.")))
        code = ""
        try:
            if not (self.code.data or "").strip():
                raise InvalidInput(FieldError("code", "code_missing", _("Enter the code that the customer received.")))
            code = normalise_code(self.code.data or "")
        except InvalidInput as error:
            errors += error.errors
        if errors:
            raise InvalidInput(*errors)
        try:
            return RedemptionRequest(channel="staff", code=code, email=normalise_email(customer))
        except InvalidInput:
            # Text that is not an email address may be a source id, with or without an @.
            return RedemptionRequest(channel="staff", code=code, source_id=customer)


class UndoForm(PostForm):
    """The reason for undoing a redemption."""

    conflict_title = _l("Nothing was changed.")
    reason = StringField(_l("Reason"))


class RedemptionSearchForm(PeriodForm):
    """The filters of the list of redemptions.

    `customer` is an email address or the reference on a receipt.
    """

    customer = StringField(_l("Email address or reference"), name="who")
    code = StringField(_l("Code"))
    channel = SelectField(_l("Channel"), choices=_CHANNEL_CHOICES, default="", validate_choice=False)
