"""Staff pages that show and resolve the deliveries of a campaign."""

from __future__ import annotations

import re
from html import unescape

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign, create_customers
from webapp.accounts.models import AuditEntry
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign, MailIssue
from webapp.core.extensions import db


@pytest.fixture
def campaign(launch_campaign: LaunchCampaign) -> Campaign:
    """A campaign to the customers 1 to 4 that is being sent, beside another one."""
    create_customers(4)
    launch_campaign("OTHER1")
    return launch_campaign("SUMMER25")


def add_issue(campaign: Campaign, customer_id: int, state: str, **values: object) -> None:
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=customer_id, state=state, **values))
    db.session.commit()


def set_issue(assignments: str) -> None:
    db.session.execute(text(f"update mail_issue set {assignments}"))
    db.session.commit()


def send_all() -> None:
    db.session.execute(text("update batch set status = 'done', window_start = 4, window_end = 4, sent = 4"))
    db.session.commit()


def read_words(client: FlaskClient, path: str) -> str:
    """Return the text of a page without tags and repeated white space."""
    response = client.get(path)
    assert response.status_code == 200
    return " ".join(unescape(re.sub("<[^>]*>", " ", response.text)).split())


# --- one delivery -----------------------------------------------------------------------------------


AT = "2026-05-01 12:00+00"
REPLY = r"450 4\.2\.1 later "
WHEN = r"[^.]*2026[^.]*"


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (f"next_at = '{AT}', attempts = 1", rf"Deferred {REPLY}1 attempt so far\. Next attempt: {WHEN}\."),
        (f"next_at = '{AT}', attempts = 3", rf"Deferred {REPLY}3 attempts so far\. Next attempt: {WHEN}\."),
        (f"next_at = '{AT}', attempts = 0", rf"Deferred {REPLY}Next attempt: {WHEN}\."),
        ("attempts = 1", rf"Deferred {REPLY}1 attempt so far\."),
        ("attempts = 0", rf"Deferred {REPLY}It will be retried\."),
        (f"state = 'failed', at = '{AT}'", rf"Failed {REPLY}{WHEN}"),
        (f"state = 'left', at = '{AT}'", rf"Dismissed {REPLY}{WHEN}"),
        (f"state = 'sent_later', text = '', at = '{AT}'", rf"Sent on retry Sent {WHEN}, after a retry\."),
        (f"state = 'skipped', text = 'has already redeemed', at = '{AT}'", rf"Skipped Has already redeemed {WHEN}"),
        (f"state = 'failed', smtp_code = null, text = 'no answer', at = '{AT}'", rf"Failed No answer {WHEN}"),
    ],
)
@pytest.mark.parametrize("path", ["recipients", "who?email=c1@example.com"])
def test_a_recorded_delivery_shows_its_reply_and_attempts(
    staff: FlaskClient, campaign: Campaign, assignments: str, words: str, path: str
) -> None:
    add_issue(campaign, 2, "deferred", smtp_code=450, text="4.2.1 later")
    set_issue(assignments)
    page = read_words(staff, f"/campaigns/{campaign.id}/{path}").replace(" c1@example.com ", " ")
    assert re.search(words, page), page


def test_a_queued_delivery_shows_how_many_are_ahead(staff: FlaskClient, campaign: Campaign) -> None:
    page = read_words(staff, f"/campaigns/{campaign.id}/who?email=c0@example.com")
    assert "Next in the queue." in page
    page = read_words(staff, f"/campaigns/{campaign.id}/who?email=c1@example.com")
    assert "About 1 email is ahead in the queue." in page
    page = read_words(staff, f"/campaigns/{campaign.id}/who?email=c3@example.com")
    assert "About 3 emails are ahead in the queue." in page
    assert "ahead in the queue" not in read_words(staff, f"/campaigns/{campaign.id}/recipients")


def test_the_page_of_a_customer_lists_the_delivery_of_each_campaign(staff: FlaskClient, campaign: Campaign) -> None:
    add_issue(campaign, 2, "failed", smtp_code=550, text="5.1.1 no")
    page = read_words(staff, "/customers/2")
    assert page.count("550 5.1.1 no") == 1
    assert page.count("About 1 email is ahead in the queue.") == 1


