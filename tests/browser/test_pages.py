"""Every page as people see it: no breach of WCAG 2.2 AA, nothing wider than the screen, in every look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Shop
from tests.browser.test_journeys import Open, call, csv_file, fill, join, wait
from webapp.core.settings import ROOT
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.browser

AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text()
STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 800}}
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
    "/settings/profile",
    "/nowhere",
]


# Tables of which a part is out of sight, so that somebody would have to guess that there is more.
CUT = """() => [...document.querySelectorAll(".table-responsive")]
    .filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => `the table ${box.ariaLabel} is cut off: ${box.scrollWidth} of ${box.clientWidth} pixels`)"""


def look(page: Page) -> list[str]:
    """What is wrong with the page as it stands."""
    page.evaluate(AXE)
    wrong: list[str] = page.evaluate(
        "standard => axe.run(document, {runOnly: standard}).then(found => found.violations.map("
        "rule => rule.id + ' at ' + rule.nodes.map(node => node.target).join(', ')))",
        STANDARD,
    )
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        wrong.append("wider than the screen")
    wrong += page.evaluate(CUT)
    return [f"{page.url}: {one}" for one in wrong]


@pytest.mark.parametrize("look_of", list(LOOKS))
def test_staff_pages(shop: Shop, window: Open, tmp_path: Path, offer: Callable[..., Offer], look_of: str) -> None:
    # One whose address is as long as people's are: no table may become wider by it.
    long = "nadezhda.shcherbakova+offers@letters.example.com"
    rows = csv_file(tmp_path, 40).read_text() + f"{long},Nadezhda Shcherbakova\n"
    started = call(shop, "POST", "/customers/import", rows, "text/csv")[1]
    wait(lambda: call(shop, "GET", f"/imports/{started['id']}")[1], "done")
    offer(max_redemptions=50)
    offer("WINTER", name="Winter", discount_type="amount", amount=500, currency="EUR")
    launched = call(shop, "POST", "/offers/SUMMER25/launch", {})[1]
    wait(lambda: call(shop, "GET", f"/campaigns/{launched['id']}")[1], "done")
    offer("AUTUMN", name="Autumn", time_zone="America/New_York")
    later = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    waits = call(shop, "POST", "/offers/AUTUMN/launch", {"at": later})[1]
    for email in ("person0@example.com", "person1@example.com", "person2@example.com", long):
        call(shop, "POST", "/redemptions", {"code": "SUMMER25", "customer": {"email": email}})
    erased = customer_queries.find_customer_by_email("person1@example.com")
    assert erased is not None
    call(shop, "POST", "/erasures", {"email": "person1@example.com"})
    page = window(**LOOKS[look_of])
    page.goto(f"{shop.url}/sign-in")
    wrong = look(page)
    join(page, shop)

    for path in [*STAFF, f"/customers/{erased.id}", f"/campaigns/{waits['id']}/launch", "/offers/1/reminder"]:
        page.goto(shop.url + path)
        wrong += look(page)

    assert wrong == []


@pytest.mark.parametrize("look_of", list(LOOKS))
def test_customer_pages(
    shop: Shop, window: Open, offer: Callable[..., Offer], customer: Callable[..., Customer], look_of: str
) -> None:
    now = datetime.now(UTC)
    customer()
    offer()
    offer("GONE", name="Gone", starts_at=now - timedelta(days=9), ends_at=now - timedelta(days=1))
    call(shop, "POST", "/offers/SUMMER25/launch", {})
    link = shop.link_to("ada@example.com")
    page = window(**LOOKS[look_of])
    page.goto(f"{shop.url}/redeem")
    wrong = look(page)
    fill(page, "GONE", "ada@example.com")
    page.get_by_role("alert").wait_for()
    wrong += look(page)
    for address in (link, f"{shop.url}/r/nonsense", f"{shop.url}/u/nonsense"):
        page.goto(address)
        wrong += look(page)
    page.goto(link)
    page.get_by_role("button", name="Redeem now").click()
    page.get_by_text("Reference", exact=True).wait_for()
    wrong += look(page)

    assert wrong == []


@pytest.mark.parametrize(("dark", "background"), [(False, "rgba(0, 0, 0, 0)"), (True, "rgb(28, 32, 34)")])
def test_the_page_of_the_json_calls_is_dark_where_people_want_it_so(
    shop: Shop, window: Open, dark: bool, background: str
) -> None:
    page = window(dark=dark)
    page.goto(f"{shop.url}/api/v1/docs")
    page.get_by_text("/api/v1/redemptions", exact=True).first.wait_for()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == background
