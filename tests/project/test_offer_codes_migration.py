"""The migration of the codes, in a table that has offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer


@pytest.fixture
def back_to(app: Flask) -> Iterator[Callable[[str], None]]:
    """Takes the tables to an earlier revision and, when the test is over, to the newest."""

    def move(revision: str) -> None:
        db.session.remove()
        flask_migrate.downgrade(revision=revision)

    yield move
    db.session.remove()
    flask_migrate.upgrade()


def test_an_offer_of_before_keeps_its_code_and_one_of_after_loses_its_aliases(
    make_offer: Callable[..., Offer], back_to: Callable[[str], None]
) -> None:
    offer_id = make_offer("Summer-25", frozen_at=datetime(2026, 1, 1, tzinfo=UTC)).id
    code_actions.renew_code(offer_id, "Winter-26", by="tests")

    back_to("0001")
    before = db.session.execute(text("select code, code_as_written from offer")).all()
    db.session.remove()
    flask_migrate.upgrade()

    assert before == [("WINTER26", "Winter-26")]
    assert [
        (row.code, row.code_as_written, row.closed_at)
        for row in offer_queries.list_codes_by_offer([offer_id])[offer_id]
    ] == [("WINTER26", "Winter-26", None)]
    assert getattr(offer_queries.find_offer_by_code("WINTER26"), "id", None) == offer_id
