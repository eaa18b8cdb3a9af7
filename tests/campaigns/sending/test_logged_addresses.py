"""Campaign rows and logs contain no email addresses.

Erasure does not reach them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support import smtp_relay
from tests.support.campaigns import campaign_status, launch_to
from webapp.campaigns.sending import auto_pause, sender
from webapp.core.extensions import db
from webapp.offers.models import Offer


def test_the_pause_reason_contains_no_address(
    make_offer: Callable[..., Offer], with_settings: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    addresses = [f"c{n}@example.com" for n in range(6)]
    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        campaign = launch_to(make_offer, addresses)
        relay.behaviour.body |= {to: f"550 5.7.1 <{to}> content refused" for to in addresses}
        sender.send_pending_emails()

    status, reason = campaign_status(campaign)
    assert status == "paused"
    assert reason is not None
    assert "… content refused" in reason
    assert "@" not in reason + caplog.text


@pytest.mark.parametrize("reply", ["<ada@example.com>", '"ada b"@example.com', "rfc822;ada@[10.0.0.1]", "@" * 5_000])
def test_delivery_warnings_and_pause_reasons_contain_no_address(make_offer: Callable[..., Offer], reply: str) -> None:
    campaign = launch_to(make_offer, ["c0@example.com"])
    db.session.execute(text("update campaign set status = 'sending'"))
    db.session.commit()

    auto_pause.set_delivery_warning(f"no: {reply} not now")
    trouble = db.session.scalars(text("select trouble from campaign")).one()
    auto_pause.pause_all_automatically(f"no: {reply} not now")

    for message in (trouble, campaign_status(campaign)[1] or ""):
        assert message.startswith("no: …")
        assert "@" not in message
        assert "ada" not in message


def test_an_unbuildable_message_is_logged_by_customer_id(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        launch_to(make_offer, ["ada@exa..mple.com"])
        sender.send_pending_emails()

    assert "message for customer" in caplog.text
    assert "ValueError" in caplog.text
    assert "ada@" not in caplog.text
