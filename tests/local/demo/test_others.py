"""The demonstration knows by id what it has put in: what is others' stays, however much it looks like its own,
and where they have worked before it is not filled."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text

from local.demo import commands as demo_commands
from local.demo import fill, ledger, people, remove
from local.demo import offers as demo_offers
from tests.local.demo.conftest import NOW, all_rows, filled, redeem
from tests.support import live_server, ports
from webapp.accounts import actions as account_actions
from webapp.accounts.models import ApiKey
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.core.settings import ROOT, Settings
from webapp.customers import actions as customer_actions
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Customer, Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.validation import CustomerValues
from webapp.offers.models import Offer
from webapp.redemptions.models import Redemption
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries


def create(email: str, source_id: str | None) -> Customer:
    return customer_actions.create_customer(
        CustomerValues(email, "Somebody", None, source_id), [], by=demo_offers.MANAGER[0]
    )


def receive(filename: str, by: str) -> int:
    """A file that is on its way to the worker."""
    return import_actions.store_import_file([b"email\nmine@shop.example\n"], filename, CSV, "", by)


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("customers", lambda: create("gone@shop.example", "MTH-10001")),
        ("offers", lambda: None),
        ("imports", lambda: receive("customers.csv", by=demo_offers.MANAGER[0])),
        ("audiences", lambda: customer_actions.create_audience("VIP", by="me@shop.example")),
        (
            "addresses not to be mailed",
            lambda: suppression_actions.add_suppression_by_staff("gone@shop.example", "unsubscribed", by="me"),
        ),
        (
            "addresses not to be mailed",
            lambda: suppression_actions.add_suppression_by_staff(
                "former.reader1@letters.example.com", "unsubscribed", by="me"
            ),
        ),
        (
            "settings of the shop",
            lambda: shop_actions.save_shop(replace(shop_queries.get_shop(), name="My shop"), by="me"),
        ),
    ],
)
def test_a_database_with_data_of_its_own_is_refused_in_one_line(
    app: Flask, sink: Settings, offer: Callable[..., Offer], what: str, make: Callable[[], object]
) -> None:
    if what == "offers":
        offer()
    make()
    before = all_rows()

    said = app.test_cli_runner().invoke(args=["demo", "fill"])

    assert said.exit_code == 1
    assert said.output.startswith(f"onecode: this database has {what} of its own")
    assert said.output.count("\n") == 1
    assert all_rows() == before


def test_that_people_have_joined_and_a_key_was_made_is_no_reason_to_refuse(
    app: Flask, sink: Settings, staff_user: Callable[..., Any]
) -> None:
    staff_user("admin")
    account_actions.create_api_key("till", ["read"], by="admin@example.com")

    fill.check(sink)


@pytest.mark.parametrize("verb", ["fill", "remove"])
def test_a_database_that_is_away_is_said_in_one_line(app: Flask, verb: str) -> None:
    environment = live_server.environment(app.config["SETTINGS"])
    environment["DATABASE_URL"] = f"postgresql://onecode:secret-word@127.0.0.1:{ports.free_port()}/onecode"

    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "demo", verb],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("onecode: ")
    assert (done.stdout + done.stderr).count("\n") == 1
    assert "secret-word" not in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C does what it does in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_the_program_is_started_anew_waits_until_it_runs() -> None:
    begun = []

    @demo_commands._uninterrupted()
    def restart() -> None:
        signal.raise_signal(signal.SIGINT)
        begun.append("web")

    with pytest.raises(KeyboardInterrupt):
        restart()

    assert begun == ["web"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_no_demonstration_is_removal_changes_nothing_and_says_so(
    app: Flask, offer: Callable[..., Offer], staff_user: Callable[..., Any]
) -> None:
    offer("TEA15")
    staff_user("manager", email=demo_offers.MANAGER[0])
    create("amelia@shop.example", "MTH-10001")
    create(people.people()[1].email, people.people()[1].source_id)
    redeem("TEA15", "amelia@shop.example")
    receive("customers.csv", by=demo_offers.MANAGER[0])
    for address in ("former.reader1@letters.example.com", people.people()[5].email):
        suppression_actions.add_suppression_by_staff(address, "unsubscribed", by=demo_offers.MANAGER[0])
    before = all_rows()

    said = app.test_cli_runner().invoke(args=["demo", "remove"])

    assert (said.exit_code, said.output) == (0, "There is no demonstration here; nothing was changed.\n")
    assert all_rows() == before


def test_what_was_made_while_signed_in_as_its_manager_stays_however_like_it_it_looks(
    app: Flask, offer: Callable[..., Offer]
) -> None:
    # As long as codes have to be.
    db.session.execute(text("alter table campaign alter column id restart with 4711"))
    filled()
    with_demo = all_rows()
    mara = demo_offers.MANAGER[0]
    mine = db.session.scalars(select(Campaign.id).order_by(Campaign.id)).first()
    # A code that looks like the number of one of its campaigns.
    own_offer = offer(str(mine))
    create("own@shop.example", "MTH-90001")
    receive("newsletter-sign-ups.csv", by=mara)
    customer_actions.create_audience("Mine", by=mara)
    suppression_actions.add_suppression_by_staff("listed@shop.example", "unsubscribed", by=mara)
    suppression_actions.add_suppression_by_staff("former.reader@shop.example", "complained", by=mara)
    draft = draft_actions.save_offer_draft(own_offer.id, EmailContent(), "resend", by=mara)
    launch_actions.launch_campaign(draft.id, by=mara)
    redeem(str(mine), "own@shop.example")
    own = {name: rows - with_demo[name] for name, rows in all_rows().items()}
    # Somebody wants to see a mail of the demonstration's, and gives its customer an address that is on the real list:
    # from then on that is their own customer.
    theirs = db.session.scalars(select(Customer).where(Customer.source_id == "MTH-10001")).one()
    values = CustomerValues("listed@shop.example", theirs.name, theirs.locale, theirs.source_id)
    before = all_rows()
    customer_actions.update_customer(theirs.id, values, [], by="me@shop.example")
    for name in ("customer", "audit_entry"):
        own[name] |= all_rows()[name] - before[name]

    found = remove.remove(None)

    after = all_rows()
    assert {name: own[name] - after[name] for name in after} == {name: set() for name in after}
    assert {name: after[name] - own[name] for name in after} == {name: set() for name in after}
    assert (found["customers"], found["imports"], found["changed"], found["named"]) == (9_999, 4, 1, [mara])


def test_what_its_own_list_made_unmailable_goes_also_under_another_address(app: Flask) -> None:
    filled()
    listed = select(Customer).join(Suppression, Suppression.email == Customer.email)
    listed = listed.where(Suppression.reason == "unsubscribed", Suppression.source == "import")
    theirs = db.session.scalars(listed).all()[0]
    values = CustomerValues("one@shop.example", theirs.name, theirs.locale, theirs.source_id)
    customer_actions.update_customer(theirs.id, values, [], by="me@shop.example")
    assert db.session.get(Suppression, "one@shop.example") is not None
    # Somebody real, who got a mail of the demonstration's and wants no more.
    create("own@shop.example", None)
    source = db.session.scalars(select(Suppression.source).where(Suppression.source != "import")).first()
    db.session.add(Suppression(email="own@shop.example", reason="unsubscribed", source=source))
    db.session.commit()

    remove.remove(None)

    assert db.session.scalars(select(Suppression.email)).all() == ["own@shop.example"]


def test_a_key_of_its_own_stays_where_a_redemption_names_it(app: Flask, offer: Callable[..., Offer]) -> None:
    fill._staff()
    shop, _ = ledger.api_keys(demo_offers.days(NOW)).values()
    customer = create("own@shop.example", None)
    own = {"customer_id": customer.id, "offer_id": offer("OWN-1").id, "channel": "api", "api_key_id": shop}
    db.session.add(Redemption(**own))
    db.session.commit()

    remove.remove(None)

    assert db.session.scalars(select(ApiKey.id)).all() == [shop]


# By what an interrupted fill and its removal do.
UNTOUCHED = ("staff_user", "demo_row", "offer", "campaign", "redemption", "shop", "api_key", "invitation")


def test_of_an_interrupted_fill_only_what_it_had_put_in_is_taken_out(app: Flask) -> None:
    before = all_rows()
    fill._staff()
    with ledger.witnessed():
        for file in people.files():
            fill._import(file)
    # Here before the file was read, and so not of it.
    own = create("own@shop.example", "MTH-90001")
    receive("customers.csv", by=demo_offers.MANAGER[0])
    suppression_actions.add_suppression_by_staff("someone@shop.example", "unsubscribed", by="me@shop.example")
    first = people.people()[0]
    others = db.session.scalars(select(Customer).where(Customer.email == first.email)).one()
    others.created_at -= timedelta(microseconds=1)
    stays = {own.email, others.email}
    db.session.commit()

    remove.remove(None)

    assert set(db.session.scalars(select(Customer.email))) == stays
    assert db.session.scalars(select(Suppression.email)).all() == ["someone@shop.example"]
    assert db.session.scalars(text("select subject from audit_entry where action = 'customers.import'")).all() == [
        "customers.csv"
    ]
    after = all_rows()
    assert [after[name] for name in UNTOUCHED] == [before[name] for name in UNTOUCHED]


def test_its_customers_whom_staff_kept_from_mails_leave_nothing_that_refuses_the_next_fill(
    app: Flask, sink: Settings
) -> None:
    before = all_rows()
    fill._staff()
    with ledger.witnessed():
        fill._import(people.files()[0])
    erased, listed = db.session.scalars(select(Customer).order_by(Customer.id).limit(2)).all()
    for each in (erased, listed):
        suppression_actions.add_suppression_by_staff(each.email, "complained", by="me@shop.example")
    customer_actions.erase_customer(erased.id, by="me@shop.example")

    remove.remove(None)

    assert all_rows() == before
    fill.check(sink)


def test_whom_staff_kept_from_mails_among_their_own_customers_stays_so(app: Flask) -> None:
    fill._staff()
    # The second has an address as the demonstration's list has them.
    for address in ("own@shop.example", "former.reader1@letters.example.com", "erased@shop.example"):
        own = create(address, None)
        suppression_actions.add_suppression_by_staff(address, "unsubscribed", by="me@shop.example")
    customer_actions.erase_customer(own.id, by="me@shop.example")
    before = set(db.session.scalars(select(Suppression.email)))

    remove.remove(None)

    assert set(db.session.scalars(select(Suppression.email))) == before
    assert len(before) == 3


def test_whom_somebody_made_and_erased_before_its_import_had_made_anybody_is_not_taken_for_its_own(app: Flask) -> None:
    fill._staff()
    with ledger.witnessed():
        receive("customers.csv", by=demo_offers.MANAGER[0])
    db.session.execute(text("update customer_import set started_at = now()"))
    db.session.commit()
    own = create("own@shop.example", None).id
    customer_actions.erase_customer(own, by="me@shop.example")

    remove.remove(None)

    assert db.session.scalars(select(Customer.id)).all() == [own]


def test_a_removal_that_was_interrupted_and_is_called_again_leaves_no_mail_and_says_so(
    app: Flask,
    offer: Callable[..., Offer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    fill._staff()
    theirs = offer("TEA15").id
    ledger.own("offer", [theirs])
    campaign = draft_actions.save_offer_draft(theirs, EmailContent(), "resend", by=demo_offers.MANAGER[0])
    for name, number in (("theirs", campaign.id), ("own", campaign.id + 1)):
        (tmp_path / f"{name}.eml").write_bytes(b"Subject: Tea\r\nX-Campaign-Id: %d\r\n\r\nHello\r\n" % number)
    with monkeypatch.context() as patch:
        patch.setattr(remove, "_forget_latecomers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove.remove(tmp_path)
    db.session.rollback()

    demo_commands._say_removed(remove.remove(tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["own.eml"]
    assert "The demonstration is gone; an earlier run had taken it out but for traces." in capsys.readouterr().out
    assert not fill.is_begun()
