from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import unescape
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import segno
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support.factories import MakeOffer
from tests.support.sessions import start_session
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.models import Batch, Campaign
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers.models import Audience, Customer
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import group_commit
from webapp.redemptions.models import Redemption
from webapp.redemptions.rules import RedemptionRequest

SUMMER = {
    "name": "Summer",
    "code": "Summer-25",
    "discount_type": "percent",
    "discount_percent": "25",
    "discount_currency": "EUR",
    "time_zone": "Europe/Berlin",
    "starts_at": "2026-06-01",
    "ends_at": "2026-08-31",
    "max_redemptions": "",
    "audience": "",
}


def latest_offer() -> Offer:
    return offer_queries.list_offers()[0]


def test_an_empty_list_explains_the_first_step(staff: FlaskClient) -> None:
    assert "Create the first offer" in staff.get("/offers").text


def test_a_viewer_can_read_but_not_create_offers(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("viewer")

    assert client.get("/offers").status_code == 200
    assert client.post("/offers/new", data=SUMMER).status_code == 403
    assert "New offer" not in client.get("/offers").text


def test_creating_an_offer_redirects_to_it(staff: FlaskClient) -> None:
    response = staff.post("/offers/new", data=SUMMER)

    offer = latest_offer()
    assert response.status_code == 302
    assert response.location == f"/offers/{offer.id}"
    assert (offer.code, offer.code_as_written, offer.percent) == ("SUMMER25", "Summer-25", Decimal(25))


def test_dates_are_in_the_offers_time_zone_and_include_the_last_day(staff: FlaskClient) -> None:
    staff.post("/offers/new", data=SUMMER)

    offer = latest_offer()
    assert offer.starts_at == datetime(2026, 5, 31, 22, tzinfo=UTC)
    assert offer.ends_at == datetime(2026, 8, 31, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "discount"),
    [
        ({"discount_percent": "12,5 %"}, Discount("percent", percent=Decimal("12.5"))),
        (
            {"discount_type": "amount", "discount_amount": "5,00", "discount_currency": "eur"},
            Discount("amount", amount=500, currency="EUR"),
        ),
        (
            {"discount_type": "amount", "discount_amount": "500", "discount_currency": "JPY"},
            Discount("amount", amount=500, currency="JPY"),
        ),
    ],
)
def test_numbers_are_accepted_in_common_spellings(staff: FlaskClient, form: dict[str, str], discount: Discount) -> None:
    staff.post("/offers/new", data=SUMMER | form)

    assert latest_offer().discount == discount


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"name": ""}, "name"),
        ({"code": "SÜSS"}, "code"),
        ({"discount_percent": "500"}, "discount_percent"),
        ({"discount_percent": "a quarter"}, "discount_percent"),
        ({"discount_percent": ""}, "discount_percent"),
        ({"discount_type": "amount", "discount_amount": "5.005"}, "discount_amount"),
        ({"discount_type": "amount", "discount_amount": "-5"}, "discount_amount"),
        ({"discount_type": "amount", "discount_amount": "5", "discount_currency": "EURO"}, "discount_currency"),
        ({"starts_at": ""}, "starts_at"),
        ({"starts_at": "31.12.2026"}, "starts_at"),
        ({"ends_at": "2026-05-01"}, "ends_at"),
        ({"ends_at": "", "ends_at_time": "12:00"}, "ends_at"),
        ({"ends_at_time": "noon"}, "ends_at_time"),
        ({"starts_at": "2026-03-29", "starts_at_time": "02:30"}, "starts_at"),
        ({"max_redemptions": "-5"}, "max_redemptions"),
        ({"max_redemptions": "many"}, "max_redemptions"),
        ({"time_zone": "Mars/Base"}, "time_zone"),
        ({"audience": "12345"}, "audience"),
    ],
)
def test_invalid_input_is_reported_at_its_field_and_kept(staff: FlaskClient, form: dict[str, str], field: str) -> None:
    response = staff.post("/offers/new", data=SUMMER | {"name": "<b>My offer</b>"} | form)

    assert response.status_code == 422
    assert f'id="{field}-error"' in response.text
    assert 'value="Summer-25"' in response.text or "code" in form
    assert "&lt;b&gt;My offer&lt;/b&gt;" in response.text or "name" in form
    assert not offer_queries.list_offers()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"discount_percent": "9" * 23}, "Enter a percentage above 0 and up to 100."),
        ({"discount_type": "amount", "discount_amount": "9" * 23}, "The amount is too large."),
        ({"max_redemptions": "9" * 21}, "The redemption limit can be at most 1,000,000,000,000."),
    ],
)
def test_a_number_that_is_too_large_is_reported_with_the_limit(
    staff: FlaskClient, form: dict[str, str], message: str
) -> None:
    assert message in staff.post("/offers/new", data=SUMMER | form).text


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ({"name": "", "discount_percent": "a quarter"}, {"name", "discount_percent"}),
        ({"name": "", "starts_at": "", "ends_at": "2026-05-01"}, {"name", "starts_at"}),
        ({"ends_at": "2026-05-01", "code": "TAKEN"}, {"ends_at", "code"}),
        ({"max_redemptions": "many", "code": "TAKEN", "name": ""}, {"max_redemptions", "code", "name"}),
    ],
)
def test_all_invalid_fields_are_reported_at_once(
    staff: FlaskClient, make_offer: MakeOffer, form: dict[str, str], fields: set[str]
) -> None:
    make_offer("TAKEN")

    page = staff.post("/offers/new", data=SUMMER | form).text

    assert set(re.findall(r'id="(\w+)-error"', page)) == fields


