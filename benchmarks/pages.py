"""`make benchmark-pages`: response times of staff pages on a large database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from flask.testing import FlaskClient
from sqlalchemy import event

from benchmarks import command, onecode, pages_report, pages_tables, server
from benchmarks.measure import DATABASE
from benchmarks.pages_report import PagesResults, Visits
from benchmarks.server import DatabaseServer
from webapp.accounts import session_actions
from webapp.accounts.models import StaffUser
from webapp.accounts.session_actions import SessionClient
from webapp.campaigns import queries as campaign_queries
from webapp.core.extensions import db
from webapp.redemptions import queries as redemption_queries

EMPTY_DATABASE, SMALL_DATABASE = "empty", "small"
# The number of customers and redemptions that fill a page.
ROWS_PER_PAGE = 100


@dataclass(frozen=True)
class PagesPlan:
    """The number of rows, and the rounds and visits per round of each page."""

    customers: int = 1_000_000
    redemptions: int = 1_000_000
    rounds: int = 5
    visits: int = 5


USUAL = PagesPlan()
QUICK = PagesPlan(customers=20_000, redemptions=50_000, rounds=2, visits=3)
FULL = PagesPlan(redemptions=10_000_000)
PLANS = command.Plans("pages", USUAL, QUICK, FULL)

# Placeholders such as `{offer}` stand for the id of an existing row.
PAGES = {
    "start page": "/",
    "customers": "/customers",
    "customers by name": "/customers?q=1717",
    "customers by email address": "/customers?q=customer.1@",
    "one customer": "/customers/{customer}",
    "audiences": "/customers/audiences",
    "offers": "/offers",
    "live offers": "/offers?state=live",
    "one offer": "/offers/{offer}",
    "one offer, live figures": "/offers/{offer}/live",
    "launch page of a campaign": "/campaigns/{draft}/launch",
    "redemptions": "/redemptions",
    "redemptions of an offer": "/redemptions?code=offer1",
    "redemptions by link": "/redemptions?channel=link",
    "redemptions by staff": "/redemptions?channel=staff",
    "one redemption": "/redemptions/{redemption}",
    "why not?": "/why-not?who=customer.1@example.com&code=offer1",
    "campaigns": "/campaigns",
    "one campaign": "/campaigns/{campaign}",
    "audit log": "/settings/audit",
}


class StaffPages:
    """The application on a database, with a signed-in client."""

    def __init__(self, database_server: DatabaseServer, database: str) -> None:
        self.ours = onecode.Onecode(
            onecode.build(database_server.url(database), str(database_server.embedded.socket_folder.parent))
        )
        self.ours.set_up()
        self.client = self._signed_in()
        self.urls = {name: path.format(**self._placeholder_values()) for name, path in PAGES.items()}

    def _signed_in(self) -> FlaskClient:
        client = self.ours.app.test_client()
        with self.ours.app.app_context():
            user = StaffUser(email="ann@example.com", name="Ann", role="admin", password_hash="!")
            db.session.add(user)
            db.session.commit()
            started = session_actions.start_staff_session(user.id, SessionClient("127.0.0.1", "benchmark"))
        with client.session_transaction() as session:
            session["_user_id"] = started.token
        return client

    def _placeholder_values(self) -> dict[str, int | str]:
        with self.ours.app.app_context():
            (newest,) = redemption_queries.list_latest_redemptions(None, 1)
            campaigns = campaign_queries.list_campaigns()
            return {
                "customer": newest.customer_id,
                "offer": newest.offer_id,
                "redemption": newest.public_id,
                "campaign": next(campaign.id for campaign in campaigns if campaign.status == "done"),
                "draft": next(campaign.id for campaign in campaigns if campaign.status == "draft"),
            }

    def visit(self, name: str) -> float:
        """Request a page; return the seconds that it took.

        :raises RuntimeError: when the status is not 200.
        """
        started = time.perf_counter()
        response = self.client.get(self.urls[name])
        seconds = time.perf_counter() - started
        if response.status_code != 200:
            raise RuntimeError(f"{self.urls[name]} returned {response.status}")
        return seconds

    def statements(self, name: str) -> int:
        """Count the statements that a page executes."""
        executed: list[str] = []

        def record(_: object, __: object, statement: str, *___: object) -> None:
            executed.append(statement)

        with self.ours.app.app_context():
            engine = db.engine
        event.listen(engine, "before_cursor_execute", record)
        self.visit(name)
        event.remove(engine, "before_cursor_execute", record)
        return len(executed)


def measure(plan: PagesPlan) -> PagesResults:
    """Measure every page on all three databases, on a separate server."""
    results = PagesResults(plan.customers, plan.redemptions)
    with server.running() as database_server:
        _prepare(database_server, plan)
        sites = [StaffPages(database_server, database) for database in (EMPTY_DATABASE, SMALL_DATABASE, DATABASE)]
        for name in PAGES:
            # The first visits warm the caches.
            for site in sites * 2:
                site.visit(name)
            results.statements[name] = [site.statements(name) for site in sites]
        for number in range(plan.rounds):
            for name in PAGES:
                # In turn, so that all databases meet the same load.
                durations = [[site.visit(name) for site in sites] for _ in range(plan.visits)]
                visits = Visits(*(median(seconds) for seconds in zip(*durations, strict=True)))
                results.visits.setdefault(name, []).append(visits)
            print(f"round {number + 1} of {plan.rounds}")
        for site in sites:
            site.ours.disconnect()
    return results


def _prepare(database_server: DatabaseServer, plan: PagesPlan) -> None:
    database_server.create(EMPTY_DATABASE)
    app = onecode.build(database_server.url(EMPTY_DATABASE), str(database_server.embedded.socket_folder.parent))
    onecode.migrate(app)
    onecode.Onecode(app).disconnect()
    for database, customers, redemptions in (
        (SMALL_DATABASE, ROWS_PER_PAGE, ROWS_PER_PAGE),
        (DATABASE, plan.customers, plan.redemptions),
    ):
        database_server.create(database, like=EMPTY_DATABASE)
        with database_server.connect(database) as connection:
            pages_tables.fill(connection, customers, redemptions)
    with database_server.connect(EMPTY_DATABASE) as connection:
        pages_tables.fill_one_of_each(connection)


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, pages_report, arguments)


if __name__ == "__main__":
    main()
