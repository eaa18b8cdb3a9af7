"""The migration of the counter of an offer to a table of its own."""

from __future__ import annotations

from collections.abc import Callable

import flask_migrate
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.offers.models import Offer


def test_counters_are_kept_in_both_directions(
    make_offer: Callable[..., Offer], downgrade_to: Callable[[str], None]
) -> None:
    for code, cap, redeemed in (("FREE", None, 0), ("CAPPED", 5, 3), ("UNUSED", 9, 0)):
        make_offer(code, max_redemptions=cap, redeemed=redeemed)

    downgrade_to("0022")
    earlier = db.session.execute(text("select code, max_redemptions, redeemed from offer order by id")).all()
    db.session.execute(text("update offer set redeemed = 4 where code = 'CAPPED'"))
    db.session.commit()
    db.session.remove()
    flask_migrate.upgrade()

    rows = db.session.execute(
        text(
            "select code, c.max_redemptions, redeemed from offer left join offer_counter c on offer_id = id order by id"
        )
    ).all()
    assert earlier == [("FREE", None, 0), ("CAPPED", 5, 3), ("UNUSED", 9, 0)]
    assert rows == [("FREE", None, 0), ("CAPPED", 5, 4), ("UNUSED", 9, 0)]
