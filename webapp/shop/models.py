"""What customers see of the shop, in mails and on their pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CheckConstraint, SmallInteger, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model

NAME_MAX = 100
ADDRESS_MAX = 500
SENTENCE_MAX = 300
WORDS_MAX = 60

DEFAULT_COLOUR = "#0f766e"
DEFAULT_LOCALE = "en"
DEFAULT_REASON = "You get this mail because you are a customer of {name}."
DEFAULT_UNSUBSCRIBE_WORDS = "No more mails like this"
DEFAULT_BUTTON_WORDS = "Use it now"
DEFAULT_LINK_WORDS = "Or open this address:"


@dataclass(frozen=True)
class ShopValues:
    """The shop as customers see it.

    :param reply_to: where answers go; empty, they go to the sender.
    :param address: the postal address, several lines.
    :param colour: #rrggbb, small letters.
    :param locale: of recipients who have none that is known, and the language that mails are written in.
    :param reason: the sentence in the foot that says why somebody gets this; may be empty.
    """

    name: str
    sender_name: str = ""
    reply_to: str = ""
    address: str = ""
    colour: str = DEFAULT_COLOUR
    locale: str = DEFAULT_LOCALE
    reason: str = ""
    unsubscribe_words: str = DEFAULT_UNSUBSCRIBE_WORDS
    button_words: str = DEFAULT_BUTTON_WORDS
    link_words: str = DEFAULT_LINK_WORDS


class Shop(Model):
    """The one row of what staff have said about the shop; none before they have, then the environment is asked."""

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
