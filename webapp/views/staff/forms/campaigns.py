"""What staff type about a mail, and the typed value it stands for."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from flask_wtf import FlaskForm
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
from webapp.views.staff.forms.offers import FOLD_CHOICES, TimeOfDayField, needs_fold_choice, parse_local_datetime

_STATUS_LABELS = {
    "": "Every state",
    "draft": "Draft",
    "scheduled": "Scheduled",
    "preparing": "Preparing",
    "sending": "Sending",
    "paused": "Paused",
    "done": "Done",
    "cancelled": "Cancelled",
}


class EmailContentForm(FlaskForm):
    """The mail of an offer, and how its preview is looked at."""

    # Of the words that were open while these were written.
    version = HiddenField()
    subject = StringField("Subject")
    text = TextAreaField("Text")
    html = TextAreaField("HTML of your own")
    uncertain_policy = RadioField(
        "If a sending process dies in the middle of a mail",
        choices=[
            SelectChoice("resend", "Send that one mail again: nobody is missed, but somebody may get it twice"),
            SelectChoice("hold", "Hold that one mail: nobody gets it twice, and you decide about it"),
        ],
        default="resend",
    )
    seen_as = StringField("As this customer sees it")
    view = RadioField(
        "View",
        choices=[
            SelectChoice("wide", "Computer"),
            SelectChoice("phone", "Phone"),
            SelectChoice("plain", "Plain text"),
        ],
        default="wide",
        validate_choice=False,
    )

    def load_content(self, campaign: Campaign | None, kind: str = "announcement") -> None:
        """Fill in what is stored, or the default of this kind."""
        subject, text = (REMINDER_SUBJECT, REMINDER_TEXT) if kind == "reminder" else (DEFAULT_SUBJECT, DEFAULT_TEXT)
        self.subject.data = campaign.subject if campaign else subject
        self.html.data = campaign.html if campaign else ""
        self.text.data = campaign.text if campaign and (campaign.text or campaign.html) else text
        self.uncertain_policy.data = campaign.uncertain_policy if campaign else "resend"

    def to_content(self) -> EmailContent:
        """What was typed."""
        return EmailContent(
            (self.subject.data or "").strip(),
            _normalise_line_breaks(self.text.data),
            _normalise_line_breaks(self.html.data),
        )


class LaunchForm(FlaskForm):
    """Whether a mail goes out now or at a time of the offer's zone, and to whom again."""

    when = RadioField(
        "When",
        # No default: whoever sends a form without it has not said that it shall go out.
        choices=[SelectChoice("now", "Now"), SelectChoice("later", "At a time")],
        validators=[InputRequired("Say when it goes out.")],
    )
    # How it stood when the page was opened.
    seen = HiddenField()
    at = DateField("Day", validators=[Optional()])
    at_time = TimeOfDayField("Time")
    at_fold = RadioField("Which one?", choices=FOLD_CHOICES, validators=[Optional()])
    to_all = RadioField(
        "Who got the cancelled mailing",
        choices=[
            SelectChoice("no", "Leave them out: nobody gets it twice"),
            SelectChoice("yes", "Send them this mail, too"),
        ],
        default="no",
        validators=[Optional()],
    )

    def load_campaign(self, campaign: Campaign, time_zone: str) -> None:
        """Fill in what has been decided so far."""
        self.when.data = "now"
        self.seen.data = campaign.status
        self.to_all.data = "yes" if campaign.mails_again else "no"
        if campaign.status == "scheduled" and campaign.scheduled_at is not None:
            local = campaign.scheduled_at.astimezone(ZoneInfo(time_zone))
            self.when.data, self.at.data, self.at_time.data = "later", local.date(), local.time()
            shown = local_time.utc_to_local(campaign.scheduled_at, ZoneInfo(time_zone))
            self.at_fold.data = None if shown.fold is None else str(shown.fold)

    def start_time(self, time_zone: str) -> datetime | None:
        """When it shall start; None for now.

        :raises Invalid: at the field that can't be read, or for a time that the clock of the zone skips or shows twice.
        """
        if self.when.data != "later":
            return None
        local = parse_local_datetime(self, "at")
        if local is None:
            raise InvalidInput(FieldError("at", "day_missing", "Say on which day it starts."))
        if local.time is None:
            raise InvalidInput(FieldError("at_time", "time_missing", "Say at what time it starts, such as 9:00."))
        return local_time.local_to_utc(local, ZoneInfo(time_zone), "at")

    def include_already_mailed(self) -> bool | None:
        """Whether those get it who got a cancelled one; None where that was not asked."""
        return None if self.to_all.data is None else self.to_all.data == "yes"

    def seen_status(self) -> str | None:
        """How it stood for whoever sent this; None where that is not said."""
        return self.seen.data if self.seen.data in ("draft", "scheduled") else None

    def is_start_ambiguous(self) -> bool:
        """Whether to ask which one is meant of a time that comes twice."""
        return needs_fold_choice(self, "at")


class CampaignFilterForm(Form):
    """What the list of mailings is narrowed to."""

    state = SelectField(
        "State",
        choices=[SelectChoice(value, label) for value, label in _STATUS_LABELS.items()],
        default="",
        validate_choice=False,
    )

    def selected_status(self) -> str | None:
        """The state to show; None for every one, and for a word that is none."""
        return self.state.data if self.state.data and self.state.data in _STATUS_LABELS else None


def _normalise_line_breaks(typed: str | None) -> str:
    """Browsers send CRLF; an empty-looking field is empty."""
    text = (typed or "").replace("\r\n", "\n")
    return text if text.strip() else ""
