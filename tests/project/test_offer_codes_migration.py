"""The migration of offer codes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import flask_migrate
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer


def test_the_downgrade_keeps_the_current_code_and_drops_aliases(
    make_offer: Callable[..., Offer], downgrade_to: Callable[[str], None]
) -> None:
    offer_id = make_offer("Summer-25", frozen_at=datetime(2026, 1, 1, tzinfo=UTC)).id
    code_actions.renew_code(offer_id, "Winter-26", by="tests")

    downgrade_to("0001")
    before = db.session.execute(text("select code, code_as_written from offer")).all()
    db.session.remove()
    flask_migrate.upgrade()

    assert before == [("WINTER26", "Winter-26")]
    assert [
        (row.code, row.code_as_written, row.closed_at)
        for row in offer_queries.list_codes_by_offer([offer_id])[offer_id]
    ] == [("WINTER26", "Winter-26", None)]
    assert getattr(offer_queries.find_offer_by_code("WINTER26"), "id", None) == offer_id
