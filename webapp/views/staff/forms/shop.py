"""What staff type about the shop."""

from __future__ import annotations

from dataclasses import asdict, fields

from flask_wtf import FlaskForm
from wtforms import ColorField, EmailField, StringField, TextAreaField

from webapp.shop.models import ShopValues


class ShopForm(FlaskForm):
    """What customers see of the shop. What each field may be: values.py."""

    name = StringField("Name of the shop", render_kw={"required": True})
    sender_name = StringField("Sender's name")
    reply_to = EmailField("Answers go to")
    address = TextAreaField("Postal address")
    colour = ColorField("Colour", render_kw={"required": True})
    locale = StringField("Language", render_kw={"required": True})
    reason = StringField("Why they get it")
    unsubscribe_words = StringField("The link that ends the mails", render_kw={"required": True})
    button_words = StringField("The button", render_kw={"required": True})
    link_words = StringField("Before the address of the button")

    def fill_from_shop(self, shop: ShopValues) -> None:
        """Fill in what is known."""
        for name, value in asdict(shop).items():
            self[name].data = value

    def values(self) -> ShopValues:
        """What was typed."""
        return ShopValues(**{field.name: self[field.name].data or "" for field in fields(ShopValues)})
