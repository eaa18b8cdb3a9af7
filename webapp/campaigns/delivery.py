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

from webapp import bell, logs
from webapp.campaigns import batch_actions, course_actions, due_actions, message, queries, times, transport
from webapp.campaigns.batch_actions import Claim, Recipient
from webapp.campaigns.due_actions import Due
from webapp.campaigns.message import FormLetter
from webapp.campaigns.pace import Pace
from webapp.campaigns.place import Place
from webapp.campaigns.transport import Letter, Outcome, RelayDown, RelayRefuses
from webapp.campaigns.wording import MailText
from webapp.customers.models import Customer
from webapp.errors import DomainError
from webapp.extensions import db
from webapp.offers import queries as offers
from webapp.offers.models import Offer
from webapp.settings import Settings

log = logging.getLogger(__name__)

REFUSED_BODIES = 5
BROKEN_IN_A_ROW = 5
RETRIES_AT_ONCE = 50


def pump() -> bool:
    """Send for about a minute; True when there is more to do, so that the next bell should be rung.

    Never more pumps at a time in one process than MAIL_CONNECTIONS; one too many ends at once.
    """
    with _slot() as free:
        if not free:
            return False
        with transport.relay() as relay, Place() as place:
            return _Pump(relay, place).run()


def send_test(mail: MailText, offer: Offer, to: str, name: str) -> None:
    """Send the mail as it is to one of the staff, now. Its links lead to no customer, so pressing them does nothing.

    :raises DomainError: `relay_down` or `relay_refuses`, with what the relay said.
    """
    nobody = Customer(id=message.NOBODY, email=to.lower(), email_as_given=to, name=name)
    settings: Settings = current_app.config["SETTINGS"]
    letter = FormLetter(mail, offer, 0, token=f"test.{secrets.token_hex(8)}").letter(nobody)
    # No transaction stays open while the relay is waited for.
    db.session.rollback()
    try:
        with transport.relay() as relay:
            relay.send(letter)
    except RelayDown as error:
        raise DomainError(
            "relay_down",
            f"The mail relay at {settings.mail_server} could not take it: {error}. Try again in a moment.",
            503,
        ) from error
    except RelayRefuses as error:
        raise DomainError("relay_refuses", f"The mail relay refused it: {error}. Check the mail settings.") from error


@contextmanager
def _slot() -> Iterator[bool]:
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


