"""Attempts to deliver one message, on new connections when one breaks."""

from __future__ import annotations

from collections.abc import Callable

from webapp.campaigns import timing
from webapp.core import task_queue
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.smtp import RelayConnection, RelayRejected, RelayUnavailable, SmtpOutcome


def deliver_with_reconnects(
    relay: RelayConnection,
    message: OutgoingMessage | SmtpOutcome,
    holds_lease: Callable[[], bool],
    may_send: Callable[[], bool],
    on_envelope_sent: Callable[[], object] = lambda: None,
) -> SmtpOutcome:
    """Deliver a message, with up to three attempts.

    A new attempt is made on a new connection when one breaks before the body.

    :param message: the message, or the outcome when it could not be rendered, which is returned.
    :param holds_lease: called before each step that may take long; returns whether the lease is long enough.
    :param may_send: called just before the body, see `RelayConnection.deliver`.
    :param on_envelope_sent: see `RelayConnection.deliver`.
    """
    if isinstance(message, SmtpOutcome):
        return message
    outcome = SmtpOutcome("connection_lost", None, "not tried", "connect")
    for delay in timing.RECONNECT_DELAYS:
        try:
            if not relay.is_open:
                on_envelope_sent()
                if not holds_lease():
                    return SmtpOutcome("aborted")
                relay.open()
            if not holds_lease():
                return SmtpOutcome("aborted")
            outcome = relay.deliver(message, may_send, on_envelope_sent)
        except RelayRejected as error:
            return SmtpOutcome("rejected", None, str(error), "connect")
        except RelayUnavailable as error:
            outcome = SmtpOutcome("connection_lost", None, str(error), "connect")
        if outcome.kind != "connection_lost":
            return outcome
        if delay:
            task_queue.stop_requested.wait(delay)
    return outcome
