"""Simulate the sending of a past campaign, window by window.

The rows have the properties of real ones: frozen batches of 500 recipients, windows of 50 with their times, a row for
every delivery that was not sent at the first attempt and none for the others, and correct totals.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from local.demo.scenario import CampaignPlan
from webapp.campaigns.models import BATCH_SIZE, STAFF_PAUSE_PREFIX, WINDOW_SIZE, encode_gaps
from webapp.campaigns.sending.auto_pause import MAX_FAILURE_RATE, MIN_FAILURES_TO_PAUSE
from webapp.campaigns.timing import LEASE_DURATION, RETRY_BACKOFF

EMAILS_PER_SECOND = 12  # of one connection
CONNECTIONS = 2

# SMTP replies: code, text, relative frequency.
UNKNOWN_MAILBOX_REPLIES = (
    (550, "5.1.1 The email account that you tried to reach does not exist", 8),
    (550, "5.1.1 Recipient address rejected: User unknown in virtual mailbox table", 6),
    (550, "5.1.10 Recipient not found by SMTP address lookup", 2),
)
REJECTION_REPLIES = (
    (550, "5.7.1 Message refused as spam by local policy", 3),
    (550, "5.2.1 The mailbox is disabled and takes no messages", 3),
    (552, "5.2.2 Mailbox full", 2),
    (554, "Transaction failed", 1),
)
TEMPORARY_REPLIES = (
    (451, "4.7.1 Greylisting in action, please come back later", 5),
    (452, "4.2.2 The recipient's mailbox is over its quota; try again later", 2),
    (450, "4.3.2 System is not accepting messages at the moment", 2),
)
WORKER_DIED = "sending was interrupted"

REJECTION_SHARE, DEFERRAL_SHARE = 0.003, 0.011
RETRY_SUCCESS_SHARE = 0.75


@dataclass(frozen=True)
class Recipients:
    """The recipients of a campaign.

    :param ids: ids of the customers, ascending.
    :param missing_mailboxes: ids of customers whose mailbox does not exist.
    :param skip_reason: returns why a customer is skipped at a time, or None.
    """

    ids: list[int]
    missing_mailboxes: Collection[int]
    skip_reason: Callable[[int, datetime], str | None]


@dataclass
class _BatchState:
    ids: list[int]
    seq: int
    position: int = 0
    status: str = "pending"
    epoch: int = 0
    windows: list[int] = field(default_factory=list)
    failed_positions: list[int] = field(default_factory=list)


@dataclass
class SentCampaign:
    """The result of a simulation.

    `campaign` has the columns that a launch and the workers write, `batches` and `deliveries` (by customer id) the rows
    of `batch` and `mail_issue`, `delivered_at` the time at which a customer received the email.
    """

    campaign: dict[str, Any] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    deliveries: dict[int, dict[str, Any]] = field(default_factory=dict)
    delivered_at: dict[int, datetime] = field(default_factory=dict)


class _SendSimulation:
    """Connections that send the batches of one campaign.

    Times are in seconds since the launch.
    """

    def __init__(self, plan: CampaignPlan, recipients: Recipients, launched_by: str, rng: random.Random) -> None:
        assert plan.launch_at is not None  # noqa: S101 (a launched campaign)
        self.plan, self.recipients, self.launched_by, self.rng = plan, recipients, launched_by, rng
        self.launched_at = plan.launch_at
        slices = [recipients.ids[at : at + BATCH_SIZE] for at in range(0, len(recipients.ids), BATCH_SIZE)]
        self.batches = [_BatchState(ids, seq) for seq, ids in enumerate(slices)]
        self.result = SentCampaign()
        self.stopped_at: float | None = None
        self.pause_reason = f"{STAFF_PAUSE_PREFIX}{launched_by}"
        self.last_sent_at = 2.0
        limit = len(recipients.ids) * plan.stopped_after if plan.stopped_after else None
        self.stop_position = None if limit is None else round(limit / WINDOW_SIZE) * WINDOW_SIZE
        self.death_positions = set(rng.sample(range(len(recipients.ids)), plan.worker_deaths))

    def run(self) -> SentCampaign:
        connections: list[tuple[float, int, _BatchState | None]] = [(2.0 + n / 10, n, None) for n in range(CONNECTIONS)]
        pending = iter(self.batches)
        while connections:
            clock, connection, batch = heapq.heappop(connections)
            is_complete = batch is None or batch.position == len(batch.ids)
            if self._is_stopped(clock):
                if batch is not None and not is_complete:
                    batch.status = "pending"
                continue
            if batch is None or is_complete:
                batch = next(pending, None)
                if batch is None:
                    continue
                batch.epoch, batch.status = 1, "sending"
            heapq.heappush(connections, (self._send_window(batch, clock), connection, batch))
        self._retry_deferred()
        self._finish()
        return self.result

    def _is_stopped(self, clock: float) -> bool:
        if self.stopped_at is None and self._has_reached_stop_position():
            self.stopped_at = clock
        return self.stopped_at is not None and clock >= self.stopped_at

    def _has_reached_stop_position(self) -> bool:
        return self.stop_position is not None and sum(batch.position for batch in self.batches) >= self.stop_position

    def _send_window(self, batch: _BatchState, clock: float) -> float:
        """Send one window; return when the next one can start."""
        batch.windows += [batch.position, int(clock)]
        opened_at = self._time(clock)
        for customer_id in batch.ids[batch.position : batch.position + WINDOW_SIZE]:
            reason = self.recipients.skip_reason(customer_id, opened_at)
            if reason:
                self._record(customer_id, opened_at, "skipped", None, reason, attempts=0)
            else:
                clock += self.rng.uniform(0.7, 1.3) / EMAILS_PER_SECOND
                clock = self._send_email(batch, customer_id, clock)
            batch.position += 1
            if self.stopped_at is not None and self.stopped_at == clock:
                break
        if batch.position == len(batch.ids):
            batch.status = "done"
        self.last_sent_at = max(self.last_sent_at, clock)
        return clock

    def _send_email(self, batch: _BatchState, customer_id: int, clock: float) -> float:
        """Send one email; return the time afterwards."""
        at = self._time(clock)
        draw = self.rng.random()
        if batch.seq * BATCH_SIZE + batch.position in self.death_positions:
            clock = self._kill_worker(batch, customer_id, clock)
        elif customer_id in self.recipients.missing_mailboxes:
            self._record(customer_id, at, "failed", *_pick_reply(self.rng, UNKNOWN_MAILBOX_REPLIES))
            self._count_failure(batch, clock)
        elif draw < REJECTION_SHARE:
            self._record(customer_id, at, "failed", *_pick_reply(self.rng, REJECTION_REPLIES))
            self._count_failure(batch, clock)
        elif draw < REJECTION_SHARE + DEFERRAL_SHARE:
            code, text = _pick_reply(self.rng, TEMPORARY_REPLIES)
            next_at = at + timedelta(seconds=RETRY_BACKOFF[0] * self.rng.uniform(0.9, 1.1))
            self._record(customer_id, at, "deferred", code, text, next_at=next_at)
        else:
            self.result.delivered_at[customer_id] = at
        return clock

    def _kill_worker(self, batch: _BatchState, customer_id: int, clock: float) -> float:
        """Let another worker continue the batch after the lease.

        The policy decides about the uncertain delivery.
        """
        at = self._time(clock)
        clock += LEASE_DURATION + self.rng.uniform(2, 30)
        batch.epoch += 1
        resume_position = batch.position
        if self.plan.uncertain_policy == "hold":
            resume_position += 1
            self._record(customer_id, at, "uncertain", None, WORKER_DIED, attempts=0, is_uncertain=True)
        else:
            self._record(customer_id, self._time(clock), "sent_later", 250, "", is_uncertain=True)
            self.result.delivered_at[customer_id] = self._time(clock)
        if resume_position < len(batch.ids):
            batch.windows += [resume_position, int(clock)]
        return clock

    def _count_failure(self, batch: _BatchState, clock: float) -> None:
        """Pause the campaign when too many of the last 500 deliveries failed."""
        batch.failed_positions.append(batch.position)
        rest = BATCH_SIZE - batch.position - 1
        previous = self.batches[batch.seq - 1] if batch.seq else None
        failed, attempted = len(batch.failed_positions), batch.position + 1
        if previous is not None and previous.position and rest:
            start = max(0, previous.position - rest)
            failed += sum(position >= start for position in previous.failed_positions)
            attempted += previous.position - start
        if failed >= MIN_FAILURES_TO_PAUSE and failed > MAX_FAILURE_RATE * attempted and self.stopped_at is None:
            self.stopped_at = clock
            self.pause_reason = (
                f"{failed} of the last {attempted} emails were permanently rejected; check the servers' replies"
            )

    def _record(
        self,
        customer_id: int,
        at: datetime,
        state: str,
        code: int | None,
        text: str,
        *,
        attempts: int = 1,
        next_at: datetime | None = None,
        is_uncertain: bool = False,
    ) -> None:
        self.result.deliveries[customer_id] = {
            "customer_id": customer_id,
            "state": state,
            "smtp_code": code,
            "text": text,
            "at": at,
            "attempts": attempts,
            "next_at": next_at,
            "epoch": 0,
            "doubt": is_uncertain,
        }

    def _retry_deferred(self) -> None:
        """Retry deferred deliveries until the campaign stops.

        Most succeed at the first retry.
        """
        stopped_at = None if self.stopped_at is None else self._time(self.stopped_at)
        for customer_id, delivery in self.result.deliveries.items():
            while delivery["state"] == "deferred" and (stopped_at is None or delivery["next_at"] < stopped_at):
                self._retry(customer_id, delivery)
            if delivery["state"] == "deferred" and self.plan.outcome == "cancelled":
                delivery |= {
                    "state": "skipped",
                    "smtp_code": None,
                    "text": "the campaign was cancelled",
                    "next_at": None,
                }

    def _retry(self, customer_id: int, delivery: dict[str, Any]) -> None:
        at = delivery["next_at"] + timedelta(seconds=self.rng.uniform(0.2, 6))
        delivery["attempts"] += 1
        delivery["epoch"] += 1
        if self.rng.random() < RETRY_SUCCESS_SHARE or delivery["attempts"] > 3:
            delivery |= {"state": "sent_later", "smtp_code": 250, "text": "", "next_at": None, "at": at}
            self.result.delivered_at[customer_id] = at
            self.last_sent_at = max(self.last_sent_at, (at - self.launched_at).total_seconds())
        else:
            backoff = RETRY_BACKOFF[min(delivery["attempts"] - 1, len(RETRY_BACKOFF) - 1)]
            delivery["next_at"] = at + timedelta(seconds=backoff * self.rng.uniform(0.9, 1.1))

    def _finish(self) -> None:
        status = {"auto_paused": "paused"}.get(self.plan.outcome, self.plan.outcome)
        self.result.batches = [self._batch_row(batch, status) for batch in self.batches]
        prepared_at = self._time(1.2)
        self.result.campaign = {
            "status": status,
            "total": len(self.recipients.ids),
            "prepared_to": self.recipients.ids[-1],
            "prepared_at": prepared_at,
            "sending_since": prepared_at,
            "launched_at": self.launched_at,
            "launched_by": self.launched_by,
            "pause_reason": self.pause_reason if status == "paused" else None,
        }
        if status != "paused":
            finished_at = self._time(self.last_sent_at + 1 if self.stopped_at is None else self.stopped_at)
            sent = sum(batch["sent"] for batch in self.result.batches)
            self.result.campaign |= {"finished_at": finished_at, "sent_in_batches": sent}
            if status == "cancelled":
                self.result.campaign["cancelled_at"] = finished_at

    def _batch_row(self, batch: _BatchState, status: str) -> dict[str, Any]:
        attempted = batch.ids[: batch.position]
        return {
            "seq": batch.seq,
            "first_id": batch.ids[0],
            "last_id": batch.ids[-1],
            "gaps": encode_gaps(batch.ids),
            "window_start": batch.position,
            "window_end": batch.position,
            "status": "cancelled" if status == "cancelled" and batch.status != "done" else batch.status,
            "epoch": batch.epoch,
            "sent": sum(customer_id not in self.result.deliveries for customer_id in attempted),
            "windows": batch.windows,
        }

    def _time(self, clock: float) -> datetime:
        return self.launched_at + timedelta(seconds=clock)


def simulate_sending(plan: CampaignPlan, recipients: Recipients, launched_by: str, seed: str) -> SentCampaign:
    """Simulate a campaign that was launched in the past.

    The result is the same for the same seed.
    """
    return _SendSimulation(plan, recipients, launched_by, random.Random(seed)).run()  # noqa: S311


def record_bounce(sent: SentCampaign, customer_id: int, at: datetime, text: str) -> None:
    """Record that an accepted email bounced, so its delivery counts as failed."""
    if customer_id in sent.deliveries:
        return
    sent.deliveries[customer_id] = {
        "customer_id": customer_id,
        "state": "failed",
        "smtp_code": None,
        "text": f"bounced: {text}",
        "at": at,
        "attempts": 0,
        "next_at": None,
        "epoch": 0,
        "doubt": False,
    }
    batch = next(b for b in sent.batches if b["first_id"] <= customer_id <= b["last_id"])
    batch["sent"] -= 1
    if "sent_in_batches" in sent.campaign:
        sent.campaign["sent_in_batches"] -= 1


def _pick_reply(rng: random.Random, replies: tuple[tuple[int, str, int], ...]) -> tuple[int, str]:
    code, text, _ = rng.choices(replies, [frequency for _, _, frequency in replies])[0]
    return code, text
