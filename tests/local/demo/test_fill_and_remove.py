"""Filling and taking out again: the same each time, whatever interrupts it, and nothing of anybody else's."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text

from local.demo import fill, people, remove
from local.demo.models import DemoRow
from tests.local.demo.conftest import NOW, all_rows, filled, redeem
from tests.support import live_server, ports, smtp_relay
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import AudienceMember, Customer
from webapp.offers.models import Offer
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries

ADDRESSES = "c4fe2183c39ec61cb20dcfc352802738b5ddda96c5d2dab146c27f1ae1c8cac4"
# Of everything that has no secret in it and no clock of today's work.
TOLD = (
    "select email, email_as_given, name, locale, source_id, created_at from customer",
    "select a.name, c.email, m.joined_at from audience_member m join audience a on a.id = m.audience_id"
    " join customer c on c.id = m.customer_id",
    "select code, name, starts_at, ends_at, redeemed, frozen_at, paused_at, version from offer",
    "select code, created_at, closed_at from offer_code",
    "select o.code, c.email, r.redeemed_at, channel, order_id, order_amount, discount_amount, order_metadata"
    " from redemption r join offer o on o.id = r.offer_id join customer c on c.id = r.customer_id",
    "select o.code, c.email, r.redeemed_at, rolled_back_at, rolled_back_by, reason"
    " from rollback r join offer o on o.id = r.offer_id join customer c on c.id = r.customer_id",
    "select o.code, kind, status, total, subject, pause_reason, sent_in_batches, finished_at"
    " from campaign c join offer o on o.id = c.offer_id",
    "select o.code, c.kind, b.seq, b.windows, b.window_start, b.sent, b.status"
    " from batch b join campaign c on c.id = b.campaign_id join offer o on o.id = c.offer_id",
    "select o.code, c.kind, u.email, state, smtp_code, i.text, i.at, attempts from mail_issue i"
    " join campaign c on c.id = i.campaign_id join offer o on o.id = c.offer_id"
    " join customer u on u.id = i.customer_id",
    "select email, reason, at, words from suppression",
)


def told() -> list[list[tuple[Any, ...]]]:
    """The story, without ids: those begin where the last one ended."""
    found = [sorted(map(str, db.session.execute(text(statement)))) for statement in TOLD]
    db.session.rollback()
    return found  # type: ignore[return-value]


def test_its_addresses_are_those_of_the_release_before() -> None:
    """Removal tells by them whose e-mail somebody has changed: a demonstration that an earlier release filled in has
    the addresses of that one. Whoever changes them has removal know the earlier ones, too."""
    every = "\n".join(people.addresses())

    assert hashlib.sha256(every.encode()).hexdigest() == ADDRESSES


def test_two_fills_of_one_day_tell_the_same_whatever_ids_they_get(app: Flask) -> None:
    filled()
    first = told()
    remove.remove(None)

    filled()

    assert [len(rows) for rows in first] == [len(rows) for rows in told()]
    assert first == told()


def test_later_on_the_same_day_there_are_only_more_redemptions(app: Flask) -> None:
    filled(NOW - timedelta(hours=3))
    earlier = set(map(str, db.session.execute(text(TOLD[4]))))
    remove.remove(None)

    filled(NOW)

    assert earlier <= set(map(str, db.session.execute(text(TOLD[4]))))


# Ends the process as kill -9 does, right after a step.
KILLED = """
import importlib, os, signal, sys
from datetime import datetime
from webapp import create_app
from local.demo import fill
module, _, name = sys.argv[1].rpartition(".")
place = importlib.import_module(module)
step = getattr(place, name)
def killed(*given, **more):
    step(*given, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(place, name, killed)
with create_app().app_context(), fill.alone():
    fill.fill(datetime.fromisoformat(sys.argv[2]))
    fill.links()
    fill.finish()
"""
STEPS = (
    # Received in part; read, and in a worker's hand; in the middle of the history; before its hours are counted;
    # launched; about to be told.
    "webapp.customers.imports.actions._store_chunk",
    "webapp.customers.imports.actions._stage_file",
    "local.demo.ledger.shop",
    "local.demo.history.write",
    "local.demo.fill._launch",
    "webapp.accounts.actions.create_password_reset_link",
)


def test_killed_at_any_of_its_steps_and_run_again_it_completes_and_has_nothing_twice(app: Flask) -> None:
    filled()
    whole = told()
    remove.remove(None)

    for step in STEPS:
        command = [sys.executable, "-c", KILLED, step, NOW.isoformat()]
        done = subprocess.run(
            command, env=live_server.environment(app.config["SETTINGS"]), check=False, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        # Nobody waits a minute and a half for the lease of the dead.
        db.session.execute(text("update customer_import set lease_until = now() where status = 'running'"))
        db.session.commit()
    filled()

    assert told() == whole
    assert db.session.scalar(text("select count(*) from customer_import")) == 4
    assert db.session.scalar(text("select count(*) from campaign where status = 'preparing'")) == 1
    assert db.session.scalar(text("select count(*) from invitation")) == 2


def test_a_second_fill_changes_nothing(app: Flask, sink: Settings) -> None:
    filled()
    before = all_rows()

    said = app.test_cli_runner().invoke(args=["demo", "fill"])

    assert "nothing was changed" in said.output
    assert all_rows() == before


def test_data_of_others_that_came_into_an_interrupted_fill_is_not_filled_around(
    app: Flask, sink: Settings, customer: Callable[..., Customer]
) -> None:
    fill._staff()
    customer("real@shop.example")

    with pytest.raises(fill.DemoRefused):
        fill.check(sink)


def test_with_a_real_relay_it_is_refused_in_one_line(app: Flask) -> None:
    said = app.test_cli_runner().invoke(args=["demo", "fill"])

    assert said.exit_code == 1
    assert said.output.startswith("onecode: MAIL_SERVER is set")
    assert db.session.scalar(select(DemoRow)) is None


def test_without_a_sink_that_answers_it_is_refused_in_one_line(
    app: Flask, with_settings: Callable[..., Settings]
) -> None:
    with_settings(uses_mail_sink=True, mail_port=ports.free_port())

    said = app.test_cli_runner().invoke(args=["demo", "fill"])

    assert said.output.startswith("onecode: the mail sink does not answer")
    assert db.session.scalar(select(DemoRow)) is None


def test_removal_leaves_exactly_what_was_there_and_what_was_made_beside_it(
    app: Flask, customer: Callable[..., Customer], offer: Callable[..., Offer], staff_user: Callable[..., Any]
) -> None:
    staff_user("admin")
    before = all_rows()
    filled()
    with_demo = all_rows()
    own_customer, own_offer = customer("own@shop.example"), offer("OWN-1", max_redemptions=5)
    customer("unsubscribed@shop.example", suppressed="unsubscribed")
    draft_actions.save_offer_draft(own_offer.id, EmailContent(), "resend", by="admin@example.com")
    redeem("OWN-1", own_customer.email)
    own = {name: rows - with_demo[name] for name, rows in all_rows().items()}
    # What hangs on the demonstration.
    theirs = db.session.scalars(select(Customer.email).where(Customer.source_id == "MTH-10001")).one()
    redeem("OWN-1", theirs)
    redeem("TEA15", own_customer.email)

    found = remove.remove(None)

    after = all_rows()
    assert {name: after[name] - before[name] - own[name] for name in after} == {name: set() for name in after}
    assert {name: (before[name] | own[name]) - after[name] for name in after} == {name: set() for name in after}
    assert (found["customers"], found["offers"]) == (10_000, 13)
    assert remove.remove(None) == {}


def test_an_audience_that_somebody_else_uses_stays_and_so_do_settings_that_were_changed(
    app: Flask, customer: Callable[..., Customer]
) -> None:
    filled()
    vip = db.session.scalar(text("select id from audience where name = 'VIP'"))
    db.session.add(AudienceMember(audience_id=vip, customer_id=customer("own@shop.example").id))
    db.session.commit()
    shop_actions.save_shop(replace(shop_queries.get_shop(), name="My shop"), by="me@shop.example")

    found = remove.remove(None)

    assert found["kept"] == ["VIP"]
    assert db.session.scalars(text("select name from audience")).all() == ["VIP"]
    assert shop_queries.get_shop_name() == "My shop"


def test_it_is_taken_out_while_a_worker_is_sending_it(
    app: Flask, with_settings: Callable[..., Settings], capfd: pytest.CaptureFixture[str]
) -> None:
    before = all_rows()
    with smtp_relay.running() as server:
        settings = with_settings(mail_port=server.port)
        filled()
        with live_server.worker(settings, MAIL_PER_SECOND="100") as worker:
            until(lambda: len(server.kept) > 60)

            remove.remove(None)

            taken = len(server.kept)
            time.sleep(2)
            assert worker.process.poll() is None
    assert len(server.kept) == taken < 10_000
    # Nothing was taken from under the worker's feet.
    said = "".join(capfd.readouterr())
    assert "worker started" in said
    assert "Traceback" not in said
    assert all_rows() == before


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