class _Pump:
    def __init__(self, relay: transport.Relay, place: Place) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self.relay = relay
        self.place = place
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.deadline = time.monotonic() + times.SLICE
        # By campaign, with the version of the offer it was written from.
        self.letters: dict[int, tuple[int, FormLetter]] = {}
        self.broken = 0
        self.refused_bodies = 0
        self.pace = Pace(settings.mail_per_second)
        # How far the cursor is to be moved before the next body is begun: while the relay reads the next envelope, or
        # before anything is waited for.
        self.owed: int | None = None

    def run(self) -> bool:
        while not self._is_over():
            if not queries.is_work():
                course_actions.finish_campaigns()
                return False
            if not self._reach_relay():
                continue
            taken = batch_actions.claim(self.owner)
            if taken is not None:
                with logs.about(campaign_id=taken.campaign_id, batch_id=taken.batch_id):
                    self._send_batch(taken)
            self._retry_due()
        return not bell.stopping.is_set()

    def _is_over(self) -> bool:
        return bell.stopping.is_set() or time.monotonic() > self.deadline

    def _reach_relay(self) -> bool:
        """A connection, before anything is claimed: while the relay is away nobody is at fault and nothing is due."""
        # No transaction stays open while the relay is waited for.
        db.session.rollback()
        try:
            self.relay.open()
        except RelayRefuses as error:
            course_actions.halt_all(f"the relay refuses us: {error}")
            return False
        except RelayDown as error:
            what = "takes no mails just now" if str(error)[:3].isdigit() else "can't be reached"
            course_actions.say_trouble(f"The mail relay {what} ({error}). It is tried every few seconds.")
            bell.stopping.wait(times.PROBE)
            return False
        course_actions.say_trouble(None)
        return True

    def _send_batch(self, taken: Claim) -> None:
        self.owed = None
        while taken.position < len(taken.ids):
            if self._is_over():
                return batch_actions.release(taken)
            window = batch_actions.open_window(taken)
            if window is None:
                return None
            form = self._form(taken.campaign_id, window.offer_version)
            for recipient in window.recipients:
                taken.position = recipient.index
                if not self._wait_for_turn(taken, window.end - recipient.index):
                    return batch_actions.release(taken)
                if not self._send_one(taken, recipient, form):
                    return None
            taken.position = window.end
        return batch_actions.finish(taken)

    def _wait_for_turn(self, taken: Claim, wanted: int) -> bool:
        """Wait for as long as the rate limit says; False when there is something else to do first."""
        while not bell.stopping.is_set():
            seconds = self.pace.wait(wanted)
            if seconds <= 0:
                return True
            if not self._settled(taken) or not self._holds(taken):
                return False
            # No transaction stays open while nothing is done.
            db.session.rollback()
            bell.stopping.wait(min(seconds, times.RENEW))
        return False

    def _send_one(self, taken: Claim, recipient: Recipient, form: FormLetter) -> bool:
        """One recipient settled; False when this pump is done with the batch, which then is in order."""
        letter = self._write(form, recipient.customer)
        outcome = self._try(
            letter,
            lambda: self._holds(taken),
            lambda: self._settled(taken) and self._holds(taken),
            lambda: self._begin_settling(taken),
        )
        if outcome.kind == "accepted":
            return self._went_out(taken, recipient, outcome)
        # Nothing of this pump's is under way when somebody else may write about the batch.
        self.place.done()
        if outcome.kind in ("stopped", "refused") or (outcome.kind == "trouble" and outcome.at == "connect"):
            # For nobody, if it is somebody else's by now.
            batch_actions.release(taken)
            if outcome.kind == "refused":
                course_actions.halt(taken.campaign_id, _refusal(outcome))
            return False
        self.owed = None
        if not batch_actions.note(taken, recipient, outcome):
            return False
        taken.position = recipient.index + 1
        return self._may_go_on(taken, outcome)

    def _went_out(self, taken: Claim, recipient: Recipient, outcome: Outcome) -> bool:
        self.broken = self.refused_bodies = 0
        self.owed = None
        if recipient.again:
            return batch_actions.note(taken, recipient, outcome)
        taken.sent += 1
        self.owed = recipient.index + 1
        return True

    def _begin_settling(self, taken: Claim) -> None:
        if self.owed is not None:
            self.place.begin(taken, self.owed)
        self.owed = None

    def _settled(self, taken: Claim) -> bool:
        """Everything accepted is written down; False when the batch is somebody else's by now."""
        self._begin_settling(taken)
        return self.place.done()

    def _may_go_on(self, taken: Claim, outcome: Outcome) -> bool:
        """Whether the next recipient may fare better, or the trouble is the relay's or the mail's own."""
        body = outcome.at in ("DATA", "body")
        self.refused_bodies = self.refused_bodies + 1 if outcome.kind == "failed" and body else 0
        self.broken = self.broken + 1 if outcome.kind in ("trouble", "uncertain") else 0
        if self.refused_bodies >= REFUSED_BODIES:
            batch_actions.release(taken)
            course_actions.halt(taken.campaign_id, f"the relay refuses this mail: {outcome.code} {outcome.text}")
            return False
        if outcome.kind == "failed" and course_actions.halt_if_failing(taken):
            batch_actions.release(taken)
            return False
        if self.broken >= BROKEN_IN_A_ROW:
            self.broken = 0
            batch_actions.release(taken, wait=times.REST)
            return False
        return True

    def _try(
        self,
        letter: Letter | Outcome,
        holds: Callable[[], bool],
        may_send: Callable[[], bool],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Outcome:
        """Hand a letter over; when the connection breaks before the body, on a new one, three times in all.

        :param holds: whether it is still ours to send, and for long enough: asked before each step that may take long.
        :param may_send: asked right before the body, see `transport.Relay.deliver`; so is `meanwhile`.
        """
        if isinstance(letter, Outcome):
            return letter
        outcome = Outcome("trouble", None, "not tried", "connect")
        for wait in times.TRIES:
            try:
                if not self.relay.is_open:
                    meanwhile()
                    if not holds():
                        return Outcome("stopped")
                    self.relay.open()
                if not holds():
                    return Outcome("stopped")
                outcome = self.relay.deliver(letter, may_send, meanwhile)
            except RelayRefuses as error:
                return Outcome("refused", None, str(error), "connect")
            except RelayDown as error:
                outcome = Outcome("trouble", None, str(error), "connect")
            if outcome.kind != "trouble":
                return outcome
            if wait:
                bell.stopping.wait(wait)
        return outcome

    def _holds(self, taken: Claim) -> bool:
        """Still ours, for longer than the relay may take to answer, and still to be sent."""
        return time.monotonic() - taken.renewed < times.RENEW or batch_actions.renew(taken)

    def _retry_due(self) -> None:
        for _ in range(RETRIES_AT_ONCE):
            # The turn before the mail: nobody else can have it while it waits for one.
            if self._is_over() or not due_actions.is_any_due() or not self._wait_for_any_turn():
                return
            due = due_actions.claim_due()
            if due is None:
                return
            with logs.about(campaign_id=due.campaign_id):
                if not self._retry(due):
                    return

    def _wait_for_any_turn(self) -> bool:
        while (seconds := self.pace.wait(1)) > 0:
            db.session.rollback()
            if self._is_over():
                return False
            bell.stopping.wait(min(seconds, 1))
        return True

    def _retry(self, due: Due) -> bool:
        letter = self._write(self._form(due.campaign_id), due.customer)

        def holds() -> bool:
            return time.monotonic() - due.renewed < times.RENEW or due_actions.renew(due)

        outcome = self._try(letter, holds, holds)
        if outcome.kind == "stopped":
            due_actions.put_back(due)
        else:
            due_actions.note_due(due, outcome)
        if outcome.kind == "refused":
            course_actions.halt(due.campaign_id, _refusal(outcome))
        return outcome.kind in ("accepted", "failed", "deferred", "uncertain")

    def _write(self, form: FormLetter, customer: Customer) -> Letter | Outcome:
        """The letter, or why this one can't be written; the others go on."""
        try:
            return form.letter(customer)
        except (ValueError, UnicodeError) as error:
            # The error's words may have the address in them, which is nothing for a log.
            log.error("no letter for customer %s: %s", customer.id, type(error).__name__)
            return Outcome("failed", None, f"the mail could not be written: {error}", "letter")
        finally:
            # No transaction stays open while the relay is waited for.
            db.session.rollback()

    def _form(self, campaign_id: int, offer_version: int | None = None) -> FormLetter:
        """The campaign's mail with what the offer says now: a code that was renewed meanwhile is in it.

        :param offer_version: which version of the offer that is, if the caller knows.
        """
        version, form = self.letters.get(campaign_id, (None, None))
        if form is not None and version == offer_version:
            return form
        campaign = queries.by_id(campaign_id)
        offer = offers.by_id(campaign.offer_id) if campaign is not None else None
        if campaign is None or offer is None:
            raise LookupError(f"no campaign {campaign_id}")
        if form is None or version != offer.version:
            form = message.of_campaign(campaign, offer)
            self.letters[campaign_id] = offer.version, form
        return form


def _refusal(outcome: Outcome) -> str:
    return f"the relay refuses us: {f'{outcome.code} ' if outcome.code else ''}{outcome.text}"
