"""The outcome of every reply or fault of a relay, with and without pipelining.

Pipelining is RFC 2920.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support import smtp_relay
from tests.support.campaigns import campaign_status, issue_states, launch_to, send_until_idle
from tests.support.smtp_relay import Relay
from webapp.campaigns import stats_queries, timing
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import sender
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.mail import timeouts
from webapp.offers.models import Offer

RECIPIENT = "c1@example.com"
ALL_ONCE = {"c0@example.com": 1, RECIPIENT: 1, "c2@example.com": 1}
OTHERS_ONCE = {"c0@example.com": 1, "c2@example.com": 1}
NONSENSE = "what? me?"
# These cases wait for the SMTP timeout.
SLOW_HANG = pytest.param("hang", marks=pytest.mark.slow)
STAGES_BEFORE_BODY = ("greeting", "EHLO", "MAIL", "RCPT", "DATA")


@pytest.fixture(params=[True, False], ids=["pipelining", "no pipelining"])
def relay(with_settings: Callable[..., Settings], request: pytest.FixtureRequest) -> Iterator[Relay]:
    with smtp_relay.running() as server:
        server.behaviour.pipelining = request.param
        with_settings(mail_port=server.port)
        yield server


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect without delay and use short timeouts, which a busy machine does not reach."""
    monkeypatch.setattr(timing, "RECONNECT_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(timing, "RELAY_PROBE_INTERVAL", 0.05)
    monkeypatch.setattr(timeouts, "CONNECT_TIMEOUT", 2.0)
    monkeypatch.setattr(timeouts, "REPLY_TIMEOUT", 2.0)


@pytest.fixture
def campaign(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    """A campaign to c0, c1 and c2, ready to be sent."""
    return launch_to(make_offer, [f"c{n}@example.com" for n in range(3)])


def suppressed_addresses() -> list[str]:
    return list(db.session.scalars(text("select email from suppression")))


@pytest.mark.parametrize("at", ["rcpt", "data", "body"])
@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ("550 5.7.1 we do not want this", "failed"),
        ("554 no", "failed"),
        ("450 4.2.1 come again", "deferred"),
        ("452 4.2.2 full", "deferred"),
    ],
)
def test_a_refused_recipient_does_not_stop_the_others(
    campaign: Campaign, relay: Relay, at: str, reply: str, state: str
) -> None:
    getattr(relay.behaviour, at)[RECIPIENT] = reply
    sender.send_pending_emails()
    assert issue_states(campaign) == {RECIPIENT: (state, int(reply[:3]))}
    assert (relay.recipients, relay.connections) == (OTHERS_ONCE, 1)


def test_a_relay_that_wants_a_body_without_recipients_is_disconnected(campaign: Campaign, relay: Relay) -> None:
    relay.behaviour.always_354 = True
    relay.behaviour.rcpt[RECIPIENT] = "550 no"
    sender.send_pending_emails()
    assert issue_states(campaign) == {RECIPIENT: ("failed", 550)}
    assert relay.recipients == OTHERS_ONCE
    # Nothing is sent that the relay would interpret as a body.
    assert relay.aborted_bodies == ([b""] if relay.behaviour.pipelining else [])


@pytest.mark.parametrize("event", ["drop", "hang", NONSENSE, "421 4.3.2 going down"])
def test_a_reply_before_a_connection_loss_is_kept(campaign: Campaign, relay: Relay, event: str) -> None:
    relay.behaviour.rcpt[RECIPIENT] = "550 5.7.1 no"
    relay.behaviour.data[RECIPIENT] = event
    sender.send_pending_emails()
    assert issue_states(campaign) == {RECIPIENT: ("failed", 550)}
    assert relay.recipients == OTHERS_ONCE


@pytest.mark.parametrize(
    ("reply", "is_bounced"),
    [
        ("550 5.1.1 no such user here", True),
        ("553 5.1.3 no such address", True),
        ("550 5.1.10 null MX", True),
        ("550 5.1.8 your domain is none", False),
        ("550 5.2.2 full", False),
        ("450 4.1.1 not yet", False),
        ("550 no such user here", False),
    ],
)
def test_only_replies_about_a_bad_address_suppress_it(
    campaign: Campaign, relay: Relay, reply: str, is_bounced: bool
) -> None:
    relay.behaviour.rcpt[RECIPIENT] = reply
    sender.send_pending_emails()
    assert suppressed_addresses() == ([RECIPIENT] if is_bounced else [])


def test_a_refused_body_does_not_suppress_the_address(campaign: Campaign, relay: Relay) -> None:
    relay.behaviour.body[RECIPIENT] = "550 5.1.1 no such user here"
    sender.send_pending_emails()
    assert (issue_states(campaign), suppressed_addresses()) == ({RECIPIENT: ("failed", 550)}, [])