def test_an_existing_code_is_rejected(staff: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer("SUMMER25")

    response = staff.post("/offers/new", data=SUMMER)

    assert response.status_code == 422
    assert "This code belongs to another offer" in response.text


def test_the_form_starts_with_the_time_zone_of_the_user_and_its_day(staff: FlaskClient) -> None:
    """At any time, the day differs from the UTC day in one of these zones."""
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        db.session.execute(update(StaffUser).values(time_zone=zone))
        db.session.commit()
        days = [datetime.now(ZoneInfo(zone)).date()]
        values = _form_values(staff.get("/offers/new").text)
        days.append(datetime.now(ZoneInfo(zone)).date())

        assert (values["time_zone"], values["starts_at"] in map(str, days)) == (zone, True)


@pytest.mark.parametrize("cap", ["1,000", "1'000", "1’000", "1 000", " 1000 "])
def test_separators_in_the_limit_are_ignored(staff: FlaskClient, cap: str) -> None:
    staff.post("/offers/new", data=SUMMER | {"max_redemptions": cap})

    assert latest_offer().max_redemptions == 1000


@pytest.mark.parametrize(
    ("amount", "currency", "message"),
    [
        ("500.5", "JPY", "Enter a whole number: JPY has no decimal places."),
        ("5.0005", "KWD", "Use at most 3 decimal places for KWD."),
        ("five", "JPY", "Enter a number such as 5."),
        ("five", "EUR", "Enter a number such as 5.00."),
        ("five", "KWD", "Enter a number such as 5.000."),
    ],
)
def test_the_message_about_an_amount_depends_on_the_currency(
    staff: FlaskClient, amount: str, currency: str, message: str
) -> None:
    form = {"discount_type": "amount", "discount_amount": amount, "discount_currency": currency}

    assert message in staff.post("/offers/new", data=SUMMER | form).text


def test_the_audit_log_names_the_user_of_each_change(staff: FlaskClient) -> None:
    staff.post("/offers/new", data=SUMMER)
    offer_id = latest_offer().id
    offer_actions.freeze_offer(offer_id)
    db.session.commit()
    form = _form_values(staff.get(f"/offers/{offer_id}/edit").text)
    for path, data in {
        "edit": form | {"name": "Autumn"},
        "pause": {},
        "resume": {},
        "personal-code": {"required": "yes"},
        "code": {"code": "AUTUMN26"},
        "codes/SUMMER25/close": {},
        "codes/SUMMER25/reopen": {},
    }.items():
        assert staff.post(f"/offers/{offer_id}/{path}", data=data).status_code == 302

    entries = db.session.execute(select(AuditEntry.action, AuditEntry.actor).order_by(AuditEntry.id)).all()
    of_offers = [(action, actor) for action, actor in entries if action.startswith("offer.")]
    names = ("created", "changed", "paused", "resumed", "changed", "code_renewed", "code_closed", "code_reopened")
    assert of_offers == [(f"offer.{name}", "manager@example.com") for name in names]


def test_an_ambiguous_time_is_asked_for(staff: FlaskClient) -> None:
    ambiguous = SUMMER | {"ends_at": "2026-10-25", "ends_at_time": "02:30"}

    response = staff.post("/offers/new", data=ambiguous)
    staff.post("/offers/new", data=ambiguous | {"ends_at_fold": "1"})

    assert response.status_code == 422
    assert 'name="ends_at_fold"' in response.text
    assert latest_offer().ends_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_an_ambiguous_start_is_asked_for(staff: FlaskClient) -> None:
    ambiguous = SUMMER | {"starts_at": "2026-10-25", "starts_at_time": "02:30", "ends_at": ""}

    page = staff.post("/offers/new", data=ambiguous).text
    starts = []
    for fold in ("0", "1"):
        staff.post("/offers/new", data=ambiguous | {"starts_at_fold": fold, "code": ""})
        starts.append(latest_offer().starts_at)

    assert ('name="starts_at_fold"' in page, 'name="ends_at_fold"' in page) == (True, False)
    assert starts == [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]


def test_an_offer_can_be_for_one_audience(staff: FlaskClient) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.commit()

    staff.post("/offers/new", data=SUMMER | {"audience": str(audience.id), "personal_code_required": "y"})

    assert (latest_offer().audience_id, latest_offer().personal_code_required) == (audience.id, True)


def test_a_missing_code_is_generated(staff: FlaskClient) -> None:
    staff.post("/offers/new", data=SUMMER | {"code": ""})

    assert len(latest_offer().code) == 8


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"starts_at_time": "09:30", "ends_at_time": "18:00:30"},
        {"ends_at": "2026-10-25", "ends_at_time": "02:30", "ends_at_fold": "0"},
        {"ends_at": "", "time_zone": "Asia/Kolkata", "max_redemptions": "1000"},
        {"discount_percent": "10"},
        {"discount_percent": "12.25"},
        {"discount_type": "amount", "discount_amount": "5.00", "discount_percent": ""},
        {"discount_type": "amount", "discount_amount": "500", "discount_currency": "JPY"},
        {"discount_type": "amount", "discount_amount": "1.234", "discount_currency": "KWD"},
        {"audience": "Regulars", "personal_code_required": "y"},
    ],
)
def test_saving_the_unchanged_form_changes_nothing(staff: FlaskClient, values: dict[str, str]) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.commit()
    values = {name: str(audience.id) if name == "audience" else value for name, value in values.items()}
    staff.post("/offers/new", data=SUMMER | values)
    before = latest_offer().values()

    response = staff.post(
        f"/offers/{latest_offer().id}/edit", data=_form_values(staff.get(f"/offers/{latest_offer().id}/edit").text)
    )

    db.session.expire_all()
    assert response.status_code == 302
    assert (latest_offer().values(), latest_offer().version) == (before, 1)


