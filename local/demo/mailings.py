"""How a mailing of the past went: the rows that a worker would have left, window by window.

What holds of real ones holds of these: frozen batches of 500, windows of 50 with their times, a row for every mail that
did not simply go out and none for the others, a sum that is right.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from local.demo.offers import Mailing
from webapp.campaigns.models import BATCH_SIZE, WINDOW_SIZE, encode_gaps
from webapp.campaigns.sending.auto_pause import MAX_FAILURE_RATE, MIN_FAILURES_TO_PAUSE
from webapp.campaigns.timing import LEASE_DURATION, RETRY_BACKOFF

# Mails a second over one connection, of two.
PACE = 12
CONNECTIONS = 2

GONE = (
    (550, "5.1.1 The email account that you tried to reach does not exist", 8),
    (550, "5.1.1 Recipient address rejected: User unknown in virtual mailbox table", 6),
    (550, "5.1.10 Recipient not found by SMTP address lookup", 2),
)
REFUSED = (
    (550, "5.7.1 Message refused as spam by local policy", 3),
    (550, "5.2.1 The mailbox is disabled and takes no messages", 3),
    (552, "5.2.2 Mailbox full", 2),
    (554, "Transaction failed", 1),
)
PUT_OFF = (
    (451, "4.7.1 Greylisting in action, please come back later", 5),
    (452, "4.2.2 The recipient's mailbox is over its quota; try again later", 2),
    (450, "4.3.2 System is not accepting messages at the moment", 2),
)
KILLED = "the worker stopped while this email was being sent"


@dataclass(frozen=True)
class People:
    """Whom a mailing goes to, by id ascending, and what is known of them at a time.

    :param gone: those whose mailboxes there are no more.
    :param left_out: why somebody is not mailed at a moment; None for nobody's business.
    """

    ids: list[int]
    gone: Collection[int]
    left_out: Callable[[int, datetime], str | None]


@dataclass
class _Batch:
    ids: list[int]
    seq: int
    position: int = 0
    status: str = "pending"
    epoch: int = 0
    windows: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


@dataclass
class Went:
    """The rows: `campaign` has the columns that a launch and its workers write, `got` when somebody got the mail."""

    campaign: dict[str, Any] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    issues: dict[int, dict[str, Any]] = field(default_factory=dict)
    got: dict[int, datetime] = field(default_factory=dict)


class _Sending:
    """Two connections at the batches of one mailing, on a clock of seconds since the launch."""

    def __init__(self, mailing: Mailing, people: People, by: str, chance: random.Random) -> None:
        assert mailing.at is not None  # noqa: S101 (one that has been launched)
        self.mailing, self.people, self.by, self.chance = mailing, people, by, chance
        self.launched = mailing.at
        slices = [people.ids[at : at + BATCH_SIZE] for at in range(0, len(people.ids), BATCH_SIZE)]
        self.batches = [_Batch(ids, seq) for seq, ids in enumerate(slices)]
        self.went = Went()
        self.stopped_at: float | None = None
        self.reason = f"paused by {by}"
        self.last = 2.0
        limit = len(people.ids) * mailing.stopped if mailing.stopped else None
        self.limit = None if limit is None else round(limit / 50) * 50
        self.deaths = set(self.chance.sample(range(len(people.ids)), mailing.killed))

    def run(self) -> Went:
        clocks: list[tuple[float, int, _Batch | None]] = [(2.0 + n / 10, n, None) for n in range(CONNECTIONS)]
        waiting = iter(self.batches)
        while clocks:
            clock, connection, batch = heapq.heappop(clocks)
            is_through = batch is None or batch.position == len(batch.ids)
            if self._is_stopped(clock):
                if batch is not None and not is_through:
                    batch.status = "pending"
                continue
            if batch is None or is_through:
                batch = next(waiting, None)
                if batch is None:
                    continue
                batch.epoch, batch.status = 1, "sending"
            heapq.heappush(clocks, (self._window(batch, clock), connection, batch))
        self._retries()
        self._close()
        return self.went

    def _is_stopped(self, clock: float) -> bool:
        if self.limit is not None and self.stopped_at is None and sum(b.position for b in self.batches) >= self.limit:
            self.stopped_at = clock
        return self.stopped_at is not None and clock >= self.stopped_at

    def _window(self, batch: _Batch, clock: float) -> float:
        """Send one; when the next can begin."""
        batch.windows += [batch.position, int(clock)]
        opened = self._moment(clock)
        for customer in batch.ids[batch.position : batch.position + WINDOW_SIZE]:
            why = self.people.left_out(customer, opened)
            if why:
                self._note(customer, opened, "skipped", None, why, attempts=0)
            else:
                clock += self.chance.uniform(0.7, 1.3) / PACE
                clock = self._one(batch, customer, clock)
            batch.position += 1
            if self.stopped_at is not None and self.stopped_at == clock:
                break
        if batch.position == len(batch.ids):
            batch.status = "done"
        self.last = max(self.last, clock)
        return clock

    def _one(self, batch: _Batch, customer: int, clock: float) -> float:
        at = self._moment(clock)
        luck = self.chance.random()
        if batch.seq * BATCH_SIZE + batch.position in self.deaths:
            clock = self._killed(batch, customer, clock)
        elif customer in self.people.gone:
            code, words = _pick(self.chance, GONE)
            self._note(customer, at, "failed", code, words)
            self._fail(batch, clock)
        elif luck < 0.003:
            code, words = _pick(self.chance, REFUSED)
            self._note(customer, at, "failed", code, words)
            self._fail(batch, clock)
        elif luck < 0.014:
            code, words = _pick(self.chance, PUT_OFF)
            due = at + timedelta(seconds=RETRY_BACKOFF[0] * self.chance.uniform(0.9, 1.1))
            self._note(customer, at, "deferred", code, words, next_at=due)
        else:
            self.went.got[customer] = at
        return clock

    def _killed(self, batch: _Batch, customer: int, clock: float) -> float:
        """The worker dies; another takes the batch over when the lease has ended, and goes on as the mailing says."""
        at = self._moment(clock)
        clock += LEASE_DURATION + self.chance.uniform(2, 30)
        batch.epoch += 1
        begin = batch.position
        if self.mailing.policy == "hold":
            begin += 1
            self._note(customer, at, "uncertain", None, KILLED, attempts=0, doubt=True)
        else:
            self._note(customer, self._moment(clock), "sent_later", 250, "", doubt=True)
            self.went.got[customer] = self._moment(clock)
        if begin < len(batch.ids):
            batch.windows += [begin, int(clock)]
        return clock

    def _fail(self, batch: _Batch, clock: float) -> None:
        """Pause by itself as a worker would: too many of the last 500 were refused."""
        batch.failed.append(batch.position)
        rest = BATCH_SIZE - batch.position - 1
        before = self.batches[batch.seq - 1] if batch.seq else None
        failed, tried = len(batch.failed), batch.position + 1
        if before is not None and before.position and rest:
            begin = max(0, before.position - rest)
            failed += sum(place >= begin for place in before.failed)
            tried += before.position - begin
        if failed >= MIN_FAILURES_TO_PAUSE and failed > MAX_FAILURE_RATE * tried and self.stopped_at is None:
            self.stopped_at = clock
            self.reason = f"{failed} of the last {tried} emails were permanently rejected; check the servers' replies"

    def _note(
        self,
        customer: int,
        at: datetime,
        state: str,
        code: int | None,
        words: str,
        *,
        attempts: int = 1,
        next_at: datetime | None = None,
        doubt: bool = False,
    ) -> None:
        self.went.issues[customer] = {
            "customer_id": customer,
            "state": state,
            "smtp_code": code,
            "text": words,
            "at": at,
            "attempts": attempts,
            "next_at": next_at,
            "epoch": 0,
            "doubt": doubt,
        }

    def _retries(self) -> None:
        """What was put off is tried again for as long as the mailing goes on; most mailboxes take it then."""
        end = None if self.stopped_at is None else self._moment(self.stopped_at)
        for customer, issue in self.went.issues.items():
            while issue["state"] == "deferred" and (end is None or issue["next_at"] < end):
                at = issue["next_at"] + timedelta(seconds=self.chance.uniform(0.2, 6))
                issue["attempts"] += 1
                issue["epoch"] += 1
                if self.chance.random() < 0.75 or issue["attempts"] > 3:
                    issue |= {"state": "sent_later", "smtp_code": 250, "text": "", "next_at": None, "at": at}
                    self.went.got[customer] = at
                    self.last = max(self.last, (at - self.launched).total_seconds())
                else:
                    wait = RETRY_BACKOFF[min(issue["attempts"] - 1, len(RETRY_BACKOFF) - 1)]
                    issue["next_at"] = at + timedelta(seconds=wait * self.chance.uniform(0.9, 1.1))
            if issue["state"] == "deferred" and self.mailing.status == "cancelled":
                words = "the campaign was cancelled"
                issue |= {"state": "skipped", "smtp_code": None, "text": words, "next_at": None}

    def _close(self) -> None:
        status = {"halted": "paused"}.get(self.mailing.status, self.mailing.status)
        self.went.batches = [self._batch_row(batch, status) for batch in self.batches]
        prepared = self._moment(1.2)
        self.went.campaign = {
            "status": status,
            "total": len(self.people.ids),
            "prepared_to": self.people.ids[-1],
            "prepared_at": prepared,
            "sending_since": prepared,
            "launched_at": self.launched,
            "launched_by": self.by,
            "pause_reason": self.reason if status == "paused" else None,
        }
        if status != "paused":
            finished = self._moment(self.last + 1 if self.stopped_at is None else self.stopped_at)
            sent = sum(batch["sent"] for batch in self.went.batches)
            self.went.campaign |= {"finished_at": finished, "sent_in_batches": sent}
            if status == "cancelled":
                self.went.campaign["cancelled_at"] = finished

    def _batch_row(self, batch: _Batch, status: str) -> dict[str, Any]:
        settled = batch.ids[: batch.position]
        return {
            "seq": batch.seq,
            "first_id": batch.ids[0],
            "last_id": batch.ids[-1],
            "gaps": encode_gaps(batch.ids),
            "window_start": batch.position,
            "window_end": batch.position,
            "status": "cancelled" if status == "cancelled" and batch.status != "done" else batch.status,
            "epoch": batch.epoch,
            "sent": sum(customer not in self.went.issues for customer in settled),
            "windows": batch.windows,
        }

    def _moment(self, clock: float) -> datetime:
        return self.launched + timedelta(seconds=clock)


def send(mailing: Mailing, people: People, by: str, seed: str) -> Went:
    """What came of a mailing that was launched in the past, by whoever `by` is. The same for the same seed."""
    return _Sending(mailing, people, by, random.Random(seed)).run()  # noqa: S311


def came_back(went: Went, customer: int, at: datetime, words: str) -> None:
    """A mail that was accepted comes back later: it counts as failed from then on (see `bounce_actions`)."""
    ids = went.issues
    if customer in ids:
        return
    went.issues[customer] = {
        "customer_id": customer,
        "state": "failed",
        "smtp_code": None,
        "text": f"bounced: {words}",
        "at": at,
        "attempts": 0,
        "next_at": None,
        "epoch": 0,
        "doubt": False,
    }
    batch = next(b for b in went.batches if b["first_id"] <= customer <= b["last_id"])
    batch["sent"] -= 1
    if "sent_in_batches" in went.campaign:
        went.campaign["sent_in_batches"] -= 1


def _pick(chance: random.Random, among: tuple[tuple[int, str, int], ...]) -> tuple[int, str]:
    code, words, _ = chance.choices(among, [each[2] for each in among])[0]
    return code, words
