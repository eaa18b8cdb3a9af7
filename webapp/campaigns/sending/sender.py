"""Sending: a pump is one connection to the relay that takes batches, mails their recipients and keeps the place."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import current_app

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns.content import mail_merge
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.sending import auto_pause, batches, completion, retries
from webapp.campaigns.sending.batches import BatchClaim, Recipient
from webapp.campaigns.sending.progress import SendProgress
from webapp.campaigns.sending.retries import DueRetry
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.core import logs, task_queue
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import smtp
from webapp.mail.smtp import OutgoingMessage, RelayRejected, RelayUnavailable, SmtpOutcome
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import personal_links

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_REJECTED_BODIES = 5
MAX_CONSECUTIVE_CONNECTION_FAILURES = 5
MAX_RETRIES_PER_ROUND = 50


def send_pending_emails() -> bool:
    """Send for about a minute; True when there is more to do, so that the next bell should be rung.

    Never more pumps at a time in one process than MAIL_CONNECTIONS; one too many ends at once.
    """
    with _connection_slot() as free:
        if not free:
            return False
        with smtp.create_relay_connection() as relay, SendProgress() as place:
            return _BatchSender(relay, place).run()


def send_test_email(mail: EmailContent, offer: Offer, to: str, name: str) -> None:
    """Send the mail as it is to one of the staff, now. Its links lead to no customer, so pressing them does nothing.

    :raises DomainError: `relay_down` or `relay_refuses`, with what the relay said.
    """
    nobody = Customer(id=personal_links.PREVIEW_CUSTOMER_ID, email=to.lower(), email_as_given=to, name=name)
    settings: Settings = current_app.config["SETTINGS"]
    letter = MailMerge(mail, offer, 0, token=f"test.{secrets.token_hex(8)}").build_message(nobody)
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(letter)
    except RelayUnavailable as error:
        raise DomainError(
            "relay_down",
            f"The mail relay at {settings.mail_server} could not take it: {error}. Try again in a moment.",
            503,
        ) from error
    except RelayRejected as error:
        raise DomainError("relay_refuses", f"The mail relay refused it: {error}. Check the mail settings.") from error


@contextmanager
def _connection_slot() -> Iterator[bool]:
    settings: Settings = current_app.config["SETTINGS"]
    slots: threading.Semaphore = current_app.extensions.setdefault(
        "pumps", threading.BoundedSemaphore(settings.mail_connections)
    )
    free = slots.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            slots.release()


class _BatchSender:
    def __init__(self, relay: smtp.RelayConnection, place: SendProgress) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self.relay = relay
        self.progress = place
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.deadline = time.monotonic() + timing.SENDER_TIME_LIMIT
        # By campaign, with the version of the offer it was written from.
        self.mail_merges: dict[int, tuple[int, MailMerge]] = {}
        self.connection_failures = 0
        self.rejected_bodies = 0
        self.throttle = SendThrottle(settings.mail_per_second)
        # How far the cursor is to be moved before the next body is begun: while the relay reads the next envelope, or
        # before anything is waited for.
        self.pending_cursor: int | None = None

    def run(self) -> bool:
        while not self._should_stop():
            if not campaign_queries.has_pending_sends():
                completion.finish_campaigns()
                return False
            if not self._ensure_relay_connection():
                continue
            taken = batches.claim_batch(self.owner)
            if taken is not None:
                with logs.log_context(campaign_id=taken.campaign_id, batch_id=taken.batch_id):
                    self._send_batch(taken)
            self._send_due_retries()
        return not task_queue.stop_requested.is_set()

    def _should_stop(self) -> bool:
        return task_queue.stop_requested.is_set() or time.monotonic() > self.deadline

    def _ensure_relay_connection(self) -> bool:
        """A connection, before anything is claimed: while the relay is away nobody is at fault and nothing is due."""
        # No transaction stays open while the relay is waited for.
        db.session.rollback()
        try:
            self.relay.open()
        except RelayRejected as error:
            auto_pause.pause_all_automatically(f"the relay refuses us: {error}")
            return False
        except RelayUnavailable as error:
            what = "takes no mails just now" if str(error)[:3].isdigit() else "can't be reached"
            auto_pause.set_delivery_warning(f"The mail relay {what} ({error}). It is tried every few seconds.")
            task_queue.stop_requested.wait(timing.RELAY_PROBE_INTERVAL)
            return False
        auto_pause.set_delivery_warning(None)
        return True

    def _send_batch(self, taken: BatchClaim) -> None:
        self.pending_cursor = None
        while taken.position < len(taken.customer_ids):
            if self._should_stop():
                return batches.release_batch(taken)
            window = batches.open_send_window(taken)
            if window is None:
                return None
            form = self._load_mail_merge(taken.campaign_id, window.offer_version)
            for recipient in window.recipients:
                taken.position = recipient.index
                if not self._wait_for_batch_slot(taken, window.end - recipient.index):
                    return batches.release_batch(taken)
                if not self._send_to_recipient(taken, recipient, form):
                    return None
            taken.position = window.end
        return batches.finish_batch(taken)

    def _wait_for_batch_slot(self, taken: BatchClaim, wanted: int) -> bool:
        """Wait for as long as the rate limit says; False when there is something else to do first."""
        while not task_queue.stop_requested.is_set():
            seconds = self.throttle.try_acquire(wanted)
            if seconds <= 0:
                return True
            if not self._finish_cursor_move(taken) or not self._holds_lease(taken):
                return False
            # No transaction stays open while nothing is done.
            db.session.rollback()
            task_queue.stop_requested.wait(min(seconds, timing.LEASE_RENEWAL_INTERVAL))
        return False

    def _send_to_recipient(self, taken: BatchClaim, recipient: Recipient, form: MailMerge) -> bool:
        """One recipient settled; False when this pump is done with the batch, which then is in order."""
        letter = self._render_message(form, recipient.customer)
        outcome = self._deliver_with_reconnects(
            letter,
            lambda: self._holds_lease(taken),
            lambda: self._finish_cursor_move(taken) and self._holds_lease(taken),
            lambda: self._start_cursor_move(taken),
        )
        if outcome.kind == "accepted":
            return self._record_accepted(taken, recipient, outcome)
        # Nothing of this pump's is under way when somebody else may write about the batch.
        self.progress.finish_move()
        if outcome.kind in ("stopped", "refused") or (outcome.kind == "trouble" and outcome.stage == "connect"):
            # For nobody, if it is somebody else's by now.
            batches.release_batch(taken)
            if outcome.kind == "refused":
                auto_pause.pause_automatically(taken.campaign_id, _describe_refusal(outcome))
            return False
        self.pending_cursor = None
        if not batches.record_outcome(taken, recipient, outcome):
            return False
        taken.position = recipient.index + 1
        return self._should_continue(taken, outcome)

    def _record_accepted(self, taken: BatchClaim, recipient: Recipient, outcome: SmtpOutcome) -> bool:
        self.connection_failures = self.rejected_bodies = 0
        self.pending_cursor = None
        if recipient.is_resend:
            return batches.record_outcome(taken, recipient, outcome)
        taken.sent += 1
        self.pending_cursor = recipient.index + 1
        return True

    def _start_cursor_move(self, taken: BatchClaim) -> None:
        if self.pending_cursor is not None:
            self.progress.start_move(taken, self.pending_cursor)
        self.pending_cursor = None

    def _finish_cursor_move(self, taken: BatchClaim) -> bool:
        """Everything accepted is written down; False when the batch is somebody else's by now."""
        self._start_cursor_move(taken)
        return self.progress.finish_move()

    def _should_continue(self, taken: BatchClaim, outcome: SmtpOutcome) -> bool:
        """Whether the next recipient may fare better, or the trouble is the relay's or the mail's own."""
        body = outcome.stage in ("DATA", "body")
        self.rejected_bodies = self.rejected_bodies + 1 if outcome.kind == "failed" and body else 0
        self.connection_failures = self.connection_failures + 1 if outcome.kind in ("trouble", "uncertain") else 0
        if self.rejected_bodies >= MAX_CONSECUTIVE_REJECTED_BODIES:
            batches.release_batch(taken)
            auto_pause.pause_automatically(
                taken.campaign_id, f"the relay refuses this mail: {outcome.code} {outcome.text}"
            )
            return False
        if outcome.kind == "failed" and auto_pause.pause_if_failing(taken):
            batches.release_batch(taken)
            return False
        if self.connection_failures >= MAX_CONSECUTIVE_CONNECTION_FAILURES:
            self.connection_failures = 0
            batches.release_batch(taken, wait=timing.BATCH_RETRY_DELAY)
            return False
        return True

    def _deliver_with_reconnects(
        self,
        letter: OutgoingMessage | SmtpOutcome,
        holds: Callable[[], bool],
        may_send: Callable[[], bool],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> SmtpOutcome:
        """Hand a letter over; when the connection breaks before the body, on a new one, three times in all.

        :param holds: whether it is still ours to send, and for long enough: asked before each step that may take long.
        :param may_send: asked right before the body, see `transport.Relay.deliver`; so is `meanwhile`.
        """
        if isinstance(letter, SmtpOutcome):
            return letter
        outcome = SmtpOutcome("trouble", None, "not tried", "connect")
        for wait in timing.RECONNECT_DELAYS:
            try:
                if not self.relay.is_open:
                    meanwhile()
                    if not holds():
                        return SmtpOutcome("stopped")
                    self.relay.open()
                if not holds():
                    return SmtpOutcome("stopped")
                outcome = self.relay.deliver(letter, may_send, meanwhile)
            except RelayRejected as error:
                return SmtpOutcome("refused", None, str(error), "connect")
            except RelayUnavailable as error:
                outcome = SmtpOutcome("trouble", None, str(error), "connect")
            if outcome.kind != "trouble":
                return outcome
            if wait:
                task_queue.stop_requested.wait(wait)
        return outcome

    def _holds_lease(self, taken: BatchClaim) -> bool:
        """Still ours, for longer than the relay may take to answer, and still to be sent."""
        return time.monotonic() - taken.lease_renewed_at < timing.LEASE_RENEWAL_INTERVAL or batches.renew_batch_lease(
            taken
        )

    def _send_due_retries(self) -> None:
        for _ in range(MAX_RETRIES_PER_ROUND):
            # The turn before the mail: nobody else can have it while it waits for one.
            if self._should_stop() or not retries.has_due_retry() or not self._wait_for_retry_slot():
                return
            due = retries.claim_due_retry()
            if due is None:
                return
            with logs.log_context(campaign_id=due.campaign_id):
                if not self._send_retry(due):
                    return

    def _wait_for_retry_slot(self) -> bool:
        while (seconds := self.throttle.try_acquire(1)) > 0:
            db.session.rollback()
            if self._should_stop():
                return False
            task_queue.stop_requested.wait(min(seconds, 1))
        return True

    def _send_retry(self, due: DueRetry) -> bool:
        letter = self._render_message(self._load_mail_merge(due.campaign_id), due.customer)

        def holds() -> bool:
            return time.monotonic() - due.lease_renewed_at < timing.LEASE_RENEWAL_INTERVAL or retries.renew_retry_lease(
                due
            )

        outcome = self._deliver_with_reconnects(letter, holds, holds)
        if outcome.kind == "stopped":
            retries.release_retry(due)
        else:
            retries.record_retry_outcome(due, outcome)
        if outcome.kind == "refused":
            auto_pause.pause_automatically(due.campaign_id, _describe_refusal(outcome))
        return outcome.kind in ("accepted", "failed", "deferred", "uncertain")

    def _render_message(self, form: MailMerge, customer: Customer) -> OutgoingMessage | SmtpOutcome:
        """The letter, or why this one can't be written; the others go on."""
        try:
            return form.build_message(customer)
        except (ValueError, UnicodeError) as error:
            # The error's words may have the address in them, which is nothing for a log.
            log.error("no letter for customer %s: %s", customer.id, type(error).__name__)
            return SmtpOutcome("failed", None, f"the mail could not be written: {error}", "letter")
        finally:
            # No transaction stays open while the relay is waited for.
            db.session.rollback()

    def _load_mail_merge(self, campaign_id: int, offer_version: int | None = None) -> MailMerge:
        """The campaign's mail with what the offer says now: a code that was renewed meanwhile is in it.

        :param offer_version: which version of the offer that is, if the caller knows.
        """
        version, form = self.mail_merges.get(campaign_id, (None, None))
        if form is not None and version == offer_version:
            return form
        campaign = campaign_queries.find_campaign(campaign_id)
        offer = offer_queries.find_offer(campaign.offer_id) if campaign is not None else None
        if campaign is None or offer is None:
            raise LookupError(f"no campaign {campaign_id}")
        if form is None or version != offer.version:
            form = mail_merge.create_mail_merge(campaign, offer)
            self.mail_merges[campaign_id] = offer.version, form
        return form


def _describe_refusal(outcome: SmtpOutcome) -> str:
    return f"the relay refuses us: {f'{outcome.code} ' if outcome.code else ''}{outcome.text}"
