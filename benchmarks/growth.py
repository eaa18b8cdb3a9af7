"""`make benchmark-growth`: the cost of redemptions when many exist already.

It measures redeeming and listing a customer's offers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import command, growth_report, growth_tables, onecode, server
from benchmarks.growth_report import REDEEM, USABLE, GrowthResults, Sizes
from benchmarks.measure import DATABASE
from benchmarks.meter import Cost, Meter
from benchmarks.server import DatabaseServer
from webapp.customers import queries as customer_queries
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest, evaluate


@dataclass(frozen=True)
class GrowthPlan:
    """The numbers of existing redemptions, rounds, and operations per round."""

    customers: int = 100_000
    levels: Sequence[int] = (0, 1_000_000)
    rounds: int = 5
    redeemed: int = 1500
    queried: int = 150


USUAL = GrowthPlan()
QUICK = GrowthPlan(customers=20_000, levels=(0, 50_000), rounds=2, redeemed=300, queried=30)
FULL = GrowthPlan(customers=1_000_000, levels=(0, 1_000_000, 10_000_000))
WARM_UP = 20
PLANS = command.Plans("growth", USUAL, QUICK, FULL)


class Level:
    """The application on a database with a given number of redemptions."""

    def __init__(self, database_server: DatabaseServer, plan: GrowthPlan, rows: int) -> None:
        name = f"redeemed_{rows}"
        database_server.create(name, like=DATABASE)
        if rows:
            with database_server.connect(name) as connection:
                growth_tables.redeem(connection, plan.customers, rows)
        self.sizes = _sizes(database_server, name, rows)
        self.meter = Meter(database_server, name)
        self.ours = onecode.Onecode(
            onecode.build(database_server.url(name), str(database_server.embedded.socket_folder.parent))
        )
        self.ours.set_up()
        self.offer = self.ours.new_offer()

    def cost_of_redeeming(self, customers: Sequence[int]) -> Cost:
        """Redeem the offer for each customer, one after the other; return the cost of one.

        :raises RedemptionRefused: when a redemption is refused.
        """
        requests = [
            RedemptionRequest(channel="form", code=self.ours.codes[self.offer], email=_email(n)) for n in customers
        ]
        with self.ours.app.app_context():
            for request in requests[:WARM_UP]:
                redeem(request)
            return _per_operation(
                self.meter.measure(lambda: [redeem(request) for request in requests[WARM_UP:]]), len(requests) - WARM_UP
            )

    def cost_of_listing(self, customers: Sequence[int]) -> Cost:
        """List the usable offers of each customer in turn; return the cost of one."""
        with self.ours.app.app_context():
            for n in customers[:WARM_UP]:
                _count_usable_offers(n)
            return _per_operation(
                self.meter.measure(lambda: [_count_usable_offers(n) for n in customers[WARM_UP:]]),
                len(customers) - WARM_UP,
            )


def _count_usable_offers(n: int) -> int:
    customer = customer_queries.find_customer_by_email(_email(n))
    if customer is None:
        raise RuntimeError("the customer does not exist")
    usable = sum(evaluate(facts).reason is None for facts in redemption_facts.load_current_offer_facts(customer.id))
    if not usable:
        raise RuntimeError("the customer has no usable offer")
    return usable


def _email(n: int) -> str:
    return f"customer.{n}@example.com"


def _per_operation(cost: Cost, n: int) -> Cost:
    return Cost(cost.seconds / n, cost.cpu / n, cost.wal // n, cost.images // n)


def _sizes(database_server: DatabaseServer, database: str, rows: int) -> Sizes | None:
    """The bytes of the table of redemptions and of its indexes."""
    if not rows:
        return None
    with database_server.connect(database) as connection:
        table, key, total = connection.execute(
            "select pg_table_size('redemption'), pg_relation_size('pk_redemption'), "
            "pg_total_relation_size('redemption')"
        ).fetchone() or (0, 0, 0)
    return Sizes(rows, int(table), int(key), int(total))


def measure(plan: GrowthPlan) -> GrowthResults:
    """Run the benchmark on a separate server."""
    results = GrowthResults(plan.customers)
    with server.running() as database_server:
        _prepare(database_server, plan)
        levels = {rows: Level(database_server, plan, rows) for rows in plan.levels}
        results.bare = levels[plan.levels[-1]].sizes
        results.full = _with_orders(database_server, plan)
        customers = random.Random(1).sample(range(1, plan.customers + 1), plan.rounds * plan.redeemed)
        with database_server.connect() as connection:
            connection.execute("checkpoint")
        for number in range(plan.rounds):
            part = customers[number * plan.redeemed : (number + 1) * plan.redeemed]
            # The order rotates, so that no database is always first.
            for rows in [*plan.levels[number % len(levels) :], *plan.levels[: number % len(levels)]]:
                level = levels[rows]
                for name, cost in (
                    (REDEEM, level.cost_of_redeeming(part)),
                    (USABLE, level.cost_of_listing(part[: plan.queried])),
                ):
                    results.costs.setdefault((name, rows), []).append(cost)
                    print(f"round {number + 1}, {rows:,} redemptions, {name}: {cost.cpu * 1e6:,.0f} µs of CPU")
        for level in levels.values():
            level.ours.disconnect()
    return results


def _prepare(database_server: DatabaseServer, plan: GrowthPlan) -> None:
    database_server.create(DATABASE)
    app = onecode.build(database_server.url(DATABASE), str(database_server.embedded.socket_folder.parent))
    onecode.migrate(app)
    onecode.Onecode(app).disconnect()
    with database_server.connect(DATABASE) as connection:
        growth_tables.fill(connection, plan.customers)


def _with_orders(database_server: DatabaseServer, plan: GrowthPlan) -> Sizes | None:
    """The table size when each redemption has an order and an Idempotency-Key."""
    rows = plan.levels[1]
    database_server.create("with_orders", like=DATABASE)
    with database_server.connect("with_orders") as connection:
        growth_tables.redeem(connection, plan.customers, rows, full=True)
    sizes = _sizes(database_server, "with_orders", rows)
    database_server.drop("with_orders")
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, growth_report, arguments)


if __name__ == "__main__":
    main()
