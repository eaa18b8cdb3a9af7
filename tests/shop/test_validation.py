"""The details of the shop: their limits, and how they are normalised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flask import Flask
from sqlalchemy import select, text

from webapp.accounts.models import AuditEntry
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues
from webapp.shop.validation import validate_shop

LIMITS = {
    "name": 100,
    "sender_name": 100,
    "address": 500,
    "reason": 300,
    "unsubscribe_words": 60,
    "button_words": 60,
    "link_words": 60,
}


def find_errors(values: ShopValues) -> list[tuple[str, str]]:
    try:
        validate_shop(values)
    except InvalidInput as error:
        return [(item.field, item.key) for item in error.errors]
    return []


@pytest.mark.parametrize(("field", "limit"), LIMITS.items())
def test_a_text_may_be_as_long_as_its_limit(app: Flask, field: str, limit: int) -> None:
    valid = replace(ShopValues("Shop"), **{field: "x" * limit})

    assert getattr(validate_shop(valid), field) == "x" * limit
    assert find_errors(replace(valid, **{field: "x" * (limit + 1)})) == [(field, "too_long")]


def test_an_address_may_have_eight_lines_within_its_length(app: Flask) -> None:
    lines = ["x" * 62] * 7 + ["x" * 59]

    assert validate_shop(ShopValues("Shop", address="\r\n".join(f" {line} " for line in lines))).address == (
        "\n".join(lines)
    )
    assert find_errors(ShopValues("Shop", address="\n".join([*lines[:7], "x" * 60]))) == [("address", "too_long")]
    assert find_errors(ShopValues("Shop", address="\r".join("x" * 9))) == [("address", "too_long")]
    assert find_errors(ShopValues("Shop", address="a\nb\0")) == [("address", "bad_character")]


@pytest.mark.parametrize("character", ["\x1b", "\ud800", "\ue000", "\u2028", "\u2029"])
def test_a_character_without_a_meaning_in_emails_is_rejected(app: Flask, character: str) -> None:
    assert find_errors(ShopValues(f"Flowers{character}Shop")) == [("name", "bad_character")]


@pytest.mark.parametrize("field", ["name", "unsubscribe_words", "button_words"])
def test_required_texts_need_a_visible_character(app: Flask, field: str) -> None:
    assert find_errors(replace(ShopValues("Shop"), **{field: " \t"})) == [(field, "missing")]


@pytest.mark.parametrize("field", ["sender_name", "reply_to", "address", "reason", "link_words"])
def test_other_texts_may_be_empty(app: Flask, field: str) -> None:
    assert getattr(validate_shop(replace(ShopValues("Shop"), **{field: " "})), field) == ""


@pytest.mark.parametrize(
    ("reply_to", "expected"),
    [
        (" Shop@Example.com ", "Shop@Example.com"),
        ("Shop@Bücher.example", "shop@xn--bcher-kva.example"),
    ],
)
def test_a_reply_address_is_kept_unless_its_domain_needs_encoding(app: Flask, reply_to: str, expected: str) -> None:
    assert validate_shop(ShopValues("Shop", reply_to=reply_to)).reply_to == expected


@pytest.mark.parametrize(("colour", "expected"), [("B400FF", "#b400ff"), (" #B400fF ", "#b400ff")])
def test_a_colour_is_normalised(app: Flask, colour: str, expected: str) -> None:
    assert validate_shop(ShopValues("Shop", colour=colour)).colour == expected


def test_the_details_are_saved_and_changed_fields_are_in_the_audit_log(app: Flask) -> None:
    shop_actions.save_shop(ShopValues(" Flowers ", reason="", link_words="Open:"), by="ann@example.com")
    db.session.execute(text("update shop set saved_at = '2026-01-01'"))
    shop_actions.save_shop(ShopValues("Flowers", reason="", colour="#000000"), by="bob@example.com")
    shop_actions.save_shop(ShopValues("Flowers", reason="", colour="#000000"), by="cem@example.com")

    assert shop_queries.get_shop() == ShopValues("Flowers", reason="", colour="#000000")
    assert db.session.execute(text("select saved_at > now() - interval '1 hour' from shop")).scalar_one()
    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.actor, entry.action, entry.subject) for entry in entries] == [
        ("ann@example.com", "shop.saved", "Flowers"),
        ("bob@example.com", "shop.saved", "Flowers"),
    ]
    assert entries[1].detail == {
        "changed": {"colour": ["#0f766e", "#000000"], "link_words": ["Open:", "Or open this link:"]}
    }
