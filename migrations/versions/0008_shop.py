"""Store the shop's details for emails and customer pages; until staff save them, the settings apply as before."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

WORDS = (
    "name",
    "sender_name",
    "reply_to",
    "address",
    "colour",
    "locale",
    "reason",
    "unsubscribe_words",
    "button_words",
    "link_words",
)


def upgrade() -> None:
    op.create_table(
        "shop",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        *(sa.Column(word, sa.Text(), nullable=False) for word in WORDS),
        sa.Column("saved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_shop_one_row")),
        sa.CheckConstraint("colour ~ '^#[0-9a-f]{6}$'", name=op.f("ck_shop_colour")),
        sa.CheckConstraint("name <> '' and unsubscribe_words <> ''", name=op.f("ck_shop_words")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shop")),
    )


def downgrade() -> None:
    op.drop_table("shop")
