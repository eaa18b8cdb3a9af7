"""Tables for the details of the shop that customers see."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from flask_babel import gettext as _
from sqlalchemy import CheckConstraint, SmallInteger, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model
from webapp.core.settings import DEFAULT_SHOP_NAME

MAX_NAME_LENGTH = 100
MAX_ADDRESS_LENGTH = 500
MAX_SENTENCE_LENGTH = 300
MAX_LABEL_LENGTH = 60

DEFAULT_COLOUR = "#0f766e"
DEFAULT_LOCALE = "en"


def default_reason(shop_name: str) -> str:
    """Return the default sentence in the footer of emails."""
    return str(_("You receive this email because you are a customer of %(shop)s.", shop=shop_name))


def _default_unsubscribe_text() -> str:
    return str(_("Unsubscribe"))


def _default_button_text() -> str:
    return str(_("Redeem now"))


def _default_link_text() -> str:
    return str(_("Or open this link:"))


@dataclass(frozen=True)
class ShopValues:
    """The details of the shop that customers see.

    :param sender_name: the name before the address of the sender; if it is empty, that is the name of the shop.
    :param reply_to: the Reply-To address; if it is empty, replies go to the sender.
    :param address: the postal address, with several lines.
    :param colour: #rrggbb, in lower case.
    :param locale: the locale of recipients without a known one, and the language of the emails.
    :param reason: the sentence in the footer that says why the recipient gets the email; if it is empty, that is the
        default sentence with the name of the shop.
    """

    name: str
    sender_name: str = ""
    reply_to: str = ""
    address: str = ""
    colour: str = DEFAULT_COLOUR
    locale: str = DEFAULT_LOCALE
    reason: str = ""
    unsubscribe_words: str = field(default_factory=_default_unsubscribe_text)
    button_words: str = field(default_factory=_default_button_text)
    link_words: str = field(default_factory=_default_link_text)

    @property
    def sender_display_name(self) -> str:
        """The display name in the From header."""
        return self.sender_name or self.name

    @property
    def is_named(self) -> bool:
        """Whether the shop has a name of its own."""
        return self.name != DEFAULT_SHOP_NAME

    @property
    def footer_reason(self) -> str:
        """The sentence in the footer of emails that says why the recipient gets them."""
        return self.reason or default_reason(self.name)

    def without_default_reason(self, *names: str) -> ShopValues:
        """Return the details without a reason that is the default sentence of the shop or of one of the names.

        A default sentence that was stored would keep a former name of the shop.
        """
        defaults = {default_reason(name) for name in (self.name, *names)}
        return replace(self, reason="") if self.reason in defaults else self


class Shop(Model):
    """The single row with the details of the shop.

    Before it exists, the settings of the environment apply.
    """

    __tablename__ = "shop"
    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    sender_name: Mapped[str]
    reply_to: Mapped[str]
    address: Mapped[str]
    colour: Mapped[str]
    locale: Mapped[str]
    reason: Mapped[str]
    unsubscribe_words: Mapped[str]
    button_words: Mapped[str]
    link_words: Mapped[str]
    saved_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("colour ~ '^#[0-9a-f]{6}$'", name="colour"),
        CheckConstraint("name <> '' and unsubscribe_words <> ''", name="words"),
    )
