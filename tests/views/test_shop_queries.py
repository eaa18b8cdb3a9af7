from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.sql_statements import recorded_statements
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.redemptions import personal_links

Request = tuple[FlaskClient, str, str, dict[str, Any]]


def staff_requests(staff: FlaskClient, offer_id: int, campaign_id: int) -> dict[str, Request]:
    email = {"subject": "Hi", "text": "Hello"}
    campaign = f"/campaigns/{campaign_id}"
    return {
        "home": (staff, "GET", "/", {}),
        "offer": (staff, "GET", f"/offers/{offer_id}", {}),
        "editor": (staff, "GET", f"{campaign}/mail", {}),
        "preview": (staff, "POST", f"{campaign}/mail/preview", {"data": email}),
        "email in the preview": (staff, "GET", f"{campaign}/mail/frame", {}),
        "test email without a relay": (staff, "POST", f"{campaign}/mail", {"data": email | {"test": "1"}}),
        "launch page": (staff, "GET", f"{campaign}/launch", {}),
        "shop": (staff, "GET", "/settings/shop", {}),
        "sample email of invalid input": (staff, "GET", "/settings/shop/sample/frame", {}),
        "check of the relay": (staff, "POST", "/settings/shop/relay", {}),
        "invalid shop": (staff, "POST", "/settings/shop", {}),
    }


def public_requests(client: FlaskClient, link: str, unsubscribe: str) -> dict[str, Request]:
    form = {"code": "SUMMER25", "email": "ada@example.com"}
    return {
        "redeem form": (client, "GET", "/redeem", {}),
        "personal link": (client, "GET", link, {}),
        "refusal": (client, "POST", "/redeem", {"data": form | {"code": "WINTER"}}),
        "receipt": (client, "POST", "/redeem", {"data": form}),
        "refusal of a second redemption": (client, "POST", "/redeem", {"data": form}),
        "receipt of the personal link": (client, "POST", link, {}),
        "unknown personal link": (client, "GET", "/r/unknown", {}),
        "unsubscribe page": (client, "GET", unsubscribe, {}),
        "unsubscribe": (client, "POST", unsubscribe, {}),
    }


def api_requests(api: FlaskClient) -> dict[str, Request]:
    body = {"json": {"code": "SUMMER25", "customer": {"email": "bob@example.com"}}}
    return {
        "API validation": (api, "POST", "/api/v1/validations", body),
        "API redemption": (api, "POST", "/api/v1/redemptions", body),
        "API offer": (api, "GET", "/api/v1/offers/SUMMER25", {}),
    }


def count_shop_queries(requests: dict[str, Request]) -> tuple[dict[str, int], dict[str, int]]:
    """Send the requests; return the status and the number of queries of each."""
    statuses, counts = {}, {}
    for kind, (client, method, url, values) in requests.items():
        with recorded_statements() as executed:
            statuses[kind] = client.open(url, method=method, **values).status_code
        counts[kind] = sum("FROM shop" in sql for sql, _ in executed)
    return statuses, counts


def test_a_request_queries_the_shop_at_most_once(
    staff: FlaskClient, api: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    make_customer("bob@example.com")
    campaign = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    link = personal_links.build_personal_url(offer.id, ada.id).removeprefix("http://localhost")
    unsubscribe = campaign_tokens.build_unsubscribe_url(ada.id, campaign.id).removeprefix("http://localhost")
    statuses, counts = count_shop_queries(
        staff_requests(staff, offer.id, campaign.id) | public_requests(staff, link, unsubscribe) | api_requests(api)
    )
    errors = {kind: status for kind, status in statuses.items() if status >= 400}
    assert errors == {
        "test email without a relay": 503,
        "invalid shop": 422,
        "refusal": 404,
        "refusal of a second redemption": 409,
        "unknown personal link": 404,
    }
    assert {kind: count for kind, count in counts.items() if count > 1} == {}
    assert counts["receipt"] == 1
    assert not any(count for kind, count in counts.items() if kind.startswith("API"))
