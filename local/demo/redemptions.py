"""Simulate which customers redeemed an offer, and when.

Most redeem within days of an email, in the evening and at the weekend.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from local.demo.scenario import API_KEY_NAMES, MANAGER, TIME_ZONE, OfferPlan

# Relative number of redemptions by hour of the day and by weekday, Monday first, in the shop's time zone.
HOUR_WEIGHTS = (1, 0, 0, 0, 0, 1, 2, 5, 8, 10, 11, 13, 15, 12, 10, 10, 11, 15, 21, 27, 29, 23, 12, 4)
WEEKDAY_WEIGHTS = (0.52, 0.5, 0.55, 0.62, 0.8, 1.0, 0.9)
# Mean of the exponential distribution: half of the redemptions are within two days of the email.
MEAN_DELAY_DAYS = 2.9
CHANNEL_WEIGHTS = {"form": 36, "link": 31, "api": 25, "staff": 8}
WALK_IN_CHANNEL_WEIGHTS = {"form": 30, "api": 48, "staff": 22}
# Rollbacks of redemptions by a shop's API key, and of others by staff.
API_ROLLBACK_REASONS = (
    "order cancelled by the customer",
    "payment failed after checkout",
    "returned within 14 days",
)
STAFF_ROLLBACK_REASONS = (
    "rung up on the wrong customer at the till",
    "the customer meant to use it on the next order",
)


@dataclass(frozen=True)
class Candidate:
    """A customer who may redeem, from when on, and whether because of an email."""

    customer_id: int
    since: datetime
    was_emailed: bool


@dataclass
class SimulatedRedemptions:
    """Rows of `redemption` and `rollback` of an offer."""

    redemptions: list[dict[str, Any]]
    rollbacks: list[dict[str, Any]]


class RedemptionSimulation:
    """The redemptions of one offer until the end of today, at most one per customer.

    Those of a capped offer end with yesterday, so that its counter is the same at any hour of the day.
    """

    def __init__(self, plan: OfferPlan, today: datetime, seed: str) -> None:
        self.plan, self.today = plan, today
        self.rng = random.Random(seed)  # noqa: S311
        end = today + timedelta(days=0 if plan.max_redemptions else 1)
        self.until = min([end, *(at for at in (plan.ends_at, plan.paused_at) if at is not None)])
        self.rows: dict[int, dict[str, Any]] = {}

    def redeem(self, candidates: Sequence[Candidate], count: int) -> None:
        """Let up to `count` of the candidates redeem; fewer if the time is too short."""
        remaining = [candidate for candidate in candidates if candidate.customer_id not in self.rows]
        for candidate in self.rng.sample(remaining, len(remaining)):
            if count <= 0:
                return
            at = self._draw_time(candidate)
            if at is not None:
                self.rows[candidate.customer_id] = self._build_row(candidate, at)
                count -= 1

    def finish(self, api_key_ids: Mapping[str, int]) -> SimulatedRedemptions:
        """Add orders, undo some redemptions and return all rows.

        :param api_key_ids: ids of the API keys of the shop and of the till, by name and in this order.
        """
        rows = sorted(self.rows.values(), key=lambda row: row["redeemed_at"])
        for n, row in enumerate(rows):
            self._add_order(row, n, api_key_ids)
        yesterday = self.today - timedelta(days=1)
        undoable = [row for row in rows if row["redeemed_at"] < yesterday and row["channel"] != "link"]
        undone = self.rng.sample(undoable, min(self.plan.rollbacks, len(undoable)))
        rollbacks = [self._build_rollback(row) for row in undone]
        undone_ids = {row["customer_id"] for row in undone}
        repeated = [self._redeem_again(row, api_key_ids, n) for n, row in enumerate(rollbacks) if n % 4 == 0]
        standing = [row for row in rows if row["customer_id"] not in undone_ids]
        return SimulatedRedemptions(standing + [row for row in repeated if row is not None], rollbacks)

    def _draw_time(self, candidate: Candidate) -> datetime | None:
        """Return when a candidate redeems; None if no time within the offer is drawn."""
        zone = ZoneInfo(TIME_ZONE)
        start = candidate.since.astimezone(zone)
        for _ in range(12):
            if candidate.was_emailed:
                delay = int(self.rng.expovariate(1 / MEAN_DELAY_DAYS))
            else:
                delay = self.rng.randrange(max(1, (self.until - candidate.since).days + 1))
            day = start.date() + timedelta(days=delay)
            if self.rng.random() > WEEKDAY_WEIGHTS[day.weekday()]:
                continue
            hour = self.rng.choices(range(24), HOUR_WEIGHTS)[0]
            second, microsecond = self.rng.randrange(3600), self.rng.randrange(1_000_000)
            local = datetime(day.year, day.month, day.day, hour, second // 60, second % 60, microsecond, tzinfo=zone)
            at = local.astimezone(candidate.since.tzinfo)
            if candidate.since + timedelta(minutes=2) < at < self.until:
                return at
        return None

    def _build_row(self, candidate: Candidate, at: datetime) -> dict[str, Any]:
        weights = CHANNEL_WEIGHTS if candidate.was_emailed else WALK_IN_CHANNEL_WEIGHTS
        channel = self.rng.choices(list(weights), list(weights.values()))[0]
        return {"customer_id": candidate.customer_id, "redeemed_at": at, "channel": channel}

    def _add_order(self, row: dict[str, Any], n: int, api_key_ids: Mapping[str, int]) -> None:
        """Add what an API client sends about the order; other channels have no order."""
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
        shop, till = api_key_ids
        at_till = self.rng.random() < (0.55 if not self.plan.campaigns else 0.2)
        amount = int(self.rng.lognormvariate(3.4, 0.55) * 100) // 5 * 5 + 490
        order_id = f"{'T' if at_till else 'W'}-{self.plan.created_at:%y%m%d}-{self.plan.code[:2]}{n + 101}"
        row |= {
            "api_key_id": api_key_ids[till if at_till else shop],
            "order_id": order_id,
            "order_amount": amount,
            "order_currency": "EUR",
            "discount_amount": self.plan.discount.amount_off(amount, "EUR"),
        }
        if not at_till:
            row["idempotency_key"] = f"order-{order_id}"
            row["body_hash"] = hashlib.sha256(f"{order_id} {amount}".encode()).digest()
            row["order_metadata"] = {"items": self.rng.randrange(1, 7)}

    def _build_rollback(self, row: dict[str, Any]) -> dict[str, Any]:
        is_api = row["channel"] == "api"
        delay = timedelta(seconds=self.rng.randrange(600, 3 * 86400))
        at = min(row["redeemed_at"] + delay, self.today - timedelta(minutes=1))
        by = f"API key {API_KEY_NAMES[0]}" if is_api else MANAGER.email
        reason = self.rng.choice(API_ROLLBACK_REASONS if is_api else STAFF_ROLLBACK_REASONS)
        return {**row, "rolled_back_at": at, "rolled_back_by": by, "reason": reason}

    def _redeem_again(self, rollback: dict[str, Any], api_key_ids: Mapping[str, int], n: int) -> dict[str, Any] | None:
        """Return another redemption of a customer after a rollback, if time permits."""
        candidate = Candidate(rollback["customer_id"], rollback["rolled_back_at"], True)
        at = self._draw_time(candidate)
        if at is None:
            return None
        row = self._build_row(candidate, at)
        self._add_order(row, 5000 + n, api_key_ids)
        return row
