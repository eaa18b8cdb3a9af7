"""Forms for the customer pages."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l
from wtforms import Form, StringField

from webapp.redemptions.rules import RedemptionRequest
from webapp.views.redeem_input import parse_code_and_email


class RedeemForm(Form):
    """A code and an email address, in any spelling.

    Customers have no session, so there is no CSRF token.
    """

    code = StringField(_l("Code"))
    email = StringField(_l("Email address"))

    def to_request(self) -> RedemptionRequest:
        """Parse the form.

        :raises InvalidInput: with an error for each invalid field.
        """
        code, email = parse_code_and_email(self.code.data or "", self.email.data or "")
        return RedemptionRequest(channel="form", code=code, email=email)