# --- lists ------------------------------------------------------------------------------------------


def list_addresses(client: FlaskClient, campaign: Campaign, query: str) -> list[str]:
    page = client.get(f"/campaigns/{campaign.id}/recipients?{query}").text
    return re.findall(r'<th scope="row">\s*<a[^>]*><bdi>([^<]*)</bdi>', page)


def test_a_page_has_fifty_recipients(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    create_customers(51)
    campaign = launch_campaign()
    first = list_addresses(staff, campaign, "")
    assert (len(first), first[0], first[-1]) == (50, "c0@example.com", "c49@example.com")
    (next_url,) = re.findall(r'rel="next" href="([^"]+)"', staff.get(f"/campaigns/{campaign.id}/recipients").text)
    second = staff.get(unescape(next_url)).text
    assert "c50@example.com" in second
    assert "c49@example.com" not in second
    assert 'rel="next"' not in second


def test_the_pages_of_a_cause_keep_the_filter(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(56)
    campaign = launch_campaign()
    for customer_id in ids[:52]:
        add_issue(campaign, customer_id, "failed", smtp_code=550, text="5.7.1 no")
    for customer_id in ids[52:]:
        add_issue(campaign, customer_id, "failed", smtp_code=550, text="5.1.1 no")
    path = f"/campaigns/{campaign.id}/recipients?state=failed&code=550&cause=5.7.1"
    (next_url,) = re.findall(r'rel="next" href="([^"]+)"', staff.get(path).text)
    query = unescape(next_url).partition("?")[2]
    assert list_addresses(staff, campaign, query) == ["c50@example.com", "c51@example.com"]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("state=failed&code=550&cause=", [0]),
        ("state=failed&code=551&cause=", [1]),
        ("state=failed&cause=", []),
        # Invalid codes are ignored.
        ("state=failed&code=55&cause=no+answer", [2]),
        ("state=failed&code=abc&cause=no+answer", [2]),
        ("state=failed&cause=no%00+answer", [2]),
        ("state=uncertain", [3]),
        ("state=waiting", []),
        ("state=left", []),
    ],
)
def test_a_list_has_the_deliveries_of_its_state_and_cause(
    staff: FlaskClient, campaign: Campaign, query: str, numbers: list[int]
) -> None:
    add_issue(campaign, 1, "failed", smtp_code=550, text="no")
    add_issue(campaign, 2, "failed", smtp_code=551, text="no")
    add_issue(campaign, 3, "failed", text="no answer")
    add_issue(campaign, 4, "uncertain", text="no answer")
    send_all()
    assert list_addresses(staff, campaign, query) == [f"c{n}@example.com" for n in numbers]


@pytest.mark.parametrize("action", ["send-again", "leave"])
@pytest.mark.parametrize(
    "invalid",
    [
        {"customer": "1x"},
        {"customer": ""},
        {"customer": "99999999999999999999"},
        {"code": "55", "cause": ""},
        {"state": "x"},
    ],
    ids=str,
)
def test_an_invalid_selection_changes_no_email(
    staff: FlaskClient, campaign: Campaign, action: str, invalid: dict[str, str]
) -> None:
    add_issue(campaign, 1, "uncertain")
    add_issue(campaign, 2, "uncertain")
    send_all()

    response = staff.post(
        f"/campaigns/{campaign.id}/{action}", data={"state": "uncertain", **invalid}, follow_redirects=True
    )

    assert "No email was changed: the selection is invalid." in response.text
    assert db.session.scalars(select(MailIssue.state)).all() == ["uncertain"] * 2


def test_a_suppressed_address_is_named_in_lists_of_emails_that_could_be_resent(
    staff: FlaskClient, campaign: Campaign
) -> None:
    add_issue(campaign, 1, "uncertain")
    add_issue(campaign, 2, "skipped", text="unsubscribed")
    send_all()
    db.session.execute(
        text("insert into suppression (email, reason, source) select email, 'unsubscribed', 'staff' from customer")
    )
    db.session.commit()
    sentence = "The address is suppressed (unsubscribed), so the email can't be resent."
    pages = [
        read_words(staff, f"/campaigns/{campaign.id}/recipients?state={state}") for state in ("uncertain", "skipped")
    ]
    assert [page.count(sentence) for page in pages] == [1, 0]


