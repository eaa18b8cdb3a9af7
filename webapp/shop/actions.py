"""What staff say about the shop."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.actions import record_audit_entry
from webapp.core.extensions import db
from webapp.shop import queries as shop_queries
from webapp.shop.models import Shop, ShopValues
from webapp.shop.validation import validate_shop


def save_shop(given: ShopValues, by: str) -> ShopValues:
    """Keep what customers see of the shop; mails that are still to go out say it from their next batch on.

    :raises Invalid: with an error for each field that can't be taken.
    """
    values = asdict(validate_shop(given))
    before = asdict(shop_queries.get_shop())
    db.session.execute(
        insert(Shop)
        .values(id=1, **values)
        .on_conflict_do_update(index_elements=[Shop.id], set_=values | {"saved_at": func.now()})
    )
    changed = {field: [before[field], now] for field, now in values.items() if now != before[field]}
    if changed:
        record_audit_entry(by, "shop.saved", values["name"], changed=changed)
    db.session.commit()
    return ShopValues(**values)
