"""Staff pages for campaigns."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select, text, update

from tests.support.campaigns import create_customers
from tests.support.smtp_relay import Relay
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import auto_pause, batches, sender
from webapp.core.extensions import db
from webapp.core.settings import DEFAULT_SHOP_NAME, Settings
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience, Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers import code_actions
from webapp.offers.models import Offer
from webapp.shop import actions as shop_actions
from webapp.shop.models import ShopValues

HTMX = {"HX-Request": "true"}


@pytest.fixture
def sending(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    """A campaign to three customers that is being sent."""
    create_customers(3)
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    return campaign


def make_form(**values: str) -> dict[str, str]:
    return {"subject": "Hello", "text": "Hi {{ customer.name }}", "html": "", "uncertain_policy": "resend", **values}


# --- editing ------------------------------------------------------------------------------------------


def test_a_new_email_starts_with_the_default_text(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    page = staff.get(f"/offers/{make_offer().id}/mail").text
    assert "{{ offer.discount }} off for you: {{ offer.name }}" in page
    assert "25% off for you: Summer" in page


def test_the_first_save_keeps_the_choice_to_hold_uncertain_deliveries(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    path = f"/offers/{make_offer().id}/mail"
    form = make_form(subject="Mine", uncertain_policy="hold", version=form_version(staff, path))

    response = staff.post(path, data=form)

    assert response.status_code == 302
    saved = db.session.scalars(select(Campaign)).one()
    assert (saved.subject, saved.uncertain_policy) == ("Mine", "hold")


def test_an_email_is_saved_and_shown_again(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    response = staff.post(f"/offers/{offer.id}/mail", data=make_form(), follow_redirects=True)
    assert "The email was saved." in response.text
    assert "Hi {{ customer.name }}" in response.text


def test_an_unknown_placeholder_is_reported_and_input_kept(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    response = staff.post(
        f"/offers/{offer.id}/mail", data=make_form(text="Hi {{ customer.nmae }}, you", html="<p>mine</p>")
    )
    assert response.status_code == 422
    assert re.search(r'id="text-error".*?There is no placeholder {{ customer.nmae }}', response.text, re.DOTALL)
    assert "Hi {{ customer.nmae }}, you</textarea>" in response.text
    assert "&lt;p&gt;mine&lt;/p&gt;" in response.text
    assert campaign_queries.find_announcement(offer.id) is None


def test_a_body_that_is_too_large_is_reported_at_its_field(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    response = staff.post(f"/offers/{make_offer().id}/mail", data=make_form(text="t" * 300_000, html="h" * 300_000))
    assert response.status_code == 422
    assert re.search(r'id="html-error".*?larger than 256 kB', response.text, re.DOTALL)
    assert "h" * 300_000 in response.text


def test_typing_updates_the_preview_and_saves_nothing(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    offer = make_offer()
    form = make_form(subject="For {{ customer.name }}", text="", html="<p>Dear {{ customer.name }}")
    for path in (f"/offers/{offer.id}/mail", "/campaigns/1/mail"):
        response = staff.post(f"{path}/preview", data=form, headers=HTMX)
        assert response.text.lstrip().startswith("<section")
        assert "For Ada Lovelace" in response.text
        filled_from = re.findall(r'data-filled-from="([^"]+)"', response.text)[0]
        frame = staff.post(filled_from, data=form)
        assert "Dear Ada Lovelace" in frame.text
        assert "sandbox" in frame.headers["Content-Security-Policy"]
        draft = campaign_queries.find_announcement(offer.id)
        if path.startswith("/offers"):
            assert draft is None
            draft_actions.save_offer_draft(offer.id, EmailContent("Saved"), "resend", "tests")
        else:
            assert draft is not None
            assert (draft.subject, draft.html) == ("Saved", "")


def test_invalid_content_is_reported_instead_of_a_preview(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    response = staff.post(f"/offers/{make_offer().id}/mail/preview", data=make_form(text="{{ no }}"), headers=HTMX)
    assert response.status_code == 422
    assert "There is no placeholder {{ no }}" in response.text


def form_version(client: FlaskClient, path: str) -> str:
    """The hidden version field of the form on a page."""
    return str(re.findall(r'name="version"[^>]*value="([^"]*)"', client.get(path).text)[0])


def test_a_concurrent_edit_is_shown_before_it_is_overwritten(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent("First", "Text"), "resend", "tests")
    opened_version = form_version(staff, "/campaigns/1/mail")
    draft_actions.update_draft(1, EmailContent("Hers", "Text"), "resend", "mia@example.com")
    my_form = make_form(subject="First", text="Mine", version=opened_version)
    response = staff.post("/campaigns/1/mail", data=my_form)
    assert response.status_code == 409
    page = " ".join(response.text.split())
    assert "This email was changed after you opened it." in page
    assert "mia@example.com saved it on" in page
    assert "Changed: Subject." in page
    assert "Mine</textarea>" in response.text
    assert ">Hers</textarea>" in response.text
    assert campaign_queries.get_campaign(1).text == "Text"
    # Saving again is refused again. Only the version that the user confirmed is overwritten, no newer one.
    assert staff.post("/campaigns/1/mail", data=my_form).status_code == 409
    confirmed = re.findall(r'name="over"\s+value="([^"]+)"', response.text)[0]
    draft_actions.update_draft(1, EmailContent("Newer", "Text"), "resend", "joe@example.com")
    response = staff.post("/campaigns/1/mail", data={**my_form, "over": confirmed})
    assert (response.status_code, "joe@example.com saved it on" in response.text) == (409, True)
    confirmed = re.findall(r'name="over"\s+value="([^"]+)"', response.text)[0]
    assert staff.post("/campaigns/1/mail", data={**my_form, "over": confirmed}).status_code == 302
    assert campaign_queries.get_campaign(1).text == "Mine"


def test_a_first_draft_does_not_overwrite_a_concurrent_one(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    opened_version = form_version(staff, f"/offers/{offer.id}/mail")
    assert (
        staff.post(f"/offers/{offer.id}/mail", data=make_form(subject="Hers", version=opened_version)).status_code
        == 302
    )
    response = staff.post(f"/offers/{offer.id}/mail", data=make_form(subject="Mine", version=opened_version))
    assert (response.status_code, ">Hers</textarea>" in response.text) == (409, True)
    # Saving the same content twice is no conflict, as after a double click.
    assert (
        staff.post(f"/offers/{offer.id}/mail", data=make_form(subject="Hers", version=opened_version)).status_code
        == 302
    )


def test_an_email_launched_during_editing_cannot_be_saved(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    opened_version = form_version(staff, "/campaigns/1/mail")
    launch_actions.launch_campaign(1, "tests")
    response = staff.post("/campaigns/1/mail", data=make_form(text="Too late", version=opened_version))
    assert response.status_code == 409
    assert "The email was not saved." in response.text
    assert "Too late</textarea>" in response.text
    assert 'href="/campaigns/1"' in response.text
    assert 'name="launch"' not in response.text


@pytest.mark.parametrize("ended", ["session expired", "signed out elsewhere"])
def test_saving_after_the_session_ended_shows_the_input_and_a_sign_in_link(
    csrf_client: FlaskClient, staff: FlaskClient, make_offer: Callable[..., Offer], ended: str
) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent("Saved"), "resend", "tests")
    # With the CSRF token of a session that has ended, or without any.
    staff.application.config["WTF_CSRF_ENABLED"] = ended == "session expired"
    form = make_form(text="Long thought of </textarea><b>", csrf_token="spent")
    response = csrf_client.post("/campaigns/1/mail", data=form)
    assert response.status_code == 400
    assert 'href="/sign-in?next=/campaigns/1/mail"' in response.text
    assert "Long thought of &lt;/textarea&gt;&lt;b&gt;</textarea>" in response.text
    assert "spent" not in response.text
    assert "<form" not in response.text
    assert campaign_queries.get_campaign(1).subject == "Saved"


def test_typing_after_the_session_ended_stays_on_the_page(
    csrf_client: FlaskClient, staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    csrf_client.application.config["WTF_CSRF_ENABLED"] = True
    response = csrf_client.post(f"/offers/{offer.id}/mail/preview", data=make_form(), headers=HTMX)
    assert (response.status_code, "HX-Redirect" in response.headers) == (401, False)
    assert "Copy what you typed" in response.text


def test_the_preview_can_be_for_a_chosen_customer(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    make_customer("bob@example.com", name="Bob")
    page = staff.post(
        f"/offers/{make_offer().id}/mail", data=make_form(seen_as=" BOB@example.com "), follow_redirects=True
    ).text
    assert "Hi Bob" in page
    assert "seen_as=+BOB" in page


def test_a_preview_for_an_unknown_customer_is_refused(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    response = staff.post(
        f"/offers/{make_offer().id}/mail/preview", data=make_form(seen_as="no@example.com"), headers=HTMX
    )
    assert "No customer has this email address." in response.text


@pytest.mark.parametrize(
    ("button", "title"),
    [
        ("test", "The email was saved, but no test email was sent."),
        ("save", "The email was saved, but there is no preview."),
    ],
)
def test_an_unknown_preview_customer_is_the_only_message_after_saving(
    staff: FlaskClient, make_offer: Callable[..., Offer], relay: Relay, button: str, title: str
) -> None:
    form = make_form(seen_as="no@example.com", **{button: "1"})
    first = staff.post(f"/offers/{make_offer().id}/mail", data=form, follow_redirects=True)
    version = re.findall(r'name="version"[^>]*value="([^"]*)"', first.text)[0]
    again = staff.post("/campaigns/1/mail", data=form | {"version": version}, follow_redirects=True)
    for response in (first, again):
        assert response.status_code == 422
        # The second one is in the place of the preview.
        assert re.findall(r'class="alert alert-(\w+)', response.text) == ["danger", "danger"]
        assert f"<strong>{title}</strong>" in response.text
        assert response.text.count("No customer has this email address.") == 2
    assert relay.messages == []
    draft = campaign_queries.find_announcement(1)
    assert draft is not None
    assert draft.subject == "Hello"


def test_an_unknown_preview_customer_does_not_block_the_launch_page(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    form = make_form(seen_as="no@example.com", launch="1")
    assert staff.post(f"/offers/{make_offer().id}/mail", data=form).location == "/campaigns/1/launch"


def test_the_preview_frame_has_its_own_content_security_policy(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer(name="<script>alert(1)</script>")
    offer = make_offer()
    staff.post(f"/offers/{offer.id}/mail", data=make_form(html="<p>Dear {{ customer.name }}<script>bad()</script></p>"))
    response = staff.get("/campaigns/1/mail/frame")
    assert "Dear &lt;script&gt;alert(1)" in response.text
    policy = response.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "frame-src 'self'" in staff.get("/campaigns/1/mail").headers["Content-Security-Policy"]


def test_previews_contain_no_links_of_real_customers(
    sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    ada = make_customer()
    offer = make_offer()
    content = EmailContent("Hello", "For {{ customer.name }} {{ link }} {{ unsubscribe }}")
    draft_actions.save_offer_draft(offer.id, content, "resend", "tests")
    manager = sign_in("manager")
    pages = [manager.get(f"/campaigns/1/{page}").text for page in ("mail", "mail/frame", "launch")]
    campaign_id = launch_actions.launch_announcement(offer.id, "tests").campaign.id
    viewer = sign_in("viewer")
    pages += [viewer.get(f"/campaigns/{campaign_id}{page}").text for page in ("", "/frame")]
    assert pages[0].count("For Ada Lovelace") == 1
    links = {link for page in pages for link in re.findall(r"http://localhost(/[ru]/[\w.~-]+)", page)}
    assert {link[:3] for link in links} == {"/r/", "/u/"}
    for link in links:
        viewer.post(link, data={"email": ada.email})
    assert all(
        "Customers unsubscribe" in viewer.get(link).text or "Preview of a personal link" in viewer.get(link).text
        for link in links
    )
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0
    assert customer_queries.find_suppression_reasons([ada.id]) == {}


def test_a_test_email_goes_to_the_user_with_preview_links(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer], relay: Relay
) -> None:
    make_customer()
    offer = make_offer()
    response = staff.post(
        f"/offers/{offer.id}/mail", data=make_form(text="{{ link }}", test="1"), follow_redirects=True
    )
    assert "A test email was sent to manager@example.com." in response.text
    (email,) = relay.messages
    assert email.to == "manager@example.com"
    link = re.findall(r"http://localhost(/r/\S+)", email.text)[0]
    assert "Preview of a personal link" in staff.get(link).text


def test_a_failed_test_email_shows_the_reason(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    response = staff.post(f"/offers/{offer.id}/mail", data=make_form(test="1"))
    assert (response.status_code, "Connection refused" in response.text) == (503, True)
    assert "Hi {{ customer.name }}" in response.text
    assert "The email was saved, but no test email was sent." in response.text
    assert "The email was not saved." not in response.text
    assert db.session.execute(text("select count(*) from campaign where status = 'draft'")).scalar() == 1


def test_a_viewer_can_neither_edit_nor_launch(
    sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer]
) -> None:
    viewer = sign_in("viewer")
    offer = make_offer()
    assert viewer.get(f"/offers/{offer.id}/mail").status_code == 403
    assert viewer.post(f"/offers/{offer.id}/launch").status_code == 403


# --- launching ----------------------------------------------------------------------------------------


def test_the_launch_page_counts_the_recipients(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(1502)
    suppression_actions.unsubscribe_customer(ids[0], 0)
    offer = make_offer()
    page = staff.post(f"/offers/{offer.id}/mail", data=make_form(launch="1"), follow_redirects=True).text
    assert "<strong>1,501 customers</strong>" in page
    assert re.search(r"1\s+customer on the suppression list will be skipped", page)
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert draft.status == "draft"


def test_a_launch_leads_to_the_progress_page(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    offer = make_offer()
    response = staff.post(f"/offers/{offer.id}/launch", follow_redirects=True)
    assert response.request.path == "/campaigns/1"
    assert "Launched." in response.text


@pytest.mark.parametrize(
    ("change", "is_repeated_click"),
    [
        ("launched_at = launched_at", True),
        ("launched_at = now() - interval '31 seconds'", False),
        ("launched_by = 'another@example.com'", False),
    ],
    ids=["double click", "later", "another user"],
)
def test_a_second_launch_sends_nothing_twice(
    staff: FlaskClient, make_offer: Callable[..., Offer], change: str, is_repeated_click: bool
) -> None:
    create_customers(3)
    offer = make_offer()
    staff.post(f"/offers/{offer.id}/launch")
    db.session.execute(text(f"update campaign set {change}"))
    db.session.commit()
    with staff.session_transaction() as session:
        session.pop("_flashes")
    page = staff.post(f"/offers/{offer.id}/launch", follow_redirects=True).text
    assert ("Launched. You can leave this page" in page) is is_repeated_click
    assert ("This campaign is already launched. Nothing is sent twice." in page) is not is_repeated_click


def test_a_launch_without_recipients_explains_what_to_do(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    assert "Import customers" in staff.get("/campaigns/1/launch").text
    response = staff.post(f"/offers/{offer.id}/launch")
    assert response.status_code == 409
    assert "<strong>The campaign was not launched.</strong>" in response.text
    assert "There are no recipients" in response.text


def test_a_launch_before_the_offer_starts_shows_a_warning(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer(starts_at=datetime.now(UTC) + timedelta(days=3))
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    assert "until then it is refused" in staff.get("/campaigns/1/launch").text


def test_the_launch_page_warns_of_missing_details_of_the_shop(
    staff: FlaskClient, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    campaign = draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    notices = {
        "name": "The emails name the shop “Onecode”.",
        "address": "The emails have no postal address, which many countries require.",
    }

    def shown() -> set[str]:
        page = staff.get(f"/campaigns/{campaign.id}/launch").text
        found = {name for name, notice in notices.items() if notice in page}
        assert ("Complete the details of your shop first." in page) == bool(found)
        return found

    with_settings(shop_name=DEFAULT_SHOP_NAME)
    assert shown() == {"name", "address"}
    shop_actions.save_shop(ShopValues("Florist"), "tests")
    assert shown() == {"address"}
    shop_actions.save_shop(ShopValues("Florist", address="Road 1"), "tests")
    assert shown() == set()
    shop_actions.save_shop(ShopValues(DEFAULT_SHOP_NAME, address="Road 1"), "tests")
    assert shown() == {"name"}


def test_the_campaign_page_links_to_a_configured_mail_sink(
    staff: FlaskClient, sending: Campaign, with_settings: Callable[..., object]
) -> None:
    with_settings(uses_mail_sink=False)
    assert "mail sink" not in staff.get(f"/campaigns/{sending.id}").text
    with_settings(uses_mail_sink=True, port=8010)
    assert '<a href="http://127.0.0.1:8012/">the mail sink</a>' in staff.get(f"/campaigns/{sending.id}").text


def test_editing_a_launched_campaign_redirects_to_it(staff: FlaskClient, sending: Campaign) -> None:
    for page in ("mail", "launch"):
        response = staff.get(f"/offers/{sending.offer_id}/{page}")
        assert response.headers["Location"] == f"/campaigns/{sending.id}"


# --- progress -----------------------------------------------------------------------------------------


def test_the_progress_card_polls_until_the_campaign_is_done(
    staff: FlaskClient, sending: Campaign, relay: Relay
) -> None:
    during = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    sender.send_pending_emails()
    afterwards = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    assert 'hx-trigger="every 2s"' in during
    assert "hx-trigger" not in afterwards


def test_the_card_of_a_paused_campaign_polls_until_the_batch_is_released(staff: FlaskClient, sending: Campaign) -> None:
    claim = batches.claim_batch("a worker")
    assert claim is not None
    transitions.pause_campaign(sending.id, "tests")
    before_release = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    batches.release_batch(claim)
    after_release = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    assert "hx-trigger" in before_release
    assert "hx-trigger" not in after_release


def test_failures_show_the_relays_reply(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "550 5.1.1 <b>no user</b> here"
    sender.send_pending_emails()
    assert "5.1.1 &lt;b&gt;no user&lt;/b&gt; here" in staff.get(f"/campaigns/{sending.id}").text
    page = staff.get(f"/campaigns/{sending.id}/recipients?state=failed").text
    assert "c1@example.com" in page
    assert "c2@example.com" not in page


def test_the_tabs_of_the_recipients_show_how_many_are_listed(
    staff: FlaskClient, sending: Campaign, relay: Relay
) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "450 4.7.1 greylisted"
    relay.behaviour.uses["c1@example.com"] = 1
    sender.send_pending_emails()
    db.session.execute(text("update mail_issue set next_at = now()"))
    db.session.commit()
    sender.send_pending_emails()
    counts = []
    for state in ("", "sent", "sent_later"):
        page = staff.get(f"/campaigns/{sending.id}/recipients?state={state}").text
        tab = re.search(r'aria-current="page"[^>]*>[^<(]*\((\d+)\)', page)
        assert tab
        assert page.count('<th scope="row">') == int(tab[1])
        counts.append(int(tab[1]))
    assert counts[0] == counts[1] + 1
    assert counts[2] == 1


def test_the_list_of_deferred_recipients_has_pages(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    create_customers(60, first=10)
    db.session.execute(
        Campaign.__table__.update().values(status="preparing", prepared_at=None)  # type: ignore[attr-defined]
    )
    db.session.commit()
    preparation.prepare_campaign(sending.id)
    relay.behaviour.rcpt["*"] = "451 later"
    sender.send_pending_emails()
    first = staff.get(f"/campaigns/{sending.id}/recipients?state=deferred").text
    next_page = re.findall(r'rel="next" href="([^"]+)"', first)[0].replace("&amp;", "&")
    second = staff.get(next_page).text
    assert "c69@example.com" in second
    assert "c69@example.com" not in first
    assert "First page" in second
    assert 'rel="prev"' not in second


@pytest.mark.parametrize(("verb", "text_shown"), [("pause", "This campaign is paused."), ("cancel", "Cancelled")])
def test_an_action_returns_the_card_or_redirects_to_the_page(
    staff: FlaskClient, sending: Campaign, verb: str, text_shown: str
) -> None:
    assert staff.post(f"/campaigns/{sending.id}/{verb}").headers["Location"] == f"/campaigns/{sending.id}"
    fragment = staff.post(f"/campaigns/{sending.id}/{verb}", headers=HTMX).text
    assert "<html" not in fragment
    assert text_shown in fragment


def test_failed_emails_can_be_resent(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    relay.behaviour.uses["c1@example.com"] = 1
    sender.send_pending_emails()
    response = staff.post(f"/campaigns/{sending.id}/send-again", data={"state": "failed"}, follow_redirects=True)
    assert "1 email is being resent." in response.text
    sender.send_pending_emails()
    assert stats_queries.get_campaign_stats(sending.id).sent == 3


def test_the_email_of_a_campaign_is_described(staff: FlaskClient, sending: Campaign) -> None:
    page = f"/campaigns/{sending.id}"
    assert "This is the email that is being sent, with the current name and dates of the offer." in staff.get(page).text

    db.session.execute(update(Campaign).values(status="done"))
    db.session.commit()
    assert "This is the email that was sent, with the current name and dates of the offer." in staff.get(page).text

    code_actions.renew_code(sending.offer_id, "WINTER26", by="tests")
    renewed = staff.get(page).text
    assert "This is the email with the current code." in renewed
    assert "Emails sent before the code was replaced contain the earlier code." in renewed


def test_a_delivery_warning_is_shown_on_the_card(staff: FlaskClient, sending: Campaign) -> None:
    auto_pause.set_delivery_warning("The mail relay can't be reached (Connection refused).")
    assert "can&#39;t be reached" in staff.get(f"/campaigns/{sending.id}").text


def test_campaigns_are_listed_with_their_state(staff: FlaskClient, sending: Campaign) -> None:
    page = staff.get("/campaigns").text
    assert "SUMMER25" in page
    assert "Sending" in page
    assert re.search(r"0\s+of\s+3", re.sub("<[^>]*>", "", page))


def test_the_list_needs_the_same_number_of_statements_for_any_size(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    def count_statements() -> int:
        executed: list[str] = []

        def record(connection: object, cursor: object, statement: str, *rest: object) -> None:
            executed.append(statement)

        db.session.remove()
        event.listen(db.engine, "before_cursor_execute", record)
        try:
            staff.get("/campaigns")
        finally:
            event.remove(db.engine, "before_cursor_execute", record)
        return len(executed)

    draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    count_for_one = count_statements()
    for n in range(9):
        draft_actions.save_offer_draft(make_offer(f"CODE{n}").id, EmailContent(), "resend", "tests")
    assert count_statements() == count_for_one


def test_an_empty_list_explains_the_first_step(staff: FlaskClient) -> None:
    assert "No campaigns yet" in staff.get("/campaigns").text


@pytest.mark.parametrize(
    "path",
    ["/offers/9/mail", "/offers/9/launch", "/offers/9/mail/frame", "/campaigns/9", "/campaigns/9/progress",
     "/campaigns/9/recipients", "/campaigns/9/frame"],
)  # fmt: skip
def test_unknown_campaigns_and_offers_are_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


@pytest.mark.parametrize("query", ["after=x", "after=99999999999999999999", "state=nonsense"])
def test_invalid_list_parameters_show_the_first_page(staff: FlaskClient, sending: Campaign, query: str) -> None:
    assert staff.get(f"/campaigns/{sending.id}/recipients?{query}").status_code == 200


def test_a_body_of_five_megabytes_is_rejected_and_kept_in_the_form(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    large_body = "<p>" * (5 * 2**20 // 3)
    response = staff.post(f"/offers/{make_offer().id}/mail", data=make_form(html=large_body, subject="What I typed"))
    assert response.status_code == 422
    assert re.search(r'id="html-error".*?larger than 256 kB \(it is 5,1\d\d kB\)', response.text, re.DOTALL)
    assert 'value="What I typed"' in response.text
    assert large_body.replace("<", "&lt;").replace(">", "&gt;") in response.text


def test_signed_out_requests_have_a_smaller_size_limit(csrf_client: FlaskClient) -> None:
    assert csrf_client.post("/offers/1/mail", data={"html": "x" * 5 * 2**20}).status_code == 413


def test_the_preview_shows_warnings_and_headers(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    page = staff.post(f"/offers/{make_offer().id}/mail/preview", data=make_form(text="Hi {name}"), headers=HTMX).text
    assert "neither the code nor the personal link" in page
    assert "“{name}” will be sent as is" in page
    assert "List-Unsubscribe: &lt;" in page


def test_html_that_hides_the_unsubscribe_link_is_rejected(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    response = staff.post(f"/offers/{make_offer().id}/mail", data=make_form(html="<p>Hi</p><!-- never closed"))
    assert response.status_code == 422
    assert re.search(r'id="html-error".*?The unsubscribe link', response.text, re.DOTALL)
    assert "&lt;!-- never closed" in response.text


# --- lists and reasons ----------------------------------------------------------------------------------


def add_campaigns(offer: Offer, count: int, **values: object) -> list[int]:
    """Add finished reminders; return their ids."""
    row = {"offer_id": offer.id, "kind": "reminder", "subject": "s", "text": "t", "sent_in_batches": 0, **values}
    campaigns = [Campaign(**row) for _ in range(count)]
    db.session.add_all(campaigns)
    db.session.commit()
    return [campaign.id for campaign in campaigns]


def test_the_pages_of_a_filtered_list_keep_the_filter(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    ids = add_campaigns(offer, 26, status="paused", launched_at=datetime.now(UTC))
    add_campaigns(offer, 1, status="done", launched_at=datetime.now(UTC))

    def list_ids(page: str) -> list[int]:
        return [int(number) for number in re.findall(r'<a href="/campaigns/(\d+)">', page)]

    first = staff.get("/campaigns?state=paused").text
    next_url = re.findall(r'rel="next" href="([^"]+)"', first)[0].replace("&amp;", "&")
    second = staff.get(next_url).text
    first_url = re.findall(r'class="page-link" href="([^"]+)"', second)[0].replace("&amp;", "&")

    assert list_ids(first) == ids[:0:-1]
    assert (list_ids(second), 'rel="next"' in second) == (ids[:1], False)
    assert list_ids(staff.get(first_url).text) == ids[:0:-1]
    assert "First page" not in first


def test_only_the_eight_most_frequent_reasons_are_shown(staff: FlaskClient, sending: Campaign) -> None:
    rows = [MailIssue(campaign_id=sending.id, customer_id=1, state="sent_later", text="5.9.9 accepted")]
    for n in range(1, 11):
        for customer_id in range(100 * n, 101 * n):
            reply = {"state": "failed", "smtp_code": 550, "text": f"5.0.{n} no"}
            rows.append(MailIssue(campaign_id=sending.id, customer_id=customer_id, **reply))
    db.session.add_all(rows)
    db.session.commit()
    page = staff.get(f"/campaigns/{sending.id}/progress").text
    assert [int(n) for n in re.findall(r"550 5\.0\.(\d+) no", page)] == [10, 9, 8, 7, 6, 5, 4, 3]
    assert "And 2 less common reasons." in page
    assert "5.9.9" not in page


def test_an_export_without_a_state_has_all_recipients(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    sender.send_pending_emails()
    response = staff.get(f"/campaigns/{sending.id}/recipients.csv")
    assert (response.mimetype, response.text.count("\r\n")) == ("text/csv", 4)
    assert response.headers["Content-Disposition"] == f'attachment; filename="campaign-{sending.id}.csv"'
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.exported")).one()
    assert (entry.actor, entry.subject, entry.detail) == ("manager@example.com", str(sending.id), None)


def test_a_search_for_something_else_than_an_address_says_so(staff: FlaskClient, sending: Campaign) -> None:
    response = staff.get(f"/campaigns/{sending.id}/who?email=ada")
    assert (response.status_code, 'value="ada"' in response.text) == (422, True)
    assert "No customer has this email address." not in response.text


def test_a_finished_campaign_has_an_average_rate_and_its_end(staff: FlaskClient, sending: Campaign) -> None:
    db.session.execute(text("update batch set status = 'done', sent = 3, window_start = 3, window_end = 3"))
    times = "sending_since = '2026-05-01 10:00Z', finished_at = '2026-05-01 10:01Z'"
    db.session.execute(text(f"update campaign set status = 'done', sent_in_batches = 3, {times}"))
    db.session.commit()
    page = " ".join(staff.get(f"/campaigns/{sending.id}/progress").text.split())
    assert "Average rate: 3 emails per minute. Finished 1 May 2026, 10:01" in page


def test_the_page_describes_the_campaign_as_it_was_launched(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(1)
    db.session.add_all([Audience(name="At the launch"), Audience(name="Chosen later")])
    db.session.flush()
    db.session.execute(text("insert into audience_member (audience_id, customer_id) values (1, 1)"))
    offer = make_offer("Summer-25", audience_id=1)
    draft_actions.save_offer_draft(offer.id, EmailContent("For {{ customer.name }}"), "hold", "tests")
    campaign = launch_actions.launch_announcement(offer.id, "mia@example.com").campaign
    offer.audience_id = 2
    db.session.commit()
    response = staff.get(f"/campaigns/{campaign.id}")
    page = " ".join(re.sub("<[^>]*>", " ", response.text).split())
    for shown in (
        "Type Announcement", "Audience At the launch", "Current offer code Summer-25", "Launched by mia@example.com",
        "If sending is interrupted Hold the affected email",
    ):  # fmt: skip
        assert shown in page
    assert "frame-src 'self'" in response.headers["Content-Security-Policy"]
    assert "sandbox" in staff.get(f"/campaigns/{campaign.id}/frame").headers["Content-Security-Policy"]


def test_the_pages_of_recipients_keep_their_state_and_reason(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    customers = create_customers(60, first=10)
    sending = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(sending.id)
    for n, customer_id in enumerate(customers):
        reply = "5.1.1 no" if n % 10 else "5.7.1 no"
        values = {"customer_id": customer_id, "state": "failed", "smtp_code": 550, "text": reply}
        db.session.add(MailIssue(campaign_id=sending.id, **values))
    db.session.commit()

    def list_addresses(page: str) -> list[str]:
        return re.findall(r"<bdi>(c\d+)@example.com</bdi></a>", page)

    selection = "state=failed&code=550&cause=5.1.1"
    first = staff.get(f"/campaigns/{sending.id}/recipients?{selection}").text
    next_url = re.findall(r'rel="next" href="([^"]+)"', first)[0].replace("&amp;", "&")
    second = staff.get(next_url).text
    first_url = re.findall(r'class="page-link" href="([^"]+)"', second)[0].replace("&amp;", "&")

    expected = [f"c{10 + n}" for n in range(60) if n % 10]
    assert list_addresses(first) == expected[:50]
    assert list_addresses(second) == expected[50:]
    assert list_addresses(staff.get(first_url).text) == expected[:50]


def test_reasons_without_a_meaning_are_shown_as_they_are_stored(staff: FlaskClient, sending: Campaign) -> None:
    rows = [("failed", 599, "odd"), ("uncertain", None, ""), ("skipped", None, "unsubscribed")]
    for customer_id, (state, code, reply) in enumerate(rows, 1):
        values = {"customer_id": customer_id, "state": state, "smtp_code": code, "text": reply}
        db.session.add(MailIssue(campaign_id=sending.id, **values))
    db.session.commit()
    page = staff.get(f"/campaigns/{sending.id}/progress").text
    links = re.findall(r'<a href="(/campaigns/\d+/recipients\?[^"]*cause=[^"]*)">([^<]*)</a>', page)
    assert sorted(heading for _, heading in links) == [
        "No details are stored",
        "The server replied 599",
        "Unsubscribed",
    ]
    url = next(url for url, heading in links if heading == "The server replied 599").replace("&amp;", "&")
    assert "Filtered by reason: The server replied 599." in staff.get(url).text


def list_steps(page: str) -> list[str]:
    """Return the steps for which a page has a form."""
    return re.findall(r'<form[^>]*action="/campaigns/\d+/([\w-]+)"', page)


@pytest.mark.parametrize(
    ("status", "steps"),
    [
        ("preparing", ["pause", "cancel"]),
        ("sending", ["pause", "cancel"]),
        ("paused", ["resume", "cancel", "send-again"]),
        ("done", ["send-again"]),
        ("cancelled", []),
    ],
)
def test_managers_see_the_steps_that_are_possible_and_viewers_none(
    sign_in: Callable[..., FlaskClient], sending: Campaign, status: str, steps: list[str]
) -> None:
    db.session.add(MailIssue(campaign_id=sending.id, customer_id=1, state="failed", text="no"))
    cancelled_at = "now()" if status == "cancelled" else "null"
    db.session.execute(text(f"update campaign set status = :status, cancelled_at = {cancelled_at}"), {"status": status})
    db.session.commit()
    path = f"/campaigns/{sending.id}/progress"
    assert list_steps(sign_in("manager").get(path).text) == steps
    assert list_steps(sign_in("viewer").get(path).text) == []


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("status = 'paused', pause_reason = 'paused by mia@example.com'", "Paused Paused by mia@example.com 0 of 3"),
        ("status = 'paused', pause_reason = 'the relay refuses'", "Paused The relay refuses 0 of 3"),
        ("status = 'sending', trouble = 'The relay is down.'", "Sending The relay is down. 0 of 3"),
        ("status = 'paused', launched_at = null, pause_reason = 'too late'", "Paused Too late – –"),
        ("status = 'draft', launched_at = null", "Draft – –"),
    ],
)
def test_the_list_says_why_nothing_is_sent(staff: FlaskClient, sending: Campaign, change: str, shown: str) -> None:
    db.session.execute(text(f"update campaign set {change}"))
    db.session.commit()
    row = re.findall(r"<tr>(?!.*<tr>).*?</tr>", staff.get("/campaigns").text, re.DOTALL)[-1]
    assert shown in " ".join(re.sub("<[^>]*>", " ", row).split())
