"""Which rows are the demonstration's."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import BigInteger, CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model

Part = Literal[
    "customer", "audience", "import", "offer", "campaign", "staff_user", "api_key", "audit", "shop", "filled"
]
PARTS: tuple[Part, ...] = Part.__args__  # type: ignore[attr-defined]


class DemoRow(Model):
    """A row that the demonstration has put in, by its id; `filled` (row 0) stands when all of it is there.

    What hangs on these by a key (codes, batches, redemptions …) needs no row of its own here.
    """

    __tablename__ = "demo_row"
    part: Mapped[str] = mapped_column(primary_key=True)
    row_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    __table_args__ = (CheckConstraint(f"part in ({', '.join(repr(part) for part in PARTS)})", name="part"),)
