"""Show staff that sending is interrupted because the disk of the database is full."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flask_babel import gettext as _
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from webapp.core.database_health import is_disk_full
from webapp.core.extensions import db

log = logging.getLogger(__name__)

# A short row that is updated in place needs no new page of the table, so that the database usually accepts it although
# its disk is full.
_SET_WARNING = text(
    "update campaign set trouble = :warning "
    "where status in ('preparing', 'sending') and trouble is distinct from :warning"
)


def store_disk_warning() -> None:
    """Show the warning on the pages of the campaigns in progress, in a transaction of its own.

    The next sender that reaches the relay clears it, and so does the preparation of a campaign when it has finished. A
    failure is only logged.
    """
    warning = _("The disk of the database is full. Sending continues automatically when there is space again.")
    try:
        with db.engine.begin() as connection:
            # The caller may hold locks in another transaction.
            connection.exec_driver_sql("set local lock_timeout = '1s'")
            connection.execute(_SET_WARNING, {"warning": warning})
    except SQLAlchemyError as error:
        log.warning("the warning of a full disk was not stored: %s", getattr(error, "orig", error))


@contextmanager
def warn_if_disk_full() -> Iterator[None]:
    """Store the warning when the block fails because the disk is full, and let the error pass."""
    try:
        yield
    except DBAPIError as error:
        if is_disk_full(error):
            # The transaction that failed holds no locks any more.
            store_disk_warning()
        raise
