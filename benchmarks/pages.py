"""`make benchmark-pages`: what staff wait for, on an empty database and on one of some years."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from flask.testing import FlaskClient
from sqlalchemy import event

from benchmarks import command, onecode, pages_report, pages_tables, server
from benchmarks.measure import DATABASE
from benchmarks.pages_report import Results, Visits
from benchmarks.server import Machine
from webapp.accounts.models import StaffUser
from webapp.campaigns import queries as campaign_queries
from webapp.core.extensions import db
from webapp.redemptions import queries as redemption_queries

EMPTY, LITTLE = "empty", "little"
# As many rows as fill a page: customers, and redemptions.
PAGEFUL = 100


@dataclass(frozen=True)
class Plan:
    """How much there is, and how often each page is asked for: so many rounds of so many visits."""

    customers: int = 1_000_000
    redemptions: int = 1_000_000
    rounds: int = 5
    visits: int = 5


USUAL = Plan()
QUICK = Plan(customers=20_000, redemptions=50_000, rounds=2, visits=3)
FULL = Plan(redemptions=10_000_000)
PLANS = command.Plans("pages", USUAL, QUICK, FULL)

# `{offer}` and so on stand for one of each, an old one.
PAGES = {
    "first page": "/",
    "customers": "/customers",
    "customers, found by name": "/customers?q=1717",
    "customers, found by e-mail": "/customers?q=customer.1@",
    "one customer": "/customers/{customer}",
    "audiences": "/customers/audiences",
    "offers": "/offers",
    "offers that are live": "/offers?state=live",
    "one offer": "/offers/{offer}",
    "one offer, the part that renews itself": "/offers/{offer}/live",
    "an offer's mail before the launch": "/campaigns/{draft}/launch",
    "redemptions": "/redemptions",
    "redemptions of an offer": "/redemptions?code=offer1",
    "redemptions by link": "/redemptions?channel=link",
    "redemptions by staff": "/redemptions?channel=staff",
    "one redemption": "/redemptions/{redemption}",
    "why not?": "/why-not?who=customer.1@example.com&code=offer1",
    "mailings": "/campaigns",
    "one mailing": "/campaigns/{campaign}",
    "audit trail": "/settings/audit",
}


class Dashboard:
    """The program on a database, and somebody who has signed in."""

    def __init__(self, machine: Machine, database: str) -> None:
        self.ours = onecode.Onecode(onecode.build(machine.url(database), str(machine.server.socket_folder.parent)))
        self.ours.set_up()
        self.client = self._signed_in()
        self.addresses = {name: path.format(**self._known()) for name, path in PAGES.items()}

    def _signed_in(self) -> FlaskClient:
        client = self.ours.app.test_client()
        with self.ours.app.app_context():
            user = StaffUser(email="ann@example.com", name="Ann", role="admin", password_hash="!")
            db.session.add(user)
            db.session.commit()
            who = user.get_id()
        with client.session_transaction() as session:
            session["_user_id"], session["_fresh"] = who, True
        return client

    def _known(self) -> dict[str, int | str]:
        with self.ours.app.app_context():
            (newest,) = redemption_queries.list_latest_redemptions(None, 1)
            mailings = campaign_queries.list_campaigns()
            return {
                "customer": newest.customer_id,
                "offer": newest.offer_id,
                "redemption": newest.public_id,
                "campaign": next(one.id for one in mailings if one.status == "done"),
                "draft": next(one.id for one in mailings if one.status == "draft"),
            }

    def visit(self, name: str) -> float:
        """Ask for a page; how long that took.

        :raises RuntimeError: when it is not the page.
        """
        started = time.perf_counter()
        answer = self.client.get(self.addresses[name])
        seconds = time.perf_counter() - started
        if answer.status_code != 200:
            raise RuntimeError(f"{self.addresses[name]} answers {answer.status}")
        return seconds

    def statements(self, name: str) -> int:
        """How many statements a page runs."""
        seen: list[str] = []

        def note(_: object, __: object, statement: str, *___: object) -> None:
            seen.append(statement)

        with self.ours.app.app_context():
            engine = db.engine
        event.listen(engine, "before_cursor_execute", note)
        self.visit(name)
        event.remove(engine, "before_cursor_execute", note)
        return len(seen)


def measure(plan: Plan) -> Results:
    """Every page on all three databases, on a server of its own."""
    results = Results(plan.customers, plan.redemptions)
    with server.running() as machine:
        _prepare(machine, plan)
        dashboards = [Dashboard(machine, database) for database in (EMPTY, LITTLE, DATABASE)]
        for name in PAGES:
            # The first visits read what later ones find in memory.
            for dashboard in dashboards * 2:
                dashboard.visit(name)
            results.statements[name] = [dashboard.statements(name) for dashboard in dashboards]
        for number in range(plan.rounds):
            for name in PAGES:
                # Turn by turn, so that all have the same neighbours.
                taken = [[dashboard.visit(name) for dashboard in dashboards] for _ in range(plan.visits)]
                visits = Visits(*(median(seconds) for seconds in zip(*taken, strict=True)))
                results.visits.setdefault(name, []).append(visits)
            print(f"round {number + 1} of {plan.rounds}")
        for dashboard in dashboards:
            dashboard.ours.disconnect()
    return results


def _prepare(machine: Machine, plan: Plan) -> None:
    machine.create(EMPTY)
    app = onecode.build(machine.url(EMPTY), str(machine.server.socket_folder.parent))
    onecode.migrate(app)
    onecode.Onecode(app).disconnect()
    for database, people, redemptions in ((LITTLE, PAGEFUL, PAGEFUL), (DATABASE, plan.customers, plan.redemptions)):
        machine.create(database, like=EMPTY)
        with machine.connect(database) as connection:
            pages_tables.fill(connection, people, redemptions)
    with machine.connect(EMPTY) as connection:
        pages_tables.fill_one_of_each(connection)


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, pages_report, arguments)


if __name__ == "__main__":
    main()
