"""Every page satisfies WCAG 2.2 AA and fits the screen: light, dark and narrow."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.browser import (
    APPEARANCES,
    OpenPage,
    RunningShop,
    accept_invitation,
    call_api,
    in_each_appearance,
    page_problems,
    problems_by_appearance,
    reach_address_limit,
    submit_code,
    wait_for_status,
    write_csv,
)
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.browser
STAFF = [
    "/",
    "/offers",
    "/offers/new",
    "/offers/1",
    "/offers/1/edit",
    "/offers/1/code",
    "/offers/2/mail",
    "/offers/2/launch",
    "/campaigns",
    "/campaigns/1",
    "/campaigns/1/recipients",
    "/customers",
    "/customers/1",
    "/customers/1/edit",
    "/customers/1/erase",
    "/customers/1/personal-data",
    "/customers/1/personal-data/report",
    "/customers/new",
    "/customers/import",
    "/customers/imports",
    "/customers/imports/1",
    "/customers/audiences",
    "/redemptions",
    "/redemptions/new",
    "/why-not",
    "/why-not?who=person0@example.com&code=summer-25",
    "/why-not?who=ada@example.com&code=SUMMER25",
    "/why-not?who=&code=%C3%9C",
    "/settings/people",
    "/settings/people/1",
    "/settings/api-keys",
    "/settings/keys",
    "/settings/audit",
    "/settings/audit/access",
    "/settings/privacy",
    "/settings/profile",
    "/settings/profile/sessions",
    "/nowhere",
]


@pytest.mark.slow
def test_staff_pages(shop: RunningShop, window: OpenPage, tmp_path: Path, make_offer: Callable[..., Offer]) -> None:
    # A customer with a long address, which must not widen any table.
    long_email = "nadezhda.shcherbakova+offers@letters.example.com"
    rows = write_csv(tmp_path, 40).read_text() + f"{long_email},Nadezhda Shcherbakova\n"
    customer_import = call_api(shop, "POST", "/customers/import", rows, "text/csv")[1]
    wait_for_status(lambda: call_api(shop, "GET", f"/imports/{customer_import['id']}")[1], "done")
    make_offer(max_redemptions=50)
    make_offer("WINTER", name="Winter", discount_type="amount", amount=500, currency="EUR")
    launched = call_api(shop, "POST", "/offers/SUMMER25/launch", {})[1]
    wait_for_status(lambda: call_api(shop, "GET", f"/campaigns/{launched['id']}")[1], "done")
    make_offer("AUTUMN", name="Autumn", time_zone="America/New_York")
    later = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    scheduled = call_api(shop, "POST", "/offers/AUTUMN/launch", {"at": later})[1]
    for email in ("person0@example.com", "person1@example.com", "person2@example.com", long_email):
        call_api(shop, "POST", "/redemptions", {"code": "SUMMER25", "customer": {"email": email}})
    erased = customer_queries.find_customer_by_email("person1@example.com")
    assert erased is not None
    call_api(shop, "POST", "/erasures", {"email": "person1@example.com"})
    page = window()
    found: list[dict[str, list[str]]] = []
    for path in ("/sign-in", "/forgot-password", "/forgot-password/sent"):
        page.goto(shop.url + path)
        found.append(problems_by_appearance(page))
    accept_invitation(page, shop)
    paths = [*STAFF, f"/customers/{erased.id}", f"/campaigns/{scheduled['id']}/launch", "/offers/1/reminder"]
    for path in paths:
        page.goto(shop.url + path)
        found.append(problems_by_appearance(page))

    problems = {name: [problem for of_page in found for problem in of_page[name]] for name in APPEARANCES}
    assert problems == {name: [] for name in APPEARANCES}


def test_a_name_without_spaces_does_not_widen_tables(
    shop: RunningShop, window: OpenPage, make_offer: Callable[..., Offer]
) -> None:
    make_offer(name="Winter" * 30)
    page = window()
    accept_invitation(page, shop)
    for path in ("/offers", "/settings/audit"):
        page.goto(shop.url + path)
        assert page_problems(page) == []


@in_each_appearance
def test_customer_pages(
    shop: RunningShop,
    window: OpenPage,
    make_offer: Callable[..., Offer],
    make_customer: Callable[..., Customer],
    appearance: str,
) -> None:
    now = datetime.now(UTC)
    make_customer()
    make_offer()
    make_offer("GONE", name="Gone", starts_at=now - timedelta(days=9), ends_at=now - timedelta(days=1))
    call_api(shop, "POST", "/offers/SUMMER25/launch", {})
    link = shop.link_to("ada@example.com")
    page = window(**APPEARANCES[appearance])
    page.goto(f"{shop.url}/redeem")
    problems = page_problems(page)
    submit_code(page, "GONE", "ada@example.com")
    page.get_by_role("alert").wait_for()
    problems += page_problems(page)
    for url in (link, f"{shop.url}/r/nonsense", f"{shop.url}/u/nonsense"):
        page.goto(url)
        problems += page_problems(page)
    page.goto(link)
    page.get_by_role("button", name="Redeem now").click()
    page.get_by_text("Reference", exact=True).wait_for()
    problems += page_problems(page)
    reach_address_limit()
    page.goto(f"{shop.url}/redeem")
    submit_code(page, "SUMMER25", "nadezhda.shcherbakova+offers@letters.example.com")
    page.get_by_role("heading", name="Check your email").wait_for()
    problems += page_problems(page)

    assert problems == []


@pytest.mark.parametrize(("dark", "background"), [(False, "rgba(0, 0, 0, 0)"), (True, "rgb(28, 32, 34)")])
def test_the_api_docs_follow_the_dark_colour_scheme(
    shop: RunningShop, window: OpenPage, dark: bool, background: str
) -> None:
    page = window(dark=dark)
    page.goto(f"{shop.url}/api/v1/docs")
    page.get_by_text("/api/v1/redemptions", exact=True).first.wait_for()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == background
