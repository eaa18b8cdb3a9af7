"""Password reset by email, requested by anyone who knows an email address.

Neither the response nor its timing reveals whether there is an account: every request does the same work, and the
worker decides whether there is an email to send (OWASP Forgot Password Cheat Sheet; ASVS 5.0, 6.3.8).
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

from sqlalchemy import insert, select

from webapp.accounts import links
from webapp.accounts import queries as account_queries
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import AccountEmail, StaffUser
from webapp.core import task_queue
from webapp.core.email_addresses import normalise_email
from webapp.core.extensions import db
from webapp.core.rate_limit import TableStorage
from webapp.core.request_origin import get_request_origin

RESET_LINK_LIFETIME = timedelta(hours=1)
# More requests are answered in the same way and ignored: the last email with a link that works is less than an hour
# old. There is no limit per day, with which anyone could prevent a user from resetting their password.
MAX_RESET_EMAILS_PER_HOUR = 3
HOUR_SECONDS = 3600
# The actor in the audit log, since a password reset is requested without signing in.
ANONYMOUS_ACTOR = "anonymous"


def request_password_reset(email: str) -> None:
    """Email a password reset link to the user with an email address, if there is one.

    Does nothing after `MAX_RESET_EMAILS_PER_HOUR` requests for this address.

    :param email: as entered.
    :raises InvalidInput: when the email address is not valid.
    """
    email = normalise_email(email)
    digest = hashlib.sha256(email.encode()).hexdigest()
    if TableStorage("").incr(f"password_reset:{digest}", HOUR_SECONDS) > MAX_RESET_EMAILS_PER_HOUR:
        return
    # The row is written for unknown addresses, too.
    user_id = select(StaffUser.id).where(StaffUser.email == email).scalar_subquery()
    address = get_request_origin().address
    db.session.execute(insert(AccountEmail).values(kind="reset_link", staff_user_id=user_id, address=address))
    db.session.commit()
    task_queue.enqueue("accounts.send_emails")


def create_requested_reset_link(user_id: int, address: str | None, *, is_retry: bool) -> str | None:
    """Create the link for a requested email; None when the user is disabled.

    It works once, within `RESET_LINK_LIFETIME`. Earlier links that were requested stop working. One that an
    administrator has created keeps working, since anyone can request the email.

    :param address: the network address from which it was requested.
    :param is_retry: whether an earlier attempt to send the email has recorded the request in the audit log.
    """
    user = account_queries.lock_staff_user(user_id)
    if user is None:
        return None
    if not is_retry:
        detail = {"address": address} if address else {}
        record_audit_entry(ANONYMOUS_ACTOR, "password.reset_requested", user.email, **detail)
    link = None
    if user.is_active:
        links.delete_reset_links(user.id, expiring_within=RESET_LINK_LIFETIME)
        link = links.create_link(user.role, user.email, user.id, lifetime=RESET_LINK_LIFETIME)
    db.session.commit()
    return link
