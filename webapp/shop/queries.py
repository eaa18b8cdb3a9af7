"""Queries for the details of the shop."""

from __future__ import annotations

from dataclasses import fields
from email.utils import parseaddr

from flask import current_app
from sqlalchemy import select

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.shop.models import Shop, ShopValues

_FIELD_NAMES = [field.name for field in fields(ShopValues)]


def get_shop() -> ShopValues:
    """Return the saved details of the shop, or else the defaults."""
    row = db.session.execute(
        select(*(getattr(Shop, field) for field in _FIELD_NAMES)).where(Shop.id == 1)
    ).one_or_none()
    # Earlier versions stored the default sentence with the name that applied before the first change.
    default = default_shop()
    return default if row is None else ShopValues(*row).without_default_reason(default.name)


def default_shop() -> ShopValues:
    """Return the details before any were saved.

    They come from SHOP_NAME and the name in MAIL_DEFAULT_SENDER.
    """
    settings: Settings = current_app.config["SETTINGS"]
    return ShopValues(
        name=settings.shop_name,
        sender_name=parseaddr(settings.mail_default_sender)[0],
    )