def _form_values(page: str) -> dict[str, str]:
    """The values that a browser would submit for the form of a page."""
    from html.parser import HTMLParser

    submitted: dict[str, str] = {}

    class FormParser(HTMLParser):
        select = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes = dict(attrs)
            name, value = attributes.get("name") or "", attributes.get("value") or ""
            if tag == "select":
                self.select = name
            elif tag == "option" and "selected" in attributes:
                submitted[self.select] = value
            elif (tag == "input" and attributes.get("type") not in ("radio", "checkbox")) or "checked" in attributes:
                submitted[name] = value

    FormParser().feed(page)
    return submitted


def test_saving_keeps_the_microseconds_of_start_and_end(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(
        starts_at=datetime(2026, 6, 1, 10, 0, 0, 123456, tzinfo=UTC),
        ends_at=datetime(2026, 7, 1, 10, 0, 0, 654321, tzinfo=UTC),
    )

    staff.post(
        f"/offers/{offer.id}/edit", data=_form_values(staff.get(f"/offers/{offer.id}/edit").text) | {"name": "New"}
    )

    db.session.refresh(offer)
    assert (offer.name, offer.starts_at.microsecond) == ("New", 123456)
    assert offer.ends_at is not None
    assert offer.ends_at.microsecond == 654321


@pytest.mark.parametrize("version", ["", "one", "-1", "²", "9" * 10])
def test_a_form_without_its_version_is_a_conflict(staff: FlaskClient, make_offer: MakeOffer, version: str) -> None:
    offer = make_offer()
    form = _form_values(staff.get(f"/offers/{offer.id}/edit").text)

    response = staff.post(f"/offers/{offer.id}/edit", data=form | {"name": "New", "version": version})

    db.session.refresh(offer)
    assert (response.status_code, offer.name) == (409, "Summer")


def test_a_concurrent_edit_is_reported_and_input_kept(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()
    tab_form = _form_values(staff.get(f"/offers/{offer.id}/edit").text)
    staff.post(f"/offers/{offer.id}/edit", data=tab_form | {"name": "From the first tab"})

    conflict = staff.post(f"/offers/{offer.id}/edit", data=tab_form | {"name": "From the second tab"})
    db.session.refresh(offer)
    name_after_conflict = offer.name
    staff.post(f"/offers/{offer.id}/edit", data=_form_values(conflict.text))
    db.session.refresh(offer)

    assert conflict.status_code == 409
    assert "<strong>Nothing was saved.</strong>" in conflict.text
    assert "This offer was changed after you opened it" in conflict.text
    assert "From the second tab" in conflict.text
    assert (name_after_conflict, offer.name) == ("From the first tab", "From the second tab")


def test_only_the_other_fields_of_a_frozen_offer_can_be_edited(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(frozen_at=datetime(2026, 1, 1, tzinfo=UTC))

    page = staff.get(f"/offers/{offer.id}/edit").text
    response = staff.post(f"/offers/{offer.id}/edit", data=_form_values(page) | {"name": "Longer summer"})

    db.session.refresh(offer)
    assert response.status_code == 302
    assert 'name="discount_percent"' not in page
    assert 'name="code"' not in page
    assert 'name="max_redemptions"' not in page
    assert (offer.name, offer.code, offer.percent) == ("Longer summer", "SUMMER25", Decimal(25))


def test_the_limit_of_a_frozen_offer_can_be_raised(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(frozen_at=datetime(2026, 1, 1, tzinfo=UTC), max_redemptions=10, redeemed=4)
    form = _form_values(staff.get(f"/offers/{offer.id}/edit").text)

    raised = staff.post(f"/offers/{offer.id}/edit", data=form | {"max_redemptions": "20"})
    too_low = staff.post(f"/offers/{offer.id}/edit", data=form | {"version": "2", "max_redemptions": "3"})

    db.session.refresh(offer)
    assert (form["max_redemptions"], raised.status_code, offer.max_redemptions) == ("10", 302, 20)
    assert "There are already 4 redemptions. The redemption limit can&#39;t be lower than that." in too_low.text


def test_an_offer_frozen_during_editing_refuses_a_new_discount(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()
    tab_form = _form_values(staff.get(f"/offers/{offer.id}/edit").text)
    offer_actions.freeze_offer(offer.id)
    db.session.commit()

    response = staff.post(f"/offers/{offer.id}/edit", data=tab_form | {"discount_percent": "30"})

    assert response.status_code == 422
    assert "can&#39;t be changed after the launch" in response.text
    assert 'value="30"' in response.text


def test_an_offer_is_paused_and_resumed(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()

    paused = staff.post(f"/offers/{offer.id}/pause", follow_redirects=True).text
    resumed = staff.post(f"/offers/{offer.id}/resume", follow_redirects=True).text

    db.session.refresh(offer)
    assert "Paused" in paused
    assert "The offer is paused. It can&#39;t be redeemed until you resume it." in paused
    assert "The offer was resumed and can be redeemed again." in resumed
    assert offer.paused_at is None


def test_the_page_of_an_offer_shows_code_link_and_latest_redemptions(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    offer = make_offer(max_redemptions=10)
    make_customer()
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))

    page = staff.get(f"/offers/{offer.id}").text

    assert "http://localhost/redeem?code=SUMMER25" in page
    assert (
        segno.make(f"http://localhost/redeem?code={offer.code}", error="m").svg_inline(scale=4, border=2, omitsize=True)
        in page
    )
    assert "style=" not in page
    assert "ada@example.com" in page
    assert 'value="1"' in page[page.index("<progress") :]
    assert f"/offers/{offer.id}/mail" in page


def test_the_page_shows_the_audience_and_ten_redemptions(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    for_all, for_regulars = make_offer(), make_offer("REGULAR", audience_id=audience.id)
    for n in range(11):
        group_commit.redeem(
            RedemptionRequest(channel="api", code="SUMMER25", email=make_customer(f"c{n}@example.com").email)
        )

    pages = [staff.get(f"/offers/{offer.id}").text for offer in (for_all, for_regulars)]

    audiences = [re.findall(r">Audience</dt>\s*<dd[^>]*>(.*?)</dd>", page, re.S) for page in pages]
    assert audiences == [["All customers"], ["Regulars"]]
    assert re.findall(r">(c\d+)@example.com</a>", pages[0]) == [f"c{n}" for n in range(10, 0, -1)]


def test_emails_sent_are_those_of_the_announcement(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    offer = make_offer()
    make_customer()
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    for kind, sent in (("announcement", 8), ("reminder", 6)):
        values: dict[str, Any] = {
            "subject": "Summer",
            "text": "t",
            "status": "done",
            "launched_at": datetime.now(UTC),
            "total": sent,
        }
        campaign = Campaign(offer_id=offer.id, kind=kind, **values)
        db.session.add(campaign)
        db.session.flush()
        batch: dict[str, Any] = {
            "seq": 1,
            "first_id": 1,
            "last_id": sent,
            "gaps": [1] * sent,
            "status": "done",
            "sent": sent,
        }
        db.session.add(Batch(campaign_id=campaign.id, **batch))
    db.session.commit()

    page = " ".join(re.sub("<[^>]*>", " ", staff.get(f"/offers/{offer.id}").text).split())

    assert "Emails sent 8 Redeemed 1 12.5% of the emails sent" in page


@pytest.mark.parametrize("kind", ["none", "draft", "scheduled", "done"])
def test_the_page_of_an_offer_that_has_ended_suggests_no_campaign(
    staff: FlaskClient, make_offer: MakeOffer, kind: str
) -> None:
    offer = make_offer()
    if kind != "none":
        draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
        db.session.execute(
            update(Campaign).values(
                status=kind,
                launched_at=func.now() if kind == "done" else None,
                scheduled_at=func.now() + timedelta(days=1) if kind == "scheduled" else None,
            )
        )
    db.session.commit()
    before = staff.get(f"/offers/{offer.id}").text
    db.session.execute(update(Offer).values(ends_at=func.now()))
    db.session.commit()

    page = staff.get(f"/offers/{offer.id}").text

    suggestions = {
        "none": "Write the announcement",
        "draft": "Edit the announcement",
        "scheduled": "Its announcement will be launched on",
        "done": "Write a reminder",
    }
    assert suggestions[kind] in before
    assert suggestions[kind] not in page
    assert "announced yet" not in page
    assert ("This offer has ended and was not announced." in page) is (kind != "done")


def test_the_editor_of_an_offer_that_has_ended_does_not_lead_to_the_launch(
    staff: FlaskClient, make_offer: MakeOffer
) -> None:
    live, ended = make_offer(), make_offer("OVER", ends_at=datetime.now(UTC) - timedelta(hours=1))

    pages = [staff.get(f"/offers/{offer.id}/mail").text for offer in (live, ended)]

    assert ["Save and continue to launch" in page for page in pages] == [True, False]
    assert ["This offer has ended" in page for page in pages] == [False, True]


@pytest.mark.parametrize(
    ("ends_at", "last_day"),
    [
        ("2020-05-31T22:00Z", "2020-05-31"),
        ("2020-05-31T22:00:01Z", "2020-06-01"),
        ("2020-05-31T21:59Z", "2020-05-31"),
    ],
    ids=["midnight", "after midnight", "before midnight"],
)
def test_the_chart_ends_on_the_last_day_of_the_offer(
    staff: FlaskClient, make_offer: MakeOffer, ends_at: str, last_day: str
) -> None:
    start, end = datetime(2020, 5, 1, tzinfo=UTC), datetime.fromisoformat(ends_at)
    offer = make_offer(starts_at=start, ends_at=end, time_zone="Europe/Berlin")

    page = staff.get(f"/offers/{offer.id}").text

    days = json.loads(re.findall(r'id="offer-chart".*?<script[^>]*>(.*?)</script>', page, re.S)[0])["x"]
    assert (len(days), days[-1]) == (30, last_day)


def test_the_chart_has_the_days_of_the_offers_time_zone(staff: FlaskClient, make_offer: MakeOffer) -> None:
    """One redemption is older than the chart, and one was made before the end was set to an earlier day."""
    start, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 5, 31, 22, tzinfo=UTC)
    offer = make_offer(starts_at=start, ends_at=end, time_zone="Europe/Berlin")
    for n, at in enumerate(("2020-05-01T21:59Z", "2020-05-01T22:00Z", "2020-05-31T21:59Z", "2020-06-01T22:00Z")):
        at_time = datetime.fromisoformat(at)
        db.session.add(Redemption(offer_id=offer.id, customer_id=n, redeemed_at=at_time, channel="form"))
    db.session.commit()

    page = staff.get(f"/offers/{offer.id}").text

    chart = json.loads(re.findall(r'id="offer-chart".*?<script[^>]*>(.*?)</script>', page, re.S)[0])
    counts = dict(zip(chart["x"], chart["series"][0]["values"], strict=True))
    assert next(iter(counts)) == "2020-05-02"
    assert {day: n for day, n in counts.items() if n} == {"2020-05-02": 1, "2020-05-31": 1, "2020-06-02": 1}
    assert chart["x_texts"][0] == "2 May 2020"


def test_the_live_figures_stop_polling_when_the_offer_has_ended(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer, ended = make_offer(), make_offer("OVER", ends_at=datetime.now(UTC) - timedelta(hours=1))

    assert "hx-trigger" in staff.get(f"/offers/{offer.id}/live").text
    assert "hx-trigger" not in staff.get(f"/offers/{ended.id}/live").text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("q=wint", ["Winter"]),
        ("q=SUMMER-2", ["Summer"]),
        ("state=paused", ["Winter"]),
        ("q=wint&state=paused", ["Winter"]),
        ("q=summ&state=paused", []),
        ("q=%00&before=x&after=-1", ["Winter", "Summer"]),
        ("state=nonsense&before=99999999999999999999", ["Winter", "Summer"]),
    ],
)
def test_the_list_can_be_searched_and_filtered(
    staff: FlaskClient, make_offer: MakeOffer, query: str, names: list[str]
) -> None:
    make_offer()
    make_offer("COLD", name="Winter", paused_at=datetime(2026, 1, 1, tzinfo=UTC))

    page = staff.get(f"/offers?{query}").text

    assert [name for name in ("Winter", "Summer") if f">{name}</a>" in page] == names


def test_the_list_has_pages_in_both_directions(staff: FlaskClient, make_offer: MakeOffer) -> None:
    rows = [make_offer(f"CODE{n:02}", name=f"Offer {n:02}") for n in range(60)]

    second = staff.get(f"/offers?before={rows[35].id}").text
    last = staff.get(f"/offers?before={rows[10].id}").text
    first = staff.get("/offers").text

    assert [">Offer 34<" in second, ">Offer 10<" in second, ">Offer 09<" in second] == [True, True, False]
    assert f"after={rows[34].id}" in second
    assert f"before={rows[10].id}" in second
    assert 'rel="next"' not in last
    assert 'rel="prev"' not in first


def test_pages_keep_the_filters(staff: FlaskClient, make_offer: MakeOffer) -> None:
    rows = [make_offer(f"CODE{n:02}", name="Summer") for n in range(52)]
    filters = "q=summer&state=live"

    first = unescape(staff.get(f"/offers?{filters}").text)
    second = unescape(staff.get(f"/offers?{filters}&before={rows[27].id}").text)

    assert f'rel="next" href="/offers?{filters}&before={rows[27].id}"' in first
    assert f'rel="prev" href="/offers?{filters}&after={rows[26].id}"' in second


def test_the_list_shows_the_redemptions_of_each_offer(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    make_offer("QUIET", name="Quiet", max_redemptions=1000), make_offer(name="Popular")
    for email in ("ada@example.com", "bob@example.com"):
        make_customer(email)
        group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email=email))

    page = staff.get("/offers").text

    popular, quiet = (
        " ".join(re.sub("<[^>]*>", " ", row).split()) for row in re.findall("<tr>.*?</tr>", page, re.S)[1:]
    )
    assert (popular.endswith(" 2"), quiet.endswith(" 0 of 1,000")) == (True, True)


@pytest.mark.parametrize("path", ["/offers/99", "/offers/99/edit", "/offers/99/live", "/offers/99999999999999999999"])
def test_an_unknown_offer_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


def test_creating_an_offer_needs_the_csrf_token(
    csrf_client: Any, client: FlaskClient, make_staff_user: Callable[..., Any]
) -> None:
    start_session(csrf_client, make_staff_user("manager"))
    client.application.config["WTF_CSRF_ENABLED"] = True

    assert csrf_client.post("/offers/new", data=SUMMER).status_code == 400
    assert not offer_queries.list_offers()


@pytest.mark.parametrize("ended", ["session expired", "signed out elsewhere"])
def test_saving_after_the_session_ended_shows_the_input(csrf_client: FlaskClient, ended: str) -> None:
    # With the CSRF token of a session that has ended, or without any.
    csrf_client.application.config["WTF_CSRF_ENABLED"] = ended == "session expired"
    response = csrf_client.post("/offers/new", data={**SUMMER, "csrf_token": "spent"})

    assert response.status_code == 400
    assert "Nothing was saved: your session has ended." in response.text
    assert all(f">{value}</textarea>" in response.text for value in ("Summer", "Summer-25", "25", "2026-08-31"))
    assert 'href="/sign-in?next=/offers/new"' in response.text
    assert offer_queries.list_offers() == []


def test_opening_the_form_without_a_session_leads_to_the_sign_in_page(client: FlaskClient) -> None:
    assert client.get("/offers/new").location == "/sign-in?next=/offers/new"
