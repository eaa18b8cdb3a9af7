"""The email editor: what it is filled with, what it previews, and conflicts of two edits."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import REMINDER_SUBJECT, EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer

REMINDER = "Summer is still available to you until"


def make_form(**values: str) -> dict[str, str]:
    return {"subject": "Hello", "text": "Hi {{ customer.name }}", "html": "", "uncertain_policy": "resend", **values}


def field(page: str, name: str) -> str:
    """Return the value of an input or a text area of a page."""
    found = re.search(rf'<input[^>]*name="{name}"[^>]*value="([^"]*)"|<textarea[^>]*name="{name}"[^>]*>([^<]*)<', page)
    assert found is not None
    return (found[1] or found[2] or "").strip()


def checked(page: str, name: str) -> list[str]:
    """Return the values of the checked radio buttons of a page."""
    return re.findall(rf'<input checked[^>]*name="{name}"[^>]*value="(\w+)"', page)


def finish_announcement(offer: Offer, subject: str = "Announced", status: str = "done") -> Campaign:
    now = datetime.now(UTC)
    campaign = Campaign(
        offer_id=offer.id, subject=subject, text="Announced", status=status, launched_at=now, finished_at=now,
        cancelled_at=now if status == "cancelled" else None, sent_in_batches=0, uncertain_policy="hold",
    )  # fmt: skip
    db.session.add(campaign)
    db.session.commit()
    return campaign


@pytest.mark.parametrize(
    ("saved", "label"),
    [
        ({"text": "Hers"}, "Text"),
        ({"html": "<p>Hers</p>"}, "Custom HTML"),
        ({"uncertain_policy": "hold"}, "If sending is interrupted while an email is being sent"),
    ],
)
def test_a_change_of_any_field_is_not_overwritten(
    staff: FlaskClient, make_offer: Callable[..., Offer], saved: dict[str, str], label: str
) -> None:
    offer = make_offer()
    staff.post(f"/offers/{offer.id}/mail", data=make_form())
    opened_version = field(staff.get("/campaigns/1/mail").text, "version")
    staff.post("/campaigns/1/mail", data=make_form(**saved))

    response = staff.post("/campaigns/1/mail", data=make_form(subject="Mine", version=opened_version))

    assert (response.status_code, f"Changed: {label}." in response.text) == (409, True)
    assert campaign_queries.get_campaign(1).subject == "Hello"


def test_the_editor_shows_the_saved_choice_for_uncertain_emails(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    assert checked(staff.get(f"/offers/{offer.id}/mail").text, "uncertain_policy") == ["resend"]
    draft_actions.save_offer_draft(offer.id, EmailContent(), "hold", "tests")
    assert checked(staff.get("/campaigns/1/mail").text, "uncertain_policy") == ["hold"]


def test_a_new_announcement_starts_from_the_cancelled_one(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    finish_announcement(offer, "First", "cancelled")
    finish_announcement(offer, "Second", "cancelled")

    page = staff.get(f"/offers/{offer.id}/mail").text

    assert (field(page, "subject"), field(page, "text"), field(page, "version")) == ("Second", "Announced", "none")
    assert checked(page, "uncertain_policy") == ["hold"]
    assert "Announced" in staff.get(f"/offers/{offer.id}/mail/frame").text


def test_a_reminder_does_not_start_from_the_announcement(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    finish_announcement(offer)

    page = staff.get(f"/offers/{offer.id}/reminder").text

    assert field(page, "subject") == REMINDER_SUBJECT
    assert REMINDER in staff.get(f"/offers/{offer.id}/reminder/frame").text


def test_empty_fields_of_a_reminder_are_previewed_with_its_default_text(
    staff: FlaskClient, make_offer: Callable[..., Offer], relay: Relay
) -> None:
    offer = make_offer()
    finish_announcement(offer)
    form = make_form(subject="", text="")

    preview = staff.post(f"/offers/{offer.id}/reminder/preview", data=form).text
    frame = staff.post(f"/offers/{offer.id}/reminder/frame", data=form).text
    saved = staff.post(f"/offers/{offer.id}/reminder", data=form | {"test": "1", "version": "none"})
    again = staff.post(f"/offers/{offer.id}/reminder", data=form | {"version": "none"})

    assert "Still available to you: 25% off" in preview
    assert (REMINDER in preview, REMINDER in frame) == (True, True)
    assert [(email.message["Subject"], REMINDER in email.text) for email in relay.messages] == [
        ("Still available to you: 25% off", True)
    ]
    # The same content again is no conflict, as after a double click.
    assert (saved.status_code, again.status_code) == (302, 302)


def test_no_test_email_goes_to_a_suppressed_user(
    staff: FlaskClient, make_offer: Callable[..., Offer], relay: Relay
) -> None:
    suppression_actions.add_suppression("manager@example.com", "unsubscribed", "tests")
    response = staff.post(f"/offers/{make_offer().id}/mail", data=make_form(test="1"))
    assert (response.status_code, relay.messages) == (409, [])
    assert "The email was saved, but no test email was sent." in response.text


def test_each_test_email_has_its_own_message_id(
    staff: FlaskClient, make_offer: Callable[..., Offer], relay: Relay
) -> None:
    path = f"/offers/{make_offer().id}/mail"
    for _ in range(2):
        staff.post(path, data=make_form(test="1"))
    assert len({email.message["Message-ID"] for email in relay.messages}) == 2


def test_frames_show_the_email_as_the_chosen_customer_or_the_first_one_in_the_audience(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer("ann@example.com", name="Ann")
    bob = make_customer("bob@example.com", name="Bob")
    make_customer("cleo@example.com", name="Cleo")
    audience = Audience(name="Two")
    db.session.add(audience)
    db.session.flush()
    db.session.execute(text("insert into audience_member select :audience, id from customer where id >= :bob"),
                       {"audience": audience.id, "bob": bob.id})  # fmt: skip
    offer = make_offer(audience_id=audience.id)
    path = f"/offers/{offer.id}/mail/frame"
    assert "Hello Bob," in staff.get(path).text
    assert "Hello Ann," in staff.get(f"{path}?seen_as=ann@example.com").text
    draft_actions.save_offer_draft(offer.id, EmailContent(text="Dear {{ customer.name }}"), "resend", "tests")
    assert "Dear Bob" in staff.get("/campaigns/1/mail/frame").text
    assert "Dear Ann" in staff.get("/campaigns/1/mail/frame?seen_as=ann@example.com").text
    page = staff.get("/campaigns/1/mail?seen_as=ann@example.com&view=phone").text
    assert 'src="/campaigns/1/mail/frame?seen_as=ann@example.com"' in page.replace("%40", "@")
    assert (field(page, "seen_as"), checked(page, "view")) == ("ann@example.com", ["phone"])


def test_the_choices_of_the_preview_are_kept_after_saving(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer("ann@example.com", name="Ann")
    form = make_form(seen_as="ann@example.com", view="plain")
    location = staff.post(f"/offers/{make_offer().id}/mail", data=form).headers["Location"].replace("%40", "@")
    assert location == "/campaigns/1/mail?seen_as=ann@example.com&view=plain"


def test_the_email_of_an_ended_offer_cannot_be_launched_from_the_editor(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer(ends_at=datetime.now(UTC) - timedelta(hours=1))
    page = staff.get(f"/offers/{offer.id}/mail").text
    assert ("This offer has ended" in page, 'name="launch"' in page) == (True, False)
    page = staff.get(f"/offers/{make_offer('WINTER').id}/mail").text
    assert ("This offer has ended" in page, 'name="launch"' in page) == (False, True)


def test_line_breaks_are_stored_as_one_character_and_blank_fields_as_empty(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    staff.post(f"/offers/{make_offer().id}/mail", data=make_form(subject=" Hi ", text="One\r\nTwo\n", html=" \r\n"))
    saved = campaign_queries.get_campaign(1)
    assert (saved.subject, saved.text, saved.html) == ("Hi", "One\nTwo\n", "")


def test_only_saved_values_that_differ_from_ones_own_are_shown(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    staff.post(f"/offers/{make_offer().id}/mail", data=make_form())
    opened_version = field(staff.get("/campaigns/1/mail").text, "version")
    staff.post("/campaigns/1/mail", data=make_form(subject="Both", text="Hers"))
    page = staff.post("/campaigns/1/mail", data=make_form(subject="Both", text="Mine", version=opened_version)).text
    assert "Changed: Subject, Text." in page
    assert re.findall("<summary>Saved version: (.*)</summary>", page) == ["Text"]
