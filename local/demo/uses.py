"""Who redeemed what and when: more in the days after each mail, in the evening and at the weekend."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from local.demo.offers import MANAGER, ZONE, Told

# How much of a day's redeeming falls into each hour of the shop's clocks, and into each day from Monday to Sunday.
HOURS = (1, 0, 0, 0, 0, 1, 2, 5, 8, 10, 11, 13, 15, 12, 10, 10, 11, 15, 21, 27, 29, 23, 12, 4)
WEEK = (0.52, 0.5, 0.55, 0.62, 0.8, 1.0, 0.9)
# Half of those who ever will have redeemed within two days of their mail.
DAYS_LATER = 2.9
CHANNELS = {"form": 36, "link": 31, "api": 25, "staff": 8}
OF_WALK_INS = {"form": 30, "api": 48, "staff": 22}
REASONS = (
    ("api", "order cancelled by the customer"),
    ("api", "payment failed after checkout"),
    ("api", "returned within 14 days"),
    ("staff", "rung up on the wrong customer at the till"),
    ("staff", "the customer meant to use it on the next order"),
)


@dataclass(frozen=True)
class Mailed:
    """Somebody who may redeem: since when, and whether it is because of a mail."""

    customer: int
    since: datetime
    by_mail: bool


@dataclass
class Used:
    """The rows of an offer: redemptions that stand, and those that were undone."""

    live: list[dict[str, Any]]
    undone: list[dict[str, Any]]


class Till:
    """Redemptions of one offer until the end of a day, of a customer at most one. What has a cap stays as it was when
    the day began, so that its counter is the same at any hour."""

    def __init__(self, told: Told, today: datetime, seed: str) -> None:
        self.told, self.today = told, today
        self.chance = random.Random(seed)  # noqa: S311
        last = today + timedelta(days=0 if told.cap else 1)
        self.until = min([last, *(at for at in (told.ends_at, told.paused_at) if at is not None)])
        self.rows: dict[int, dict[str, Any]] = {}

    def redeem(self, among: Sequence[Mailed], n: int) -> None:
        """Let `n` of these redeem, as far as there is time."""
        waiting = [each for each in among if each.customer not in self.rows]
        for each in self.chance.sample(waiting, len(waiting)):
            if n <= 0:
                return
            at = self._moment(each)
            if at is not None:
                self.rows[each.customer] = self._row(each, at)
                n -= 1

    def used(self, keys: Mapping[str, int]) -> Used:
        """What stands and what was undone, by the ids of the API keys by name."""
        rows = sorted(self.rows.values(), key=lambda row: row["redeemed_at"])
        for n, row in enumerate(rows):
            self._order(row, n, keys)
        yesterday = self.today - timedelta(days=1)
        early = [row for row in rows if row["redeemed_at"] < yesterday and row["channel"] != "link"]
        gone = self.chance.sample(early, min(self.told.undone, len(early)))
        undone = [self._undo(row) for row in gone]
        out = {row["customer_id"] for row in gone}
        again = [self._again(row, keys, n) for n, row in enumerate(undone) if n % 4 == 0]
        live = [row for row in rows if row["customer_id"] not in out]
        return Used(live + [row for row in again if row is not None], undone)

    def _moment(self, each: Mailed) -> datetime | None:
        """When somebody redeems, on a day and at an hour on which people do; None if their time never comes."""
        zone = ZoneInfo(ZONE)
        begin = each.since.astimezone(zone)
        for _ in range(12):
            if each.by_mail:
                later = int(self.chance.expovariate(1 / DAYS_LATER))
            else:
                later = self.chance.randrange(max(1, (self.until - each.since).days + 1))
            day = begin.date() + timedelta(days=later)
            if self.chance.random() > WEEK[day.weekday()]:
                continue
            hour = self.chance.choices(range(24), HOURS)[0]
            second, part = self.chance.randrange(3600), self.chance.randrange(1_000_000)
            local = datetime(day.year, day.month, day.day, hour, second // 60, second % 60, part, tzinfo=zone)
            at = local.astimezone(each.since.tzinfo)
            if each.since + timedelta(minutes=2) < at < self.until:
                return at
        return None

    def _row(self, each: Mailed, at: datetime) -> dict[str, Any]:
        weights = CHANNELS if each.by_mail else OF_WALK_INS
        channel = self.chance.choices(list(weights), list(weights.values()))[0]
        return {"customer_id": each.customer, "redeemed_at": at, "channel": channel}

    def _order(self, row: dict[str, Any], n: int, keys: Mapping[str, int]) -> None:
        """What a shop or till says beside the code. People on the form and staff say nothing of an order."""
        row |= dict.fromkeys(
            (
                "api_key_id",
                "order_id",
                "order_amount",
                "order_currency",
                "discount_amount",
                "idempotency_key",
                "body_hash",
            )
        )
        row["order_metadata"] = None
        if row["channel"] != "api":
            return
        shop, till = keys
        at_till = self.chance.random() < (0.55 if not self.told.mailings else 0.2)
        amount = int(self.chance.lognormvariate(3.4, 0.55) * 100) // 5 * 5 + 490
        order = f"{'T' if at_till else 'W'}-{self.told.created_at:%y%m%d}-{self.told.code[:2]}{n + 101}"
        row |= {
            "api_key_id": keys[till if at_till else shop],
            "order_id": order,
            "order_amount": amount,
            "order_currency": "EUR",
            "discount_amount": self.told.discount.amount_off(amount, "EUR"),
        }
        if not at_till:
            row["idempotency_key"] = f"order-{order}"
            row["body_hash"] = hashlib.sha256(f"{order} {amount}".encode()).digest()
            row["order_metadata"] = {"items": self.chance.randrange(1, 7)}

    def _undo(self, row: dict[str, Any]) -> dict[str, Any]:
        kinds = [why for kind, why in REASONS if (kind == "api") == (row["channel"] == "api")]
        wait = timedelta(seconds=self.chance.randrange(600, 3 * 86400))
        at = min(row["redeemed_at"] + wait, self.today - timedelta(minutes=1))
        by = "key Web shop" if row["channel"] == "api" else MANAGER[0]
        return {**row, "rolled_back_at": at, "rolled_back_by": by, "reason": self.chance.choice(kinds)}

    def _again(self, undone: dict[str, Any], keys: Mapping[str, int], n: int) -> dict[str, Any] | None:
        """Some come back for it after all."""
        each = Mailed(undone["customer_id"], undone["rolled_back_at"], True)
        at = self._moment(each)
        if at is None:
            return None
        row = self._row(each, at)
        self._order(row, 5000 + n, keys)
        return row
