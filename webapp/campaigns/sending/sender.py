"""Senders: each claims batches and sends their emails over one connection."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import current_app
from flask_babel import gettext as _

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import timing
from webapp.campaigns.content import mail_merge
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.sending import auto_pause, batches, completion, outcomes, retries
from webapp.campaigns.sending import windows as send_windows
from webapp.campaigns.sending.attempts import deliver_with_reconnects
from webapp.campaigns.sending.batches import BatchClaim
from webapp.campaigns.sending.progress import SendProgress
from webapp.campaigns.sending.retries import DueRetry
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.campaigns.sending.windows import Recipient
from webapp.core import logs, task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import smtp
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayRejected, RelayUnavailable, SmtpOutcome
from webapp.offers import queries as offer_queries

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_REJECTED_BODIES = 5
MAX_CONSECUTIVE_CONNECTION_FAILURES = 5
MAX_RETRIES_PER_ROUND = 50


def send_pending_emails() -> bool:
    """Run a sender for about a minute; return whether to enqueue another task.

    At most MAIL_CONNECTIONS senders run at the same time in one process; an additional one returns immediately.
    """
    with _connection_slot() as is_acquired:
        if not is_acquired:
            return False
        with smtp.create_relay_connection() as relay, SendProgress() as progress:
            return _BatchSender(relay, progress).run()


@contextmanager
def _connection_slot() -> Iterator[bool]:
    """Try to acquire one of the MAIL_CONNECTIONS slots; yield whether it succeeded."""
    settings: Settings = current_app.config["SETTINGS"]
    slots: threading.Semaphore = current_app.extensions.setdefault(
        "sender_slots", threading.BoundedSemaphore(settings.mail_connections)
    )
    is_acquired = slots.acquire(blocking=False)
    try:
        yield is_acquired
    finally:
        if is_acquired:
            slots.release()


class _BatchSender:
    def __init__(self, relay: smtp.RelayConnection, progress: SendProgress) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self.relay = relay
        self.progress = progress
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.deadline = time.monotonic() + timing.SENDER_TIME_LIMIT
        # By campaign id, with the version of the offer that was rendered.
        self.mail_merges: dict[int, tuple[int, MailMerge]] = {}
        self.connection_failures = 0
        self.rejected_bodies = 0
        self.throttle = SendThrottle(settings.mail_per_second)
        # Where the cursor has to be moved before the next body is sent: while the relay reads the next envelope, or
        # before any wait.
        self.pending_cursor: int | None = None

    def run(self) -> bool:
        """Send until nothing is pending; return whether to enqueue another task."""
        while not self._should_stop():
            if not campaign_queries.has_pending_sends():
                completion.finish_campaigns()
                return False
            if not self._ensure_relay_connection():
                continue
            claim = batches.claim_batch(self.owner)
            if claim is not None:
                with logs.log_context(campaign_id=claim.campaign_id, batch_id=claim.batch_id):
                    self._send_batch(claim)
            self._send_due_retries()
        return not task_queue.stop_requested.is_set()

    def _should_stop(self) -> bool:
        return task_queue.stop_requested.is_set() or time.monotonic() > self.deadline

    def _ensure_relay_connection(self) -> bool:
        """Connect to the relay; return whether it accepts email.

        This precedes each claim, so that an outage fails no delivery.
        """
        # Keep no transaction open while waiting for the relay.
        db.session.rollback()
        try:
            self.relay.open()
        except RelayRejected as error:
            auto_pause.pause_all_automatically(
                _("the mail relay rejects email from this server: %(reply)s", reply=error)
            )
            return False
        except RelayUnavailable as error:
            if str(error)[:3].isdigit():
                warning = _(
                    "The mail relay does not accept email at the moment (%(reply)s). Onecode retries every few "
                    "seconds.",
                    reply=error,
                )
            else:
                warning = _(
                    "The mail relay can't be reached (%(error)s). Onecode retries every few seconds.", error=error
                )
            auto_pause.set_delivery_warning(warning)
            task_queue.stop_requested.wait(timing.RELAY_PROBE_INTERVAL)
            return False
        auto_pause.set_delivery_warning(None)
        return True

    def _send_batch(self, claim: BatchClaim) -> None:
        self.pending_cursor = None
        while claim.position < len(claim.customer_ids):
            if self._should_stop():
                return batches.release_batch(claim)
            window = send_windows.open_send_window(claim)
            if window is None:
                return None
            merge = self._load_mail_merge(claim.campaign_id, window.offer_version)
            for recipient in window.recipients:
                claim.position = recipient.index
                if not self._wait_for_batch_slot(claim, window.end - recipient.index):
                    return batches.release_batch(claim)
                if not self._send_to_recipient(claim, recipient, merge):
                    return None
            claim.position = window.end
        return batches.finish_batch(claim)

    def _wait_for_batch_slot(self, claim: BatchClaim, max_slots: int) -> bool:
        """Wait for a send slot; return False when the batch has to be released."""
        while not task_queue.stop_requested.is_set():
            seconds = self.throttle.try_acquire(max_slots)
            if seconds <= 0:
                return True
            if not self._finish_cursor_move(claim) or not self._holds_lease(claim):
                return False
            # Keep no transaction open while waiting.
            db.session.rollback()
            task_queue.stop_requested.wait(min(seconds, timing.LEASE_RENEWAL_INTERVAL))
        return False

    def _send_to_recipient(self, claim: BatchClaim, recipient: Recipient, merge: MailMerge) -> bool:
        """Send to one recipient; return False when this sender has lost the batch."""
        message = self._render_message(merge, recipient.customer)
        outcome = deliver_with_reconnects(
            self.relay,
            message,
            lambda: self._holds_lease(claim),
            lambda: self._finish_cursor_move(claim) and self._holds_lease(claim),
            lambda: self._start_cursor_move(claim),
        )
        if outcome.kind == "accepted":
            return self._record_accepted(claim, recipient, outcome)
        # Finish this sender's own cursor move before anything else is written about the batch.
        self.progress.finish_move()
        if outcome.kind in ("aborted", "rejected") or (
            outcome.kind == "connection_lost" and outcome.stage == "connect"
        ):
            # Changes nothing when another worker owns the batch.
            batches.release_batch(claim)
            if outcome.kind == "rejected":
                auto_pause.pause_automatically(claim.campaign_id, _describe_rejection(outcome))
            return False
        self.pending_cursor = None
        if not outcomes.record_outcome(claim, recipient, outcome):
            return False
        claim.position = recipient.index + 1
        return self._should_continue(claim, outcome)

    def _record_accepted(self, claim: BatchClaim, recipient: Recipient, outcome: SmtpOutcome) -> bool:
        self.connection_failures = self.rejected_bodies = 0
        self.pending_cursor = None
        if recipient.is_resend:
            return outcomes.record_outcome(claim, recipient, outcome)
        claim.sent += 1
        self.pending_cursor = recipient.index + 1
        return True

    def _start_cursor_move(self, claim: BatchClaim) -> None:
        if self.pending_cursor is not None:
            self.progress.start_move(claim, self.pending_cursor)
        self.pending_cursor = None

    def _finish_cursor_move(self, claim: BatchClaim) -> bool:
        """Record all emails accepted so far; False when another worker owns the batch."""
        self._start_cursor_move(claim)
        return self.progress.finish_move()

    def _should_continue(self, claim: BatchClaim, outcome: SmtpOutcome) -> bool:
        """Return whether to continue; otherwise the batch has been released."""
        is_body_stage = outcome.stage in ("DATA", "body")
        self.rejected_bodies = self.rejected_bodies + 1 if outcome.kind == "failed" and is_body_stage else 0
        self.connection_failures = (
            self.connection_failures + 1 if outcome.kind in ("connection_lost", "uncertain") else 0
        )
        if self.rejected_bodies >= MAX_CONSECUTIVE_REJECTED_BODIES:
            batches.release_batch(claim)
            auto_pause.pause_automatically(
                claim.campaign_id,
                _(
                    "the mail relay rejects the content of this email: %(code)s %(reply)s",
                    code=outcome.code,
                    reply=outcome.text,
                ),
            )
            return False
        if outcome.kind == "failed" and auto_pause.pause_if_failing(claim):
            batches.release_batch(claim)
            return False
        if self.connection_failures >= MAX_CONSECUTIVE_CONNECTION_FAILURES:
            self.connection_failures = 0
            batches.release_batch(claim, delay=timing.BATCH_RETRY_DELAY)
            return False
        return True

    def _holds_lease(self, claim: BatchClaim) -> bool:
        """Return whether the lease outlasts the next reply; renew it if necessary."""
        return time.monotonic() - claim.lease_renewed_at < timing.LEASE_RENEWAL_INTERVAL or batches.renew_batch_lease(
            claim
        )

    def _send_due_retries(self) -> None:
        for _attempt in range(MAX_RETRIES_PER_ROUND):
            # The slot is acquired before the claim, so that no delivery is claimed while waiting.
            if self._should_stop() or not retries.has_due_retry() or not self._wait_for_retry_slot():
                return
            retry = retries.claim_due_retry()
            if retry is None:
                return
            with logs.log_context(campaign_id=retry.campaign_id):
                if not self._send_retry(retry):
                    return

    def _wait_for_retry_slot(self) -> bool:
        while (seconds := self.throttle.try_acquire(1)) > 0:
            db.session.rollback()
            if self._should_stop():
                return False
            task_queue.stop_requested.wait(min(seconds, 1))
        return True

    def _send_retry(self, retry: DueRetry) -> bool:
        """Send one retry; return False when the connection to the relay has failed."""
        message = self._render_message(self._load_mail_merge(retry.campaign_id), retry.customer)

        def holds_lease() -> bool:
            age = time.monotonic() - retry.lease_renewed_at
            return age < timing.LEASE_RENEWAL_INTERVAL or retries.renew_retry_lease(retry)

        outcome = deliver_with_reconnects(self.relay, message, holds_lease, holds_lease)
        if outcome.kind == "aborted":
            retries.release_retry(retry)
        else:
            retries.record_retry_outcome(retry, outcome)
        if outcome.kind == "rejected":
            auto_pause.pause_automatically(retry.campaign_id, _describe_rejection(outcome))
        return outcome.kind in ("accepted", "failed", "deferred", "uncertain")

    def _render_message(self, merge: MailMerge, customer: Customer) -> OutgoingMessage | SmtpOutcome:
        """Render the message for a customer; return a failed outcome on an error."""
        try:
            return merge.build_message(customer)
        except (ValueError, UnicodeError) as error:
            # The error message may contain the address, which must not be logged.
            log.error("message for customer %s not rendered: %s", customer.id, type(error).__name__)
            return SmtpOutcome("failed", None, _("the email could not be rendered: %(error)s", error=error), "message")
        finally:
            # Keep no transaction open while waiting for the relay.
            db.session.rollback()

    def _load_mail_merge(self, campaign_id: int, offer_version: int | None = None) -> MailMerge:
        """Return the email of a campaign, merged with the current offer and code.

        :param offer_version: the current version of the offer, if known.
        :raises LookupError: when the campaign or its offer does not exist.
        """
        version, merge = self.mail_merges.get(campaign_id, (None, None))
        if merge is not None and version == offer_version:
            return merge
        campaign = campaign_queries.find_campaign(campaign_id)
        offer = offer_queries.find_offer(campaign.offer_id) if campaign is not None else None
        if campaign is None or offer is None:
            raise LookupError(f"no campaign {campaign_id}")
        if merge is None or version != offer.version:
            merge = mail_merge.create_mail_merge(campaign, offer)
            self.mail_merges[campaign_id] = offer.version, merge
        return merge


def _describe_rejection(outcome: SmtpOutcome) -> str:
    reply = f"{outcome.code} {outcome.text}" if outcome.code else outcome.text  # no translation
    return str(_("the mail relay rejects email from this server: %(reply)s", reply=reply))
