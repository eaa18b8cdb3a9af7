"""The migration of the keys of offers."""

from __future__ import annotations

from collections.abc import Callable

import flask_migrate
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.offers.models import Offer


def insert_earlier_offer(code: str) -> int:
    """Insert an offer as the previous release did: before its code."""
    offer_id = db.session.execute(
        text(
            "insert into offer (code, code_as_written, name, discount_type, percent, starts_at) "
            "values (:code, :code, 'Offer', 'percent', 10, now()) returning id"
        ),
        {"code": code},
    ).scalar_one()
    db.session.execute(
        text("insert into offer_code (code, code_as_written, offer_id) values (:code, :code, :id)"),
        {"code": code, "id": offer_id},
    )
    db.session.commit()
    return int(offer_id)


def test_ids_continue_after_the_upgrade_and_the_downgrade(
    make_offer: Callable[..., Offer], downgrade_to: Callable[[str], None]
) -> None:
    first = make_offer("FIRST").id

    downgrade_to("0021")
    second = insert_earlier_offer("SECOND")
    db.session.remove()
    flask_migrate.upgrade()
    third = make_offer("THIRD").id

    assert first < second < third


def test_the_downgrade_checks_codes_at_the_commit_again(
    make_offer: Callable[..., Offer], downgrade_to: Callable[[str], None]
) -> None:
    make_offer("FIRST")

    downgrade_to("0021")

    constraints = db.session.execute(
        text("select conname, condeferred from pg_constraint where conname like 'fk_offer%code%' order by 1")
    ).all()
    assert constraints == [("fk_offer_code_offer_id", False), ("fk_offer_current_code", True)]
