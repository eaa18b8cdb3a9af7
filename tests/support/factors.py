"""Users with second factors, and their codes."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pyotp
from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import TestResponse

from tests.support.authenticator import SoftwareAuthenticator
from webapp.accounts.factors import passkey_actions, passkeys, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.models import TotpAuthenticator
from webapp.accounts.models import StaffUser
from webapp.core import database_clock
from webapp.core.extensions import db


def code_now(secret: str, steps: int = 0) -> str:
    """Return the code that an app shows now, or some steps of 30 seconds later."""
    now = database_clock.get_database_time()
    db.session.rollback()
    return pyotp.TOTP(secret).at(now + timedelta(seconds=30 * steps))


def add_app(user: StaffUser) -> tuple[str, list[str]]:
    """Set up an authenticator app; return its secret and the recovery codes.

    It is as if that had been done in the previous step, so that the code of the present one is unused.
    """
    secret = totp_actions.start_totp_setup(user.id)
    codes = totp_actions.confirm_totp(user.id, code_now(secret))
    # A code of the previous step would be refused if the next step began now.
    db.session.execute(update(TotpAuthenticator).values(last_used_step=TotpAuthenticator.last_used_step - 1))
    db.session.commit()
    return secret, codes


def add_passkey(user: StaffUser, authenticator: SoftwareAuthenticator, name: str = "Laptop") -> list[str]:
    """Add a passkey; return the recovery codes."""
    known = factor_queries.list_passkeys(user.id)
    options, challenge = passkeys.build_registration_options(user.email, user.name, known)
    return passkey_actions.add_passkey(user.id, name, authenticator.create(options), challenge)


def sign_with_passkey(client: FlaskClient, authenticator: SoftwareAuthenticator) -> str:
    """Return the response of an authenticator to the challenge that a client is given."""
    return authenticator.get(client.post("/sign-in/passkey/options").json)  # type: ignore[arg-type]


def submit_passkey_form(client: FlaskClient, authenticator: SoftwareAuthenticator, page: str) -> TestResponse:
    """Use a passkey in the form of a page that asks a user for theirs."""
    options_url, url = (
        html.unescape(re.search(f' {name}="(/sign-in/passkey[^"]*)"', page)[1])  # type: ignore[index]
        for name in ("data-passkey-get", "action")
    )
    response = authenticator.get(client.post(options_url).json)  # type: ignore[arg-type]
    return client.post(url, data={"credential": response})
