"""Forms on the customer pages."""

from __future__ import annotations

from wtforms import Form, StringField

from webapp.redemptions.rules import RedemptionRequest
from webapp.views.redeem_input import parse_code_and_email


class RedeemForm(Form):
    """Code and e-mail, in any spelling. A customer's browser has no session, so this form has no token."""

    code = StringField("Code")
    email = StringField("E-mail address")

    def to_request(self) -> RedemptionRequest:
        """What was typed, understood.

        :raises Invalid: with an error for each field that can't be read.
        """
        code, email = parse_code_and_email(self.code.data or "", self.email.data or "")
        return RedemptionRequest(channel="form", code=code, email=email)
