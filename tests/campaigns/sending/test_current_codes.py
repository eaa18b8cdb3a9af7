"""The code in each email, also when the code changes during sending."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from tests.support.campaigns import act_after, create_customers, in_context
from tests.support.smtp_relay import Relay
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions.rules import RedemptionRequest

LaunchOffer = Callable[..., Offer]


@pytest.fixture
def launch_campaign(app: Flask, make_offer: Callable[..., Offer]) -> LaunchOffer:
    """Launch an offer whose email is only the code, to customers with ids 1 to n."""

    def launch(n: int, **values: object) -> Offer:
        create_customers(n)
        offer = make_offer("SUMMER25", **values)
        draft_actions.save_offer_draft(offer.id, EmailContent(text="{{ offer.code }}"), "resend", "tests")
        preparation.prepare_campaign(launch_actions.launch_announcement(offer.id, "tests").campaign.id)
        return offer

    return launch


def sent_codes(relay: Relay) -> list[str]:
    """The codes of the emails in the order of sending."""
    return [email.text.split()[0] for email in relay.messages]


def test_a_renewed_code_is_used_from_the_next_window_on(
    app: Flask, launch_campaign: LaunchOffer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_id = launch_campaign(120).id
    act_after(relay, 70, monkeypatch, in_context(app, lambda: code_actions.renew_code(offer_id, "WINTER26", "tests")))

    sender.send_pending_emails()

    assert sent_codes(relay) == ["SUMMER25"] * 100 + ["WINTER26"] * 20


def test_every_code_sent_around_a_renewal_can_be_redeemed(
    app: Flask, launch_campaign: LaunchOffer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_id = launch_campaign(120, personal_code_required=True).id
    act_after(relay, 70, monkeypatch, in_context(app, lambda: code_actions.renew_code(offer_id, "WINTER26", "tests")))

    sender.send_pending_emails()

    redemptions = [
        group_commit.redeem(RedemptionRequest(channel="form", code=code.replace("-", ""), email=email.to))
        for code, email in zip(sent_codes(relay), relay.messages, strict=True)
    ]
    assert len(redemptions) == 120


def test_personal_codes_required_during_sending_are_used_from_the_next_window_on(
    app: Flask, launch_campaign: LaunchOffer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_id = launch_campaign(120).id
    act_after(
        relay,
        70,
        monkeypatch,
        in_context(app, lambda: offer_actions.set_personal_code_required(offer_id, True, "tests")),
    )

    sender.send_pending_emails()

    codes = sent_codes(relay)
    assert codes[:100] == ["SUMMER25"] * 100
    assert codes[100:] == [
        personal_codes.derive_personal_code("SUMMER25", offer_id, customer_id) for customer_id in range(101, 121)
    ]
