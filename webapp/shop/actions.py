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


def save_shop(values: ShopValues, by: str) -> ShopValues:
    """Save the details of the shop that customers see. Commits.

    Campaigns use them from their next batch on.

    :raises InvalidInput: with an error for each invalid field.
    """
    before = asdict(shop_queries.get_shop())
    columns = asdict(validate_shop(values).without_default_reason(before["name"], shop_queries.default_shop().name))
    db.session.execute(
        insert(Shop)
        .values(id=1, **columns)
        .on_conflict_do_update(index_elements=[Shop.id], set_=columns | {"saved_at": func.now()})
    )
    changed = {field: [before[field], value] for field, value in columns.items() if value != before[field]}
    if changed:
        record_audit_entry(by, "shop.saved", columns["name"], changed=changed)
    db.session.commit()
    return ShopValues(**columns)
