"""What the demonstration shop put in is known, so that it can be taken out again."""

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
