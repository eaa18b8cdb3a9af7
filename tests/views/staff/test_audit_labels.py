"""Labels of the actions and details in the audit log."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

import webapp
from webapp.accounts import audit
from webapp.core.extensions import db
from webapp.shop import actions as shop_actions
from webapp.shop.models import ShopValues
from webapp.views.staff.audit_labels import ACTION_LABELS, format_detail

RECORDING_FUNCTIONS = {"record_audit_entry", "_record_customer_entry", "_change_status", "insert_audit_entry"}
ACTION = re.compile(r"[a-z_]+\.[a-z_]+")


def recorded_actions() -> Iterator[str]:
    """Yield the actions in calls that record an audit entry."""
    for path in Path(webapp.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in RECORDING_FUNCTIONS:
                constants = (part for value in node.args for part in ast.walk(value) if isinstance(part, ast.Constant))
                yield from (str(part.value) for part in constants if ACTION.fullmatch(str(part.value)))


def test_every_action_has_a_label() -> None:
    # An import is recorded as `customers.import` or `suppressions.import`, by the kind of its rows. `record_sign_in`
    # has an action of its own.
    others = {"customers.import", "suppressions.import", "staff.signed_in"}
    assert {*recorded_actions(), *others} == ACTION_LABELS.keys()


def test_the_page_shows_the_label_and_the_action(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    audit.record_audit_entry("ann", "offer.code_renewed", "WINTER26", before="SUMMER25")
    audit.record_audit_entry("ann", "earlier.action", "thing")
    audit.record_audit_entry("ann", "mail.saved", "11", offer=7)
    audit.record_audit_entry("ann", "campaign.paused", "11")
    audit.record_audit_entry("ann", "campaign.launched", "2026", campaign=11)
    db.session.commit()

    page = " ".join(client.get("/settings/audit").text.split())

    assert '<div class="fw-medium">Code replaced</div> <code>offer.code_renewed</code>' in page
    assert "previously: SUMMER25" in page
    assert '<div class="fw-medium">earlier.action</div>' in page
    # The subject of a launch is a code, which may consist of digits.
    assert page.count('href="/campaigns/11">campaign 11</a>') == 2
    assert "<code>campaign.launched</code> 2026 " in page


def test_changes_of_the_shop_are_shown_as_text(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    shop_actions.save_shop(ShopValues(name="Flowers", address="Road 1\nTown"), by="ann")
    shop_actions.save_shop(ShopValues(name="Tulips", address="Road 1\nTown", reply_to="tom@example.com"), by="ann")

    page = " ".join(unescape(client.get("/settings/audit").text).split())

    assert "changed: name: “Flowers” → “Tulips”; reply-to address: empty → “tom@example.com” <" in page
    assert "postal address: empty → “Road 1 Town”" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("SUMMER25", "SUMMER25"),
        (0, "0"),
        (["name", "ends_at"], "name, ends_at"),
        ([], ""),
        ({"name": ["", "Flowers"]}, "name: empty → “Flowers”"),
        ({"name": "Flowers", "days": [1, 2, 3]}, "name: Flowers; days: 1, 2, 3"),
        (None, "none"),
        (True, "yes"),
        ({"changed": {"required": [False, True]}}, "changed: required: “no” → “yes”"),
    ],
)
def test_details_have_no_notation_of_a_program(app: Flask, value: object, text: str) -> None:
    assert format_detail(value) == text


def test_entries_of_a_customer_link_to_the_customer(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    audit.record_audit_entry("ann", "customer.changed", "customer 33")
    audit.record_audit_entry("ann", "suppression.added", "customer 44", reason="bounced")
    audit.record_audit_entry("ann", "suppression.added", "an address without a customer", reason="bounced")
    db.session.commit()

    page = client.get("/settings/audit").text

    assert re.findall(r"/customers/(\S*?)\"", page.partition("<table")[2]) == ["44", "33"]
