"""Staff forms for campaigns."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import DateField, Form, HiddenField, RadioField, SelectChoice, SelectField, StringField, TextAreaField
from wtforms.validators import InputRequired, Optional

from webapp.campaigns.content.placeholders import (
    DEFAULT_SUBJECT,
    DEFAULT_TEXT,
    REMINDER_SUBJECT,
    REMINDER_TEXT,
    EmailContent,
)
from webapp.campaigns.models import Campaign
from webapp.core import local_time
from webapp.core.errors import FieldError, InvalidInput
from webapp.views.form_base import PostForm
from webapp.views.staff.forms.local_times import FOLD_CHOICES, TimeOfDayField, needs_fold_choice, parse_local_datetime

_STATUS_LABELS: dict[str, str] = {
    "": _l("All statuses"),
    "draft": _l("Draft"),
    "scheduled": _l("Scheduled"),
    "preparing": _l("Preparing"),
    "sending": _l("Sending"),
    "paused": _l("Paused"),
    "done": _l("Done"),
    "cancelled": _l("Cancelled"),
}


class EmailContentForm(PostForm):
    """The content of a campaign's email, and the options of its preview."""

    conflict_title = _l("The email was not saved.")
    # The version of the draft that was edited, to detect conflicts.
    version = HiddenField()
    subject = StringField(_l("Subject"))
    text = TextAreaField(_l("Text"))
    html = TextAreaField(_l("Custom HTML"))
    uncertain_policy = RadioField(
        _l("If sending is interrupted while an email is being sent"),
        choices=[
            SelectChoice("resend", _l("Resend that email: every recipient gets it, but one may get it twice")),
            SelectChoice(
                "hold", _l("Hold that email: no recipient gets it twice, and you decide later whether to resend it")
            ),
        ],
        default="resend",
    )
    seen_as = StringField(_l("Preview as customer"))
    view = RadioField(
        _l("View"),
        choices=[
            SelectChoice("wide", _l("Desktop")),
            SelectChoice("phone", _l("Phone")),
            SelectChoice("plain", _l("Plain text")),
        ],
        default="wide",
        validate_choice=False,
    )

    def fill_from_campaign(self, campaign: Campaign | None, kind: str = "announcement") -> None:
        """Fill the form with the content of a campaign, or the default content of a kind."""
        is_reminder = kind == "reminder"
        subject = str(REMINDER_SUBJECT if is_reminder else DEFAULT_SUBJECT)
        text = str(REMINDER_TEXT if is_reminder else DEFAULT_TEXT)
        self.subject.data = campaign.subject if campaign else subject
        self.html.data = campaign.html if campaign else ""
        self.text.data = campaign.text if campaign and (campaign.text or campaign.html) else text
        self.uncertain_policy.data = campaign.uncertain_policy if campaign else "resend"

    def to_content(self) -> EmailContent:
        """Return the content as entered."""
        return EmailContent(
            (self.subject.data or "").strip(),
            _normalise_line_breaks(self.text.data),
            _normalise_line_breaks(self.html.data),
        )


class LaunchForm(PostForm):
    """The launch time of a campaign, and whether to include earlier recipients.

    Times are in the time zone of the offer.
    """

    conflict_title = _l("The campaign was not launched.")
    launch_time_choice = RadioField(
        _l("Launch time"),
        name="when",
        # No default: a form without this field must not launch the campaign.
        choices=[SelectChoice("now", _l("Now")), SelectChoice("later", _l("At a scheduled time"))],
        validators=[InputRequired(_l("Choose when the campaign is launched."))],
    )
    # The status of the campaign when the page was opened.
    rendered_status = HiddenField(name="seen")
    at = DateField(_l("Date"), validators=[Optional()])
    at_time = TimeOfDayField(_l("Time"))
    at_fold = RadioField(_l("Which of the two times?"), choices=FOLD_CHOICES, validators=[Optional()])
    include_earlier_recipients = RadioField(
        _l("Recipients of the cancelled campaign"),
        name="to_all",
        choices=[
            SelectChoice("no", _l("Skip them, so that they do not get it twice")),
            SelectChoice("yes", _l("Send them this email too")),
        ],
        default="no",
        validators=[Optional()],
    )

    def fill_from_campaign(self, campaign: Campaign, time_zone: str) -> None:
        """Fill the form with the launch time and the recipients of a campaign."""
        self.launch_time_choice.data = "now"
        self.rendered_status.data = campaign.status
        self.include_earlier_recipients.data = "yes" if campaign.mails_again else "no"
        if campaign.status == "scheduled" and campaign.scheduled_at is not None:
            local = campaign.scheduled_at.astimezone(ZoneInfo(time_zone))
            self.launch_time_choice.data, self.at.data, self.at_time.data = "later", local.date(), local.time()
            fold = local_time.utc_to_local(campaign.scheduled_at, ZoneInfo(time_zone)).fold
            self.at_fold.data = None if fold is None else str(fold)

    def parse_launch_time(self, time_zone: str) -> datetime | None:
        """Return the launch time in UTC; None for now.

        :raises InvalidInput: at the invalid field, or for a local time that the time zone skips or repeats.
        """
        if self.launch_time_choice.data != "later":
            return None
        local = parse_local_datetime(self, "at")
        if local is None:
            raise InvalidInput(FieldError("at", "day_missing", _("Choose the day on which the campaign is launched.")))
        if local.time is None:
            raise InvalidInput(
                FieldError(
                    "at_time", "time_missing", _("Enter the time at which the campaign is launched, such as 9:00.")
                )
            )
        return local_time.local_to_utc(local, ZoneInfo(time_zone), "at")

    def includes_earlier_recipients(self) -> bool | None:
        """Return whether to include recipients of a cancelled campaign; None if not asked."""
        return None if self.include_earlier_recipients.data is None else self.include_earlier_recipients.data == "yes"

    def expected_status(self) -> str | None:
        """Return the campaign's status when the page was opened; None if unknown."""
        return self.rendered_status.data if self.rendered_status.data in ("draft", "scheduled") else None

    def is_launch_time_ambiguous(self) -> bool:
        """Return whether the launch time occurs twice (end of daylight saving time)."""
        return needs_fold_choice(self, "at")


class CampaignFilterForm(Form):
    """The filter of the list of campaigns."""

    state = SelectField(
        _l("Status"),
        choices=[SelectChoice(value, label) for value, label in _STATUS_LABELS.items()],
        default="",
        validate_choice=False,
    )

    def selected_status(self) -> str | None:
        """Return the selected status; None for all, and for an unknown one."""
        return self.state.data if self.state.data and self.state.data in _STATUS_LABELS else None


def _normalise_line_breaks(value: str | None) -> str:
    """Replace the CRLF that browsers send; a field with only whitespace is empty."""
    text = (value or "").replace("\r\n", "\n")
    return text if text.strip() else ""
