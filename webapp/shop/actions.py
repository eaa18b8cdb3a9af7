"""Save the details of the shop."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts.audit import record_audit_entry
from webapp.core.extensions import db
from webapp.shop import queries as shop_queries
from webapp.shop.models import Shop, ShopValues
from webapp.shop.validation import validate_shop


def save_shop(given: ShopValues, by: str) -> ShopValues:
    """Save the details of the shop that customers see; campaigns use them from their next batch on.

    :raises InvalidInput: with an error for each invalid field.
    """
    values = asdict(validate_shop(given))
    before = asdict(shop_queries.get_shop())
    db.session.execute(
        insert(Shop)
        .values(id=1, **values)
        .on_conflict_do_update(index_elements=[Shop.id], set_=values | {"saved_at": func.now()})
    )
    changed = {field: [before[field], value] for field, value in values.items() if value != before[field]}
    if changed:
        record_audit_entry(by, "shop.saved", values["name"], changed=changed)
    db.session.commit()
    return ShopValues(**values)
