"""The migration of batches: ids are converted to gaps and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from webapp.campaigns.models import Batch, Campaign, decode_gaps, encode_gaps
from webapp.core.extensions import db
from webapp.offers.models import Offer

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
Move = Callable[[str], None]


@pytest.fixture
def migrate(app: Flask) -> Iterator[Move]:
    """Migrates the database to a revision; restores the newest one afterwards."""

    def move(revision: str) -> None:
        db.session.remove()
        if revision == "head":
            flask_migrate.upgrade()
        else:
            flask_migrate.downgrade(revision=revision)

    yield move
    move("head")


def test_upgrade_and_downgrade_keep_batches_and_cancelled_campaigns(
    make_offer: Callable[..., Offer], migrate: Move
) -> None:
    campaign = Campaign(
        offer_id=make_offer().id, subject="s", text="t", status="cancelled", finished_at=NOW, cancelled_at=NOW
    )
    db.session.add(campaign)
    db.session.flush()
    frozen = [[1, 2, 3], [5, 9, 2**40], [2**62]]
    for seq, ids in enumerate(frozen):
        db.session.add(
            Batch(campaign_id=campaign.id, seq=seq, first_id=ids[0], last_id=ids[-1], gaps=encode_gaps(ids), sent=seq)
        )
    db.session.commit()
    migrate("0004")
    before = db.session.execute(text("select customer_ids, sent from batch order by seq")).all()
    migrate("head")
    after = db.session.execute(text("select gaps, sent from batch order by seq")).all()
    cancelled = db.session.execute(text("select cancelled_at from campaign")).scalar_one()
    assert [tuple(row) for row in before] == [(ids, seq) for seq, ids in enumerate(frozen)]
    assert [(decode_gaps(row.gaps), row.sent) for row in after] == [(ids, seq) for seq, ids in enumerate(frozen)]
    assert cancelled == NOW


@pytest.mark.parametrize("ids", [[1], [5, 6, 7], [3, 10, 2**40, 2**62]], ids=["one", "neighbours", "far apart"])
def test_gaps_are_decoded_to_the_encoded_ids(ids: list[int]) -> None:
    assert decode_gaps(encode_gaps(ids)) == ids


def test_gaps_of_consecutive_ids_are_small() -> None:
    assert encode_gaps([5, 6, 8]) == [5, 1, 2]
