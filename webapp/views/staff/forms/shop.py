"""Staff form for the details of the shop."""

from __future__ import annotations

from dataclasses import asdict, fields

from flask_babel import lazy_gettext as _l
from wtforms import ColorField, EmailField, StringField, TextAreaField

from webapp.shop.models import ShopValues
from webapp.views.form_base import PostForm


class ShopForm(PostForm):
    """The details of the shop that customers see.

    They are validated by `webapp.shop.validation`.
    """

    name = StringField(_l("Shop name"), render_kw={"required": True})
    sender_name = StringField(_l("Sender name"))
    reply_to = EmailField(_l("Reply-to address"))
    address = TextAreaField(_l("Postal address"))
    colour = ColorField(_l("Colour"), render_kw={"required": True})
    locale = StringField(_l("Language"), render_kw={"required": True})
    reason = StringField(_l("Reason for the email"))
    unsubscribe_words = StringField(_l("Text of the unsubscribe link"), render_kw={"required": True})
    button_words = StringField(_l("Text of the button"), render_kw={"required": True})
    link_words = StringField(_l("Text before the link address"))

    def fill_from_shop(self, shop: ShopValues) -> None:
        """Fill the form with the current details."""
        for name, value in asdict(shop).items():
            self[name].data = value

    def to_values(self) -> ShopValues:
        """Return the details as entered."""
        return ShopValues(**{field.name: self[field.name].data or "" for field in fields(ShopValues)})
