"""What staff type about customers and audiences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask_wtf import FlaskForm
from wtforms import EmailField, FileField, Form, SelectChoice, SelectField, SelectMultipleField, StringField, widgets

from webapp.customers.models import Audience, Customer
from webapp.customers.validation import CustomerValues


class CustomerSearchForm(Form):
    """What the list of customers is narrowed to."""

    q = StringField("E-mail, name or source id")
    audience = SelectField("Audience", default="", validate_choice=False)

    def set_audience_choices(self, audiences: Sequence[Audience]) -> None:
        self.audience.choices = [SelectChoice("", "Every audience"), *_audience_choices(audiences)]

    def selected_audience_id(self) -> int | None:
        """The audience to show; None for every one, and for what is none."""
        known = {choice.value for choice in self.audience.choices or []} - {""}
        return int(self.audience.data) if self.audience.data in known else None


class CustomerForm(FlaskForm):
    """A customer, as staff enter or change one."""

    email = EmailField("E-mail", render_kw={"required": True})
    name = StringField("Name")
    locale = StringField("Language")
    source_id = StringField("Source id")
    audiences = SelectMultipleField(
        "Audiences", option_widget=widgets.CheckboxInput(), widget=widgets.ListWidget(prefix_label=False)
    )

    def set_audience_choices(self, audiences: Sequence[Audience]) -> None:
        self.audiences.choices = _audience_choices(audiences)

    def fill_from_customer(self, customer: Customer, audiences: Sequence[Audience]) -> None:
        """Fill the form with what is known."""
        self.email.data = customer.email_as_given
        self.name.data = customer.name
        self.locale.data = customer.locale or ""
        self.source_id.data = customer.source_id or ""
        self.audiences.data = [str(audience.id) for audience in audiences]

    def values(self) -> CustomerValues:
        return CustomerValues(
            email=self.email.data or "",
            name=self.name.data or "",
            locale=self.locale.data or "",
            source_id=self.source_id.data or "",
        )

    def selected_audience_ids(self) -> list[int]:
        return [int(value) for value in self.audiences.data or []]


class AudienceForm(FlaskForm):
    """The name of an audience."""

    name = StringField("Name", render_kw={"required": True})


SUPPRESSION_REASON_LABELS = {
    "unsubscribed": "Unsubscribed: the person asked for no more mails",
    "complained": "Complained: the person called a mail spam",
    "bounced": "Bounced: the address does not exist",
}


class SuppressionSearchForm(Form):
    """What the list of addresses that must not be mailed is narrowed to."""

    q = StringField("E-mail")
    reason = SelectField(
        "Reason",
        default="",
        validate_choice=False,
        choices=[
            SelectChoice("", "Every reason"),
            *(SelectChoice(each, each.title()) for each in SUPPRESSION_REASON_LABELS),
        ],
    )


class SuppressionForm(FlaskForm):
    """An address that must not be mailed."""

    email = EmailField("E-mail", render_kw={"required": True})
    reason = SelectField(
        "Reason", choices=[SelectChoice(*each) for each in SUPPRESSION_REASON_LABELS.items()], validate_choice=False
    )
    words = StringField("Note")


class ImportForm(Form):
    """The fields of an upload. They are read while the file arrives, so this form is only for showing them."""

    audience = StringField("Audience")
    file = FileField("File", render_kw={"required": True})

    def __init__(self, **data: Any) -> None:
        super().__init__(data=data)
        self.form_errors: list[str] = []


def _audience_choices(audiences: Sequence[Audience]) -> list[SelectChoice]:
    return [SelectChoice(str(audience.id), audience.name) for audience in audiences]
