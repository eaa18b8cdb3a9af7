"""Looking up the shop. Every room may ask here; nothing else of this room is anybody's business."""

from __future__ import annotations

from dataclasses import fields
from email.utils import parseaddr

from flask import current_app
from sqlalchemy import select

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.shop.models import DEFAULT_REASON, Shop, ShopValues

_FIELD_NAMES = [field.name for field in fields(ShopValues)]


def get_shop() -> ShopValues:
    """The shop as staff have described it, else as the environment does. One look-up by key."""
    row = db.session.execute(
        select(*(getattr(Shop, field) for field in _FIELD_NAMES)).where(Shop.id == 1)
    ).one_or_none()
    return default_shop() if row is None else ShopValues(*row)


def get_shop_name() -> str:
    """What the shop is called."""
    return get_shop().name


def default_shop() -> ShopValues:
    """The shop before staff have said anything: SHOP_NAME and the name in MAIL_DEFAULT_SENDER."""
    settings: Settings = current_app.config["SETTINGS"]
    return ShopValues(
        name=settings.shop_name,
        sender_name=parseaddr(settings.mail_default_sender)[0],
        reason=DEFAULT_REASON.format(name=settings.shop_name),
    )
