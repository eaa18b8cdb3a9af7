"""Send the emails to users and invited persons that are due."""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy import delete, func, select, update

from webapp.account_emails import messages
from webapp.account_emails.messages import DueEmail
from webapp.accounts.models import AccountEmail
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.mail import smtp
from webapp.mail.smtp import RelayRejected, RelayUnavailable

log = logging.getLogger(__name__)

# Seconds until the next attempts while the relay is unavailable; after the last one the email is given up.
RETRY_DELAYS = (60, 600, 3600)
# Longer than an attempt can take. Afterwards, another worker takes over the email of one that was killed; it may then
# be sent twice.
LEASE = timedelta(minutes=10)


def send_due_emails() -> None:
    """Send all emails that are due, until the relay is unavailable or this process is to stop.

    Workers that call it at the same time share the emails.
    """
    while not task_queue.stop_requested.is_set() and (email := _claim_due_email()):
        try:
            _send(email)
        except RelayUnavailable as error:
            _retry_later(email, error)
            return
        _delete(email)


def _send(email: DueEmail) -> None:
    message = messages.build_account_email(email)
    # No transaction stays open while waiting for the relay.
    db.session.rollback()
    if message is None:
        return
    try:
        with smtp.create_relay_connection() as relay:
            relay.send(message)
    except RelayRejected as error:
        log.warning("relay rejected an email to a user (%s): %s", email.kind, error)


def _claim_due_email() -> DueEmail | None:
    """Claim the email that has been due longest, or return None. Commits.

    Until the lease ends, no other worker gets it.
    """
    oldest = (
        select(AccountEmail.id)
        .where(AccountEmail.due_at <= func.now())
        .order_by(AccountEmail.due_at, AccountEmail.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = db.session.execute(
        update(AccountEmail)
        .where(AccountEmail.id == oldest)
        .values(attempts=AccountEmail.attempts + 1, due_at=func.now() + LEASE)
        .returning(*(getattr(AccountEmail, field) for field in DueEmail._fields))
    ).one_or_none()
    db.session.commit()
    return None if row is None else DueEmail(*row)


def _retry_later(email: DueEmail, error: RelayUnavailable) -> None:
    if email.attempts > len(RETRY_DELAYS):
        log.warning("gave up an email to a user (%s) after %s attempts: %s", email.kind, email.attempts, error)
        _delete(email)
        return
    delay = timedelta(seconds=RETRY_DELAYS[email.attempts - 1])
    db.session.execute(update(AccountEmail).where(AccountEmail.id == email.id).values(due_at=func.now() + delay))
    db.session.commit()


def _delete(email: DueEmail) -> None:
    db.session.execute(delete(AccountEmail).where(AccountEmail.id == email.id))
    db.session.commit()