@pytest.mark.parametrize("event", ["drop", SLOW_HANG, NONSENSE, "421 4.3.2 going down"])
@pytest.mark.parametrize("stage", STAGES_BEFORE_BODY)
def test_a_fault_before_the_body_is_retried_on_a_new_connection(
    campaign: Campaign, relay: Relay, stage: str, event: str
) -> None:
    relay.behaviour.stages[stage] = event
    relay.behaviour.uses[stage] = 1
    send_until_idle()
    assert (issue_states(campaign), campaign_status(campaign)) == ({}, ("done", None))
    assert (relay.recipients, relay.connections) == (ALL_ONCE, 2)


def test_a_deferred_sender_is_retried_on_a_new_connection(campaign: Campaign, relay: Relay) -> None:
    relay.behaviour.stages["MAIL"] = "451 4.7.1 slowly"
    relay.behaviour.uses["MAIL"] = 2
    sender.send_pending_emails()
    assert (issue_states(campaign), relay.recipients, relay.connections) == ({}, ALL_ONCE, 3)


@pytest.mark.parametrize("event", ["drop", "hang", NONSENSE, "421 4.3.2 going down"])
@pytest.mark.parametrize("stage", ["rcpt", "data"])
def test_a_recipient_with_a_permanent_fault_is_deferred(
    campaign: Campaign, relay: Relay, stage: str, event: str
) -> None:
    getattr(relay.behaviour, stage)[RECIPIENT] = event
    sender.send_pending_emails()
    assert issue_states(campaign)[RECIPIENT][0] == "deferred"
    assert relay.recipients == OTHERS_ONCE


@pytest.mark.parametrize("event", ["drop", "hang", NONSENSE])
def test_an_email_without_a_reply_is_uncertain_and_not_resent(campaign: Campaign, relay: Relay, event: str) -> None:
    relay.behaviour.body[RECIPIENT] = event
    sender.send_pending_emails()
    assert issue_states(campaign)[RECIPIENT][0] == "uncertain"
    assert relay.recipients == ALL_ONCE


@pytest.mark.parametrize("event", ["drop", SLOW_HANG, NONSENSE, "421 4.3.2 going down", "451 4.3.0 later"])
@pytest.mark.parametrize("stage", ["greeting", "EHLO"])
def test_failing_connections_affect_no_recipient(
    campaign: Campaign, relay: Relay, monkeypatch: pytest.MonkeyPatch, stage: str, event: str
) -> None:
    monkeypatch.setattr(timing, "SENDER_TIME_LIMIT", 0.5)
    relay.behaviour.stages[stage] = event
    sender.send_pending_emails()
    db.session.refresh(campaign)
    assert (issue_states(campaign), campaign_status(campaign)) == ({}, ("sending", None))
    errors = {"drop": "the relay closed the connection", "hang": "timed out", NONSENSE: f"invalid reply: {NONSENSE}"}
    problem = (
        f"can't be reached ({errors[event]})" if event in errors else f"does not accept email at the moment ({event})"
    )
    assert campaign.delivery_warning == f"The mail relay {problem}. Onecode retries every few seconds."


@pytest.mark.parametrize(
    ("stage", "reply"),
    [("MAIL", "550 5.7.1 not from you"), ("MAIL", "530 5.7.0 sign in first"), ("greeting", "554 no")],
)
def test_a_relay_that_refuses_the_sender_pauses_the_campaign(
    campaign: Campaign, relay: Relay, stage: str, reply: str
) -> None:
    relay.behaviour.stages[stage] = reply
    sender.send_pending_emails()
    assert (issue_states(campaign), relay.recipients) == ({}, {})
    assert campaign_status(campaign) == ("paused", f"the mail relay rejects email from this server: {reply}")


def test_a_wrong_password_pauses_the_campaign(app: Flask, campaign: Campaign, relay: Relay) -> None:
    relay.behaviour.auth = "535 5.7.8 no"
    state = app.extensions["mail"]
    state.username, state.password = "shop", "wrong"
    try:
        sender.send_pending_emails()
    finally:
        state.username = state.password = None
    assert (issue_states(campaign), campaign_status(campaign)) == (
        {},
        ("paused", "the mail relay rejects email from this server: 535 5.7.8 no"),
    )


def test_a_relay_without_required_tls_pauses_the_campaign(app: Flask, campaign: Campaign, relay: Relay) -> None:
    app.extensions["mail"].use_tls = True
    try:
        sender.send_pending_emails()
    finally:
        app.extensions["mail"].use_tls = False
    assert issue_states(campaign) == {}
    assert campaign_status(campaign)[0] == "paused"


@pytest.mark.parametrize("address", ["hyphen@-nowhere-.example", "two words@example.com", "angle>@example.com"])
def test_an_invalid_address_fails_and_does_not_stop_the_others(
    relay: Relay, make_offer: Callable[..., Offer], address: str
) -> None:
    relay.behaviour.rcpt["hyphen@-nowhere-.example"] = "501 5.1.3 no such domain"
    campaign = launch_to(make_offer, ["c0@example.com", address, "c2@example.com"])
    sender.send_pending_emails()
    assert issue_states(campaign)[address][0] == "failed"
    assert (relay.recipients, stats_queries.get_campaign_stats(campaign.id).sent) == (OTHERS_ONCE, 2)
