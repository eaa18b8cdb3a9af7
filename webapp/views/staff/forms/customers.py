"""Staff forms for customers, audiences, imports and the suppression list."""

from __future__ import annotations

from collections.abc import Sequence

from flask_babel import lazy_gettext as _l
from wtforms import EmailField, FileField, Form, SelectChoice, SelectField, SelectMultipleField, StringField, widgets

from webapp.customers.models import Audience, Customer
from webapp.customers.validation import CustomerValues
from webapp.views.form_base import PostForm
from webapp.views.rendering import STATE_LABELS


class CustomerSearchForm(Form):
    """Search and filters of the customer list."""

    q = StringField(_l("Email address, name or source ID"))
    audience = SelectField(_l("Audience"), default="", validate_choice=False)

    def set_audience_choices(self, audiences: Sequence[Audience]) -> None:
        """Set the choices: all audiences, or one of these."""
        self.audience.choices = [SelectChoice("", _l("All audiences")), *_audience_choices(audiences)]

    def selected_audience_id(self) -> int | None:
        """Return the id of the selected audience; None for all and for an unknown one."""
        audience_ids = {choice.value for choice in self.audience.choices or []} - {""}
        return int(self.audience.data) if self.audience.data in audience_ids else None


class CustomerForm(PostForm):
    """A customer, as created or edited by staff."""

    email = EmailField(_l("Email address"), render_kw={"required": True})
    name = StringField(_l("Name"))
    locale = StringField(_l("Language"))
    source_id = StringField(_l("Source ID"))
    audiences = SelectMultipleField(
        _l("Audiences"), option_widget=widgets.CheckboxInput(), widget=widgets.ListWidget(prefix_label=False)
    )

    def set_audience_choices(self, audiences: Sequence[Audience]) -> None:
        """Set the audiences to choose from."""
        self.audiences.choices = _audience_choices(audiences)

    def fill_from_customer(self, customer: Customer, audiences: Sequence[Audience]) -> None:
        """Fill the form with the values of a customer."""
        self.email.data = customer.email_as_given
        self.name.data = customer.name
        self.locale.data = customer.locale or ""
        self.source_id.data = customer.source_id or ""
        self.audiences.data = [str(audience.id) for audience in audiences]

    def to_values(self) -> CustomerValues:
        """Return the values as entered."""
        return CustomerValues(
            email=self.email.data or "",
            name=self.name.data or "",
            locale=self.locale.data or "",
            source_id=self.source_id.data or "",
        )

    def selected_audience_ids(self) -> list[int]:
        """Return the ids of the selected audiences."""
        return [int(value) for value in self.audiences.data or []]


class AudienceForm(PostForm):
    """The name of an audience."""

    name = StringField(_l("Name"), render_kw={"required": True})


SUPPRESSION_REASON_LABELS = {
    "unsubscribed": _l("Unsubscribed: the person opted out of emails"),
    "complained": _l("Complained: the person marked an email as spam"),
    "bounced": _l("Bounced: the address does not exist"),
}


class SuppressionSearchForm(Form):
    """Search and filters of the suppression list."""

    q = StringField(_l("Email address"))
    reason = SelectField(
        _l("Reason"),
        default="",
        validate_choice=False,
        choices=[
            SelectChoice("", _l("All reasons")),
            *(SelectChoice(reason, STATE_LABELS[reason]) for reason in SUPPRESSION_REASON_LABELS),
        ],
    )


class SuppressionForm(PostForm):
    """An address to add to the suppression list."""

    email = EmailField(_l("Email address"), render_kw={"required": True})
    reason = SelectField(
        _l("Reason"),
        choices=[SelectChoice(value, label) for value, label in SUPPRESSION_REASON_LABELS.items()],
        validate_choice=False,
    )
    note = StringField(_l("Note"), name="words")


class ImportForm(Form):
    """The upload form, for rendering only.

    The fields of the request are parsed by `imports.upload` while the file is being received.
    """

    audience = StringField(_l("Audience"))
    file = FileField(_l("File"), render_kw={"required": True})


def _audience_choices(audiences: Sequence[Audience]) -> list[SelectChoice]:
    return [SelectChoice(str(audience.id), audience.name) for audience in audiences]
