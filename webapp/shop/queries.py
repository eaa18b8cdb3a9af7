"""Looking up the shop. Every room may ask here; nothing else of this room is anybody's business."""

from __future__ import annotations

from dataclasses import fields
from email.utils import parseaddr

from flask import current_app
from sqlalchemy import select

from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.shop.colours import DARK_SHEET, Tones, tones
from webapp.shop.models import REASON, Shop, ShopValues

__all__ = ["DARK_SHEET", "ShopValues", "Tones", "default", "name", "shop", "tones"]

_FIELDS = [field.name for field in fields(ShopValues)]


def shop() -> ShopValues:
    """The shop as staff have described it, else as the environment does. One look-up by key."""
    row = db.session.execute(select(*(getattr(Shop, field) for field in _FIELDS)).where(Shop.id == 1)).one_or_none()
    return default() if row is None else ShopValues(*row)


def name() -> str:
    """What the shop is called."""
    return shop().name


def default() -> ShopValues:
    """The shop before staff have said anything: SHOP_NAME and the name in MAIL_DEFAULT_SENDER."""
    settings: Settings = current_app.config["SETTINGS"]
    return ShopValues(
        name=settings.shop_name,
        sender_name=parseaddr(settings.mail_default_sender)[0],
        reason=REASON.format(name=settings.shop_name),
    )
