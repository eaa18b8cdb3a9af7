"""What staff type about a mail, and the typed value it stands for."""

from __future__ import annotations

from flask_wtf import FlaskForm
from wtforms import RadioField, SelectChoice, StringField, TextAreaField

from webapp.campaigns.models import Campaign
from webapp.campaigns.wording import DEFAULT_SUBJECT, DEFAULT_TEXT, MailText


class MailForm(FlaskForm):
    """The mail of an offer, and how its preview is looked at."""

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

    def show(self, campaign: Campaign | None) -> None:
        """Fill in what is stored, or the default."""
        self.subject.data = campaign.subject if campaign else DEFAULT_SUBJECT
        self.html.data = campaign.html if campaign else ""
        self.text.data = campaign.text if campaign and (campaign.text or campaign.html) else DEFAULT_TEXT
        self.uncertain_policy.data = campaign.uncertain_policy if campaign else "resend"

    def mail(self) -> MailText:
        """What was typed."""
        return MailText((self.subject.data or "").strip(), _lines(self.text.data), _lines(self.html.data))


def _lines(typed: str | None) -> str:
    """Browsers send CRLF; an empty-looking field is empty."""
    text = (typed or "").replace("\r\n", "\n")
    return text if text.strip() else ""
