"""What a mailing as a whole remembers, and what is logged, names nobody: it outlives those who are erased."""

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


def test_why_a_mailing_is_paused_names_nobody(
    make_offer: Callable[..., Offer], with_settings: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    people = [f"c{n}@example.com" for n in range(6)]
    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        campaign = launch_to(make_offer, people)
        relay.behaviour.body |= {to: f"550 5.7.1 <{to}> content refused" for to in people}
        sender.send_pending_emails()

    now, reason = campaign_status(campaign)
    assert now == "paused"
    assert reason is not None
    assert "… content refused" in reason
    assert "@" not in reason + caplog.text


@pytest.mark.parametrize("said", ["<ada@example.com>", '"ada b"@example.com', "rfc822;ada@[10.0.0.1]", "@" * 5_000])
def test_neither_does_what_keeps_all_mails_from_going_out(make_offer: Callable[..., Offer], said: str) -> None:
    campaign = launch_to(make_offer, ["c0@example.com"])
    db.session.execute(text("update campaign set status = 'sending'"))
    db.session.commit()

    auto_pause.set_delivery_warning(f"no: {said} not now")
    trouble = db.session.scalars(text("select trouble from campaign")).one()
    auto_pause.pause_all_automatically(f"no: {said} not now")

    for words in (trouble, campaign_status(campaign)[1] or ""):
        assert words.startswith("no: …")
        assert "@" not in words
        assert "ada" not in words


def test_a_letter_that_cannot_be_written_is_logged_by_number(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        launch_to(make_offer, ["ada@exa..mple.com"])
        sender.send_pending_emails()

    assert "message for customer" in caplog.text
    assert "ValueError" in caplog.text
    assert "ada@" not in caplog.text