def test_only_the_most_frequent_reasons_are_shown(staff: FlaskClient, launch_campaign: LaunchCampaign) -> None:
    ids = create_customers(12)
    campaign = launch_campaign()
    for n, customer_id in enumerate(ids):
        # 550 to 559, the first and the second of them twice.
        add_issue(campaign, customer_id, "failed", smtp_code=550 + n % 10, text="5.9.9 no")
    page = read_words(staff, f"/campaigns/{campaign.id}")
    assert page.count("5.9.9 no") == 8
    assert "And 2 less common reasons." in page
    # Emails that were sent by a retry are no problem.
    set_issue("state = 'sent_later' where smtp_code > 558")
    assert "And 1 less common reason." in read_words(staff, f"/campaigns/{campaign.id}")


# --- resolving --------------------------------------------------------------------------------------


def read_forms(client: FlaskClient, path: str) -> list[tuple[str, dict[str, str]]]:
    """Return the action and the hidden fields of each form that resolves deliveries."""
    pattern = r'<form[^>]*action="([^"]*/(?:send-again|leave))"[^>]*>(.*?)</form>'
    return [
        (
            action.rpartition("/")[2],
            {
                name: unescape(value)
                for name, value in re.findall(r'<input type="hidden" name="(\w+)"\s+value="([^"]*)"', form)
                if name != "csrf_token"
            },
        )
        for action, form in re.findall(pattern, client.get(path).text, re.DOTALL)
    ]


def test_the_forms_of_a_list_select_its_emails(staff: FlaskClient, campaign: Campaign) -> None:
    add_issue(campaign, 1, "failed", smtp_code=550, text="5.7.1 no")
    add_issue(campaign, 2, "uncertain", text="no answer")
    send_all()
    path = f"/campaigns/{campaign.id}/recipients"
    back = {"state": "failed", "back": "failed"}
    assert read_forms(staff, f"{path}?state=failed") == [
        ("send-again", back),
        ("send-again", back | {"customer": "1"}),
    ]
    assert read_forms(staff, f"{path}?state=failed&code=550&cause=5.7.1") == [
        ("send-again", back | {"code": "550", "cause": "5.7.1"}),
        ("send-again", back | {"customer": "1"}),
    ]
    back = {"state": "uncertain", "back": "uncertain"}
    assert read_forms(staff, f"{path}?state=uncertain") == [
        ("send-again", back),
        ("leave", back),
        ("send-again", back | {"customer": "2"}),
        ("leave", back | {"customer": "2"}),
    ]
    assert read_forms(staff, path) == []
    transitions.cancel_campaign(campaign.id, "tests")
    assert read_forms(staff, f"{path}?state=failed") == []
    assert read_forms(staff, f"{path}?state=uncertain") == [("leave", back), ("leave", back | {"customer": "2"})]


@pytest.mark.parametrize(
    ("form", "location", "states"),
    [
        ({"customer": "1"}, "", ["deferred", "failed", "failed"]),
        ({"customer": "1", "back": "failed"}, "/recipients?state=failed", ["deferred", "failed", "failed"]),
        ({"customer": "1", "back": "sent"}, "", ["deferred", "failed", "failed"]),
        ({"code": "550", "cause": "5.7.1", "back": "failed"}, "", ["deferred", "deferred", "failed"]),
        ({"back": "failed"}, "", ["deferred", "deferred", "deferred"]),
        ({"customer": "99", "back": "failed"}, "/recipients?state=failed", ["failed", "failed", "failed"]),
    ],
)
def test_resending_resolves_the_selected_emails_and_returns_to_where_work_is_left(
    staff: FlaskClient, campaign: Campaign, form: dict[str, str], location: str, states: list[str]
) -> None:
    for customer_id, reply in ((1, "5.7.1 no"), (2, "5.7.1 no"), (3, "5.1.1 no")):
        add_issue(campaign, customer_id, "failed", smtp_code=550, text=reply)
    send_all()
    response = staff.post(f"/campaigns/{campaign.id}/send-again", data={"state": "failed", **form})
    assert response.location == f"/campaigns/{campaign.id}{location}"
    assert list(db.session.scalars(text("select state from mail_issue order by customer_id"))) == states
    entries = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.sent_again")).all()
    assert [entry.actor for entry in entries] == ["manager@example.com"] * ("deferred" in states)


