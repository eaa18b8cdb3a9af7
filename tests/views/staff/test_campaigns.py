"""The staff's screens of campaigns."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from tests.support.campaigns import create_customers
from tests.support.smtp_relay import Relay
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import auto_pause, batches, sender
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer

HTMX = {"HX-Request": "true"}


@pytest.fixture
def sending(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    """A campaign to three customers that is under way."""
    create_customers(3)
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    return campaign


def typed(**values: str) -> dict[str, str]:
    return {"subject": "Hello", "text": "Hi {{ customer.name }}", "html": "", "uncertain_policy": "resend", **values}


# --- writing ------------------------------------------------------------------------------------------


def test_a_new_mail_starts_from_the_text_we_suggest(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    page = staff.get(f"/offers/{make_offer().id}/mail").text
    assert "{{ offer.discount }} off for you: {{ offer.name }}" in page
    assert "25% off for you: Summer" in page


def test_a_mail_is_saved_and_shown_again(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    answer = staff.post(f"/offers/{offer.id}/mail", data=typed(), follow_redirects=True)
    assert "The email has been saved." in answer.text
    assert "Hi {{ customer.name }}" in answer.text


def test_an_unknown_placeholder_stays_typed_with_the_error_at_its_field(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    answer = staff.post(f"/offers/{offer.id}/mail", data=typed(text="Hi {{ customer.nmae }}, you", html="<p>mine</p>"))
    assert answer.status_code == 422
    assert re.search(r'id="text-error".*?There is no placeholder {{ customer.nmae }}', answer.text, re.DOTALL)
    assert "Hi {{ customer.nmae }}, you</textarea>" in answer.text
    assert "&lt;p&gt;mine&lt;/p&gt;" in answer.text
    assert campaign_queries.find_announcement(offer.id) is None


def test_a_mail_that_is_too_large_is_told_so_at_its_field(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    answer = staff.post(f"/offers/{make_offer().id}/mail", data=typed(text="t" * 300_000, html="h" * 300_000))
    assert answer.status_code == 422
    assert re.search(r'id="html-error".*?larger than 256 kB', answer.text, re.DOTALL)
    assert "h" * 300_000 in answer.text


def test_typing_renews_the_preview_and_keeps_nothing(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    offer = make_offer()
    words = typed(subject="For {{ customer.name }}", text="", html="<p>Dear {{ customer.name }}")
    for path in (f"/offers/{offer.id}/mail", "/campaigns/1/mail"):
        answer = staff.post(f"{path}/preview", data=words, headers=HTMX)
        assert answer.text.lstrip().startswith("<section")
        assert "For Ada Lovelace" in answer.text
        filled_from = re.findall(r'data-filled-from="([^"]+)"', answer.text)[0]
        frame = staff.post(filled_from, data=words)
        assert "Dear Ada Lovelace" in frame.text
        assert "sandbox" in frame.headers["Content-Security-Policy"]
        draft = campaign_queries.find_announcement(offer.id)
        if path.startswith("/offers"):
            assert draft is None
            draft_actions.save_offer_draft(offer.id, EmailContent("Saved"), "resend", "tests")
        else:
            assert draft is not None
            assert (draft.subject, draft.html) == ("Saved", "")


def test_typing_something_unreadable_says_why_there_is_no_preview(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    answer = staff.post(f"/offers/{make_offer().id}/mail/preview", data=typed(text="{{ no }}"), headers=HTMX)
    assert answer.status_code == 422
    assert "There is no placeholder {{ no }}" in answer.text


def version(client: FlaskClient, path: str) -> str:
    """What the form of a page carries."""
    return str(re.findall(r'name="version"[^>]*value="([^"]*)"', client.get(path).text)[0])


def test_what_somebody_else_saved_meanwhile_is_not_overwritten_unseen(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent("First", "Text"), "resend", "tests")
    opened = version(staff, "/campaigns/1/mail")
    draft_actions.update_draft(1, EmailContent("Hers", "Text"), "resend", "mia@example.com")
    mine = typed(subject="First", text="Mine", version=opened)
    answer = staff.post("/campaigns/1/mail", data=mine)
    assert answer.status_code == 409
    words = " ".join(answer.text.split())
    assert "mia@example.com saved it on" in words
    assert "Changed: Subject." in words
    assert "Mine</textarea>" in answer.text
    assert ">Hers</textarea>" in answer.text
    assert campaign_queries.get_campaign(1).text == "Text"
    # Pressing Save again says it again; only who says over which words overwrites them, and no newer ones.
    assert staff.post("/campaigns/1/mail", data=mine).status_code == 409
    over = re.findall(r'name="over"\s+value="([^"]+)"', answer.text)[0]
    draft_actions.update_draft(1, EmailContent("Newer", "Text"), "resend", "joe@example.com")
    answer = staff.post("/campaigns/1/mail", data={**mine, "over": over})
    assert (answer.status_code, "joe@example.com saved it on" in answer.text) == (409, True)
    over = re.findall(r'name="over"\s+value="([^"]+)"', answer.text)[0]
    assert staff.post("/campaigns/1/mail", data={**mine, "over": over}).status_code == 302
    assert campaign_queries.get_campaign(1).text == "Mine"


def test_a_first_mail_does_not_overwrite_one_that_has_come_into_being(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    opened = version(staff, f"/offers/{offer.id}/mail")
    assert staff.post(f"/offers/{offer.id}/mail", data=typed(subject="Hers", version=opened)).status_code == 302
    answer = staff.post(f"/offers/{offer.id}/mail", data=typed(subject="Mine", version=opened))
    assert (answer.status_code, ">Hers</textarea>" in answer.text) == (409, True)
    # The same words twice are no quarrel: so it is with a double click.
    assert staff.post(f"/offers/{offer.id}/mail", data=typed(subject="Hers", version=opened)).status_code == 302


def test_a_mail_that_was_launched_meanwhile_has_no_buttons_to_save_it(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(1)
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    opened = version(staff, "/campaigns/1/mail")
    launch_actions.launch_campaign(1, "tests")
    answer = staff.post("/campaigns/1/mail", data=typed(text="Too late", version=opened))
    assert answer.status_code == 409
    assert "The email was not saved." in answer.text
    assert "Too late</textarea>" in answer.text
    assert 'href="/campaigns/1"' in answer.text
    assert 'name="launch"' not in answer.text


@pytest.mark.parametrize("ended", ["the session is gone", "signed out elsewhere"])
def test_who_saves_after_the_session_ended_gets_the_words_to_copy_and_a_way_to_sign_in(
    csrf_client: FlaskClient, staff: FlaskClient, make_offer: Callable[..., Offer], ended: str
) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent("Saved"), "resend", "tests")
    # With the token of a session that nobody is signed in to any more, or without any.
    staff.application.config["WTF_CSRF_ENABLED"] = ended == "the session is gone"
    words = typed(text="Long thought of </textarea><b>", csrf_token="spent")
    answer = csrf_client.post("/campaigns/1/mail", data=words)
    assert answer.status_code == 400
    assert 'href="/sign-in?next=/campaigns/1/mail"' in answer.text
    assert "Long thought of &lt;/textarea&gt;&lt;b&gt;</textarea>" in answer.text
    assert "spent" not in answer.text
    assert "<form" not in answer.text
    assert campaign_queries.get_campaign(1).subject == "Saved"


def test_typing_after_the_session_ended_does_not_leave_the_page(
    csrf_client: FlaskClient, staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    offer = make_offer()
    csrf_client.application.config["WTF_CSRF_ENABLED"] = True
    answer = csrf_client.post(f"/offers/{offer.id}/mail/preview", data=typed(), headers=HTMX)
    assert (answer.status_code, "HX-Redirect" in answer.headers) == (401, False)
    assert "Copy what you typed" in answer.text


def test_the_preview_can_be_somebody_of_the_customers(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    make_customer("bob@example.com", name="Bob")
    page = staff.post(
        f"/offers/{make_offer().id}/mail", data=typed(seen_as=" BOB@example.com "), follow_redirects=True
    ).text
    assert "Hi Bob" in page
    assert "seen_as=+BOB" in page


def test_a_preview_for_nobody_says_so_at_the_field(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    answer = staff.post(f"/offers/{make_offer().id}/mail/preview", data=typed(seen_as="no@example.com"), headers=HTMX)
    assert "There is no customer with this email address." in answer.text


def test_the_frame_shows_the_mail_under_a_policy_of_its_own(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_customer(name="<script>alert(1)</script>")
    offer = make_offer()
    staff.post(f"/offers/{offer.id}/mail", data=typed(html="<p>Dear {{ customer.name }}<script>bad()</script></p>"))
    answer = staff.get("/campaigns/1/mail/frame")
    assert "Dear &lt;script&gt;alert(1)" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "frame-src 'self'" in staff.get("/campaigns/1/mail").headers["Content-Security-Policy"]


def test_a_preview_carries_nobodys_links(
    sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    somebody = make_customer()
    offer = make_offer()
    words = EmailContent("Hello", "For {{ customer.name }} {{ link }} {{ unsubscribe }}")
    draft_actions.save_offer_draft(offer.id, words, "resend", "tests")
    manager = sign_in("manager")
    pages = [manager.get(f"/campaigns/1/{page}").text for page in ("mail", "mail/frame", "launch")]
    campaign_id = launch_actions.launch_announcement(offer.id, "tests").campaign.id
    viewer = sign_in("viewer")
    pages += [viewer.get(f"/campaigns/{campaign_id}{page}").text for page in ("", "/frame")]
    assert pages[0].count("For Ada Lovelace") == 1
    links = {link for page in pages for link in re.findall(r"http://localhost(/[ru]/[\w.~-]+)", page)}
    assert {link[:3] for link in links} == {"/r/", "/u/"}
    for link in links:
        viewer.post(link, data={"email": somebody.email})
    assert all(
        "Customers unsubscribe" in viewer.get(link).text or "Preview of a customer" in viewer.get(link).text
        for link in links
    )
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0
    assert customer_queries.find_suppression_reasons([somebody.id]) == {}


def test_a_test_goes_to_the_one_who_asked_and_can_use_up_nothing(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer], relay: Relay
) -> None:
    make_customer()
    offer = make_offer()
    answer = staff.post(f"/offers/{offer.id}/mail", data=typed(text="{{ link }}", test="1"), follow_redirects=True)
    assert "A test email has been sent to manager@example.com." in answer.text
    (received,) = relay.messages
    assert received.to == "manager@example.com"
    link = re.findall(r"http://localhost(/r/\S+)", received.text)[0]
    assert "personal page" in staff.get(link).text


def test_a_test_that_the_relay_does_not_take_says_why(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    answer = staff.post(f"/offers/{offer.id}/mail", data=typed(test="1"))
    assert (answer.status_code, "Connection refused" in answer.text) == (503, True)
    assert "Hi {{ customer.name }}" in answer.text


def test_a_viewer_can_not_write(sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer]) -> None:
    viewer = sign_in("viewer")
    offer = make_offer()
    assert viewer.get(f"/offers/{offer.id}/mail").status_code == 403
    assert viewer.post(f"/offers/{offer.id}/launch").status_code == 403


# --- launching ----------------------------------------------------------------------------------------


def test_the_launch_first_says_how_many_it_goes_to(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(1502)
    suppression_actions.unsubscribe_customer(ids[0], 0)
    offer = make_offer()
    page = staff.post(f"/offers/{offer.id}/mail", data=typed(launch="1"), follow_redirects=True).text
    assert "<strong>1,501 customers</strong>" in page
    assert re.search(r"1\s+more address is suppressed; the campaign counts it as skipped", page)
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert draft.status == "draft"


def test_the_launch_leads_to_its_progress(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(3)
    offer = make_offer()
    answer = staff.post(f"/offers/{offer.id}/launch", follow_redirects=True)
    assert answer.request.path == "/campaigns/1"
    assert "Launched." in answer.text


def test_a_second_click_on_launch_says_that_nothing_went_out_twice(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(3)
    offer = make_offer()
    staff.post(f"/offers/{offer.id}/launch")
    answer = staff.post(f"/offers/{offer.id}/launch", follow_redirects=True)
    assert "nothing was sent twice" in answer.text


def test_a_launch_to_nobody_stays_and_says_what_to_do(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    assert "Import customers" in staff.get("/campaigns/1/launch").text
    answer = staff.post(f"/offers/{offer.id}/launch")
    assert answer.status_code == 409
    assert "There are no recipients" in answer.text


def test_a_launch_before_the_offer_starts_is_warned_of(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer(starts_at=datetime.now(UTC) + timedelta(days=3))
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    assert "until then it is refused" in staff.get("/campaigns/1/launch").text


def test_the_page_of_a_mailing_leads_to_the_mail_sink_where_there_is_one(
    staff: FlaskClient, sending: Campaign, with_settings: Callable[..., object]
) -> None:
    with_settings(uses_mail_sink=False)
    assert "mail sink" not in staff.get(f"/campaigns/{sending.id}").text
    with_settings(uses_mail_sink=True, port=8010)
    assert '<a href="http://127.0.0.1:8012/">the mail sink</a>' in staff.get(f"/campaigns/{sending.id}").text


def test_a_launched_mail_is_not_written_any_more(staff: FlaskClient, sending: Campaign) -> None:
    for page in ("mail", "launch"):
        answer = staff.get(f"/offers/{sending.offer_id}/{page}")
        assert answer.headers["Location"] == f"/campaigns/{sending.id}"


# --- watching -----------------------------------------------------------------------------------------


def test_the_card_asks_again_while_mails_go_out_and_stops_when_they_are_through(
    staff: FlaskClient, sending: Campaign, relay: Relay
) -> None:
    going = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    sender.send_pending_emails()
    through = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    assert 'hx-trigger="every 2s"' in going
    assert "hx-trigger" not in through


def test_the_card_of_a_paused_mailing_asks_again_until_the_worker_has_left_it(
    staff: FlaskClient, sending: Campaign
) -> None:
    claim = batches.claim_batch("a worker")
    assert claim is not None
    transitions.pause_campaign(sending.id, "tests")
    leaving = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    batches.release_batch(claim)
    left = staff.get(f"/campaigns/{sending.id}/progress", headers=HTMX).text
    assert "hx-trigger" in leaving
    assert "hx-trigger" not in left


def test_failures_are_shown_with_the_relays_words(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "550 5.1.1 <b>nobody</b> here"
    sender.send_pending_emails()
    assert "5.1.1 &lt;b&gt;nobody&lt;/b&gt; here" in staff.get(f"/campaigns/{sending.id}").text
    page = staff.get(f"/campaigns/{sending.id}/recipients?state=failed").text
    assert "c1@example.com" in page
    assert "c2@example.com" not in page


def test_the_list_of_those_put_off_has_pages(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    create_customers(60, first=10)
    db.session.execute(
        Campaign.__table__.update().values(status="preparing", prepared_at=None)  # type: ignore[attr-defined]
    )
    db.session.commit()
    preparation.prepare_campaign(sending.id)
    relay.behaviour.rcpt["*"] = "451 later"
    sender.send_pending_emails()
    first = staff.get(f"/campaigns/{sending.id}/recipients?state=deferred").text
    following = re.findall(r'rel="next" href="([^"]+)"', first)[0].replace("&amp;", "&")
    assert "c69@example.com" in staff.get(following).text
    assert "c69@example.com" not in first


@pytest.mark.parametrize(("verb", "words"), [("pause", "This campaign is paused."), ("cancel", "Cancelled")])
def test_a_button_answers_with_the_card_or_leads_back_to_the_page(
    staff: FlaskClient, sending: Campaign, verb: str, words: str
) -> None:
    assert staff.post(f"/campaigns/{sending.id}/{verb}").headers["Location"] == f"/campaigns/{sending.id}"
    piece = staff.post(f"/campaigns/{sending.id}/{verb}", headers=HTMX).text
    assert "<html" not in piece
    assert words in piece


def test_failed_mails_are_sent_again_at_a_click(staff: FlaskClient, sending: Campaign, relay: Relay) -> None:
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    relay.behaviour.uses["c1@example.com"] = 1
    sender.send_pending_emails()
    answer = staff.post(f"/campaigns/{sending.id}/send-again", data={"state": "failed"}, follow_redirects=True)
    assert "1 email is being resent." in answer.text
    sender.send_pending_emails()
    assert stats_queries.get_campaign_stats(sending.id).sent == 3


def test_the_trouble_with_the_relay_is_on_the_card(staff: FlaskClient, sending: Campaign) -> None:
    auto_pause.set_delivery_warning("The mail relay can't be reached (Connection refused).")
    assert "can&#39;t be reached" in staff.get(f"/campaigns/{sending.id}").text


def test_all_campaigns_are_listed_with_their_state(staff: FlaskClient, sending: Campaign) -> None:
    page = staff.get("/campaigns").text
    assert "SUMMER25" in page
    assert "Sending" in page
    assert re.search(r"0\s+of\s+3", re.sub("<[^>]*>", "", page))


def test_the_list_asks_as_often_for_many_campaigns_as_for_one(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    def statements() -> int:
        seen: list[str] = []

        def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
            seen.append(statement)

        db.session.remove()
        event.listen(db.engine, "before_cursor_execute", note)
        try:
            staff.get("/campaigns")
        finally:
            event.remove(db.engine, "before_cursor_execute", note)
        return len(seen)

    draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    one = statements()
    for n in range(9):
        draft_actions.save_offer_draft(make_offer(f"CODE{n}").id, EmailContent(), "resend", "tests")
    assert statements() == one


def test_an_empty_list_says_what_to_do_first(staff: FlaskClient) -> None:
    assert "No campaigns yet" in staff.get("/campaigns").text


@pytest.mark.parametrize(
    "path",
    ["/offers/9/mail", "/offers/9/launch", "/offers/9/mail/frame", "/campaigns/9", "/campaigns/9/progress",
     "/campaigns/9/recipients", "/campaigns/9/frame"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


@pytest.mark.parametrize("bad", ["after=x", "after=99999999999999999999", "state=nonsense"])
def test_a_tampered_address_shows_the_first_page(staff: FlaskClient, sending: Campaign, bad: str) -> None:
    assert staff.get(f"/campaigns/{sending.id}/recipients?{bad}").status_code == 200


def test_a_body_of_five_megabytes_is_told_so_at_its_field_and_kept(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    large = "<p>" * (5 * 2**20 // 3)
    answer = staff.post(f"/offers/{make_offer().id}/mail", data=typed(html=large, subject="What I typed"))
    assert answer.status_code == 422
    assert re.search(r'id="html-error".*?larger than 256 kB \(it has 5,1\d\d kB\)', answer.text, re.DOTALL)
    assert 'value="What I typed"' in answer.text
    assert large.replace("<", "&lt;").replace(">", "&gt;") in answer.text


def test_who_has_not_signed_in_may_not_send_as_much(csrf_client: FlaskClient) -> None:
    assert csrf_client.post("/offers/1/mail", data={"html": "x" * 5 * 2**20}).status_code == 413


def test_the_preview_says_what_may_be_a_mistake_and_shows_the_headers(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    page = staff.post(f"/offers/{make_offer().id}/mail/preview", data=typed(text="Hi {name}"), headers=HTMX).text
    assert "neither the code nor the personal link" in page
    assert "“{name}” is sent as it is" in page
    assert "List-Unsubscribe: &lt;" in page


def test_html_that_swallows_the_way_out_is_said_at_its_field(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    answer = staff.post(f"/offers/{make_offer().id}/mail", data=typed(html="<p>Hi</p><!-- never closed"))
    assert answer.status_code == 422
    assert re.search(r'id="html-error".*?The unsubscribe link', answer.text, re.DOTALL)
    assert "&lt;!-- never closed" in answer.text
