"""`make benchmark-growth`: what redeeming and "what can this e-mail use now" cost when there are many redemptions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import command, growth_report, growth_tables, onecode, server
from benchmarks.growth_report import REDEEM, USABLE, Results, Sizes
from benchmarks.measure import DATABASE
from benchmarks.meter import Cost, Meter
from benchmarks.server import Machine
from webapp.customers import queries as customer_queries
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import RedemptionRequest, evaluate


@dataclass(frozen=True)
class Plan:
    """How many redemptions there are beforehand, and how much is done then: so many rounds of so many of each."""

    customers: int = 100_000
    levels: Sequence[int] = (0, 1_000_000)
    rounds: int = 5
    redeemed: int = 1500
    asked: int = 150


USUAL = Plan()
QUICK = Plan(customers=20_000, levels=(0, 50_000), rounds=2, redeemed=300, asked=30)
FULL = Plan(customers=1_000_000, levels=(0, 1_000_000, 10_000_000))
WARM_UP = 20
PLANS = command.Plans("growth", USUAL, QUICK, FULL)


class Level:
    """The program on a database with so many redemptions."""

    def __init__(self, machine: Machine, plan: Plan, rows: int) -> None:
        name = f"redeemed_{rows}"
        machine.create(name, like=DATABASE)
        if rows:
            with machine.connect(name) as connection:
                growth_tables.redeem(connection, plan.customers, rows)
        self.sizes = _sizes(machine, name, rows)
        self.meter = Meter(machine, name)
        self.ours = onecode.Onecode(onecode.build(machine.url(name), str(machine.server.socket_folder.parent)))
        self.ours.set_up()
        self.offer = self.ours.new_offer()

    def cost_of_redeeming(self, people: Sequence[int]) -> Cost:
        """Each redeems the hot offer, one after the other; the cost of one.

        :raises Refused: when somebody may not.
        """
        asks = [RedemptionRequest(channel="form", code=self.ours.codes[self.offer], email=_email(n)) for n in people]
        with self.ours.app.app_context():
            for ask in asks[:WARM_UP]:
                redeem(ask)
            return _each(self.meter.of(lambda: [redeem(ask) for ask in asks[WARM_UP:]]), len(asks) - WARM_UP)

    def cost_of_asking(self, people: Sequence[int]) -> Cost:
        """What each of them can use now, asked one after the other; the cost of one answer."""
        with self.ours.app.app_context():
            for n in people[:WARM_UP]:
                _usable(n)
            return _each(self.meter.of(lambda: [_usable(n) for n in people[WARM_UP:]]), len(people) - WARM_UP)


def _usable(n: int) -> int:
    customer = customer_queries.find_customer_by_email(_email(n))
    if customer is None:
        raise RuntimeError("everybody asked about is a customer")
    found = sum(evaluate(facts).reason is None for facts in redemption_facts.load_current_offer_facts(customer.id))
    if not found:
        raise RuntimeError("there is always something to use")
    return found


def _email(n: int) -> str:
    return f"customer.{n}@example.com"


def _each(cost: Cost, n: int) -> Cost:
    return Cost(cost.seconds / n, cost.cpu / n, cost.wal // n, cost.images // n)


def _sizes(machine: Machine, database: str, rows: int) -> Sizes | None:
    """Bytes of the table of redemptions and of its indexes."""
    if not rows:
        return None
    with machine.connect(database) as connection:
        table, key, everything = connection.execute(
            "select pg_table_size('redemption'), pg_relation_size('pk_redemption'), "
            "pg_total_relation_size('redemption')"
        ).fetchone() or (0, 0, 0)
    return Sizes(rows, int(table), int(key), int(everything))


def measure(plan: Plan) -> Results:
    """Everything, on a server of its own."""
    results = Results(plan.customers)
    with server.running() as machine:
        _prepare(machine, plan)
        levels = {rows: Level(machine, plan, rows) for rows in plan.levels}
        results.bare = levels[plan.levels[-1]].sizes
        results.full = _with_orders(machine, plan)
        people = random.Random(1).sample(range(1, plan.customers + 1), plan.rounds * plan.redeemed)
        with machine.connect() as connection:
            connection.execute("checkpoint")
        for number in range(plan.rounds):
            part = people[number * plan.redeemed : (number + 1) * plan.redeemed]
            # Everybody is first once in a while.
            for rows in [*plan.levels[number % len(levels) :], *plan.levels[: number % len(levels)]]:
                level = levels[rows]
                for name, cost in (
                    (REDEEM, level.cost_of_redeeming(part)),
                    (USABLE, level.cost_of_asking(part[: plan.asked])),
                ):
                    results.costs.setdefault((name, rows), []).append(cost)
                    print(f"round {number + 1}, {rows:,} redemptions, {name}: {cost.cpu * 1e6:,.0f} µs of CPU")
        for level in levels.values():
            level.ours.disconnect()
    return results


def _prepare(machine: Machine, plan: Plan) -> None:
    machine.create(DATABASE)
    app = onecode.build(machine.url(DATABASE), str(machine.server.socket_folder.parent))
    onecode.migrate(app)
    onecode.Onecode(app).disconnect()
    with machine.connect(DATABASE) as connection:
        growth_tables.fill(connection, plan.customers)


def _with_orders(machine: Machine, plan: Plan) -> Sizes | None:
    """The table as shops fill it that send an order and an Idempotency-Key with each redemption."""
    rows = plan.levels[1]
    machine.create("with_orders", like=DATABASE)
    with machine.connect("with_orders") as connection:
        growth_tables.redeem(connection, plan.customers, rows, full=True)
    found = _sizes(machine, "with_orders", rows)
    machine.drop("with_orders")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, growth_report, arguments)


if __name__ == "__main__":
    main()