def test_dismissing_all_uncertain_emails_says_how_many(staff: FlaskClient, campaign: Campaign) -> None:
    for customer_id in (1, 2):
        add_issue(campaign, customer_id, "uncertain")
    send_all()
    form = {"state": "uncertain", "back": "uncertain"}
    response = staff.post(f"/campaigns/{campaign.id}/leave", data=form, follow_redirects=True)
    assert response.request.path == f"/campaigns/{campaign.id}"
    assert "2 uncertain emails were dismissed." in response.text
    (entry,) = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.left_uncertain"))
    assert entry.actor == "manager@example.com"


def test_resolving_emails_of_an_unknown_campaign_is_not_found(staff: FlaskClient) -> None:
    for verb in ("send-again", "leave"):
        assert staff.post(f"/campaigns/99/{verb}", data={"state": "uncertain"}).status_code == 404


# --- other pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "heading", "example"),
    [
        ({"smtp_code": 499, "text": "9.9.9 wait"}, "The server replied 499", "499 9.9.9 wait"),
        ({"smtp_code": 550, "text": "5.1.1 no"}, "There is no such mailbox", "550 5.1.1 no"),
        ({"text": "no answer"}, "No answer", ""),
        ({"text": ""}, "No details are stored", ""),
    ],
)
def test_a_reason_is_explained_on_the_page_and_above_its_list(
    staff: FlaskClient, campaign: Campaign, values: dict[str, object], heading: str, example: str
) -> None:
    add_issue(campaign, 1, "failed", **values)
    response = staff.get(f"/campaigns/{campaign.id}").text
    link = re.search(r'<a href="([^"]*/recipients\?[^"]*cause=[^"]*)">([^<]*)</a>', response)
    assert link is not None
    assert unescape(link[2]) == heading
    assert example in response
    page = read_words(staff, unescape(link[1]))
    assert "c0@example.com" in page
    assert "c1@example.com" not in page
    if values["text"]:
        assert f"Filtered by reason: {heading}" in page


def test_an_export_without_a_state_has_all_recipients(staff: FlaskClient, campaign: Campaign) -> None:
    for query in ("", "?state=nonsense"):
        response = staff.get(f"/campaigns/{campaign.id}/recipients.csv{query}")
        assert response.headers["Content-Disposition"] == f'attachment; filename="campaign-{campaign.id}.csv"'
        assert response.mimetype == "text/csv"
        assert [line.partition(",")[0] for line in response.text.splitlines()] == [
            "email",
            *(f"c{n}@example.com" for n in range(4)),
        ]
    assert staff.get("/campaigns/99/recipients.csv").status_code == 404


@pytest.mark.parametrize(
    ("email", "status", "message"),
    [
        ("", 200, None),
        ("no@example.com", 422, "No customer has this email address."),
        ("no address", 422, "address"),
        (" C0@Example.com ", 200, None),
    ],
)
def test_an_address_that_is_not_found_is_reported_at_its_field(
    staff: FlaskClient, campaign: Campaign, email: str, status: int, message: str | None
) -> None:
    response = staff.get(f"/campaigns/{campaign.id}/who", query_string={"email": email})
    error = re.search(r'id="recipient-error">.*?<span>(.*?)</span>', response.text, re.DOTALL)
    assert (response.status_code, error is not None) == (status, message is not None)
    if error is not None:
        assert str(message) in error[1]
    assert ("Next in the queue." in response.text) is (email == " C0@Example.com ")
