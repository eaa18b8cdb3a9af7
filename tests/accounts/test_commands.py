"""The commands that let somebody in."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import Result
from flask import Flask

from tests.support.accounts import PASSWORD
from webapp.accounts import actions as account_actions
from webapp.accounts import api_key_actions
from webapp.accounts.models import StaffUser


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=[*arguments])


def token_of(result: Result) -> str:
    return result.output.strip().rpartition("/")[2]


def test_an_invitation_makes_an_admin(app: Flask) -> None:
    token = token_of(run(app, "invite"))
    assert account_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC").role == "admin"


def test_a_lost_password_can_be_replaced(app: Flask, person: Callable[..., StaffUser]) -> None:
    user = person("admin")
    account_actions.reset_password(token_of(run(app, "invite", "--reset", "Admin@example.com")), "a brand new one")
    assert account_actions.sign_in_user(user.email, "a brand new one")


def test_for_somebody_unknown_it_says_so_in_one_line(app: Flask) -> None:
    result = run(app, "invite", "--reset", "nobody@example.com")
    assert (result.exit_code, str(result.exception)) == (
        1,
        "onecode: there is no user with the email address nobody@example.com",
    )


def test_a_key_is_printed_alone(app: Flask) -> None:
    result = run(app, "api-key", "create", "--name", "Shop", "--scopes", "read, redeem")
    assert api_key_actions.authenticate_api_key(f"Bearer {result.output.strip()}").scopes == ["read", "redeem"]


def test_an_unknown_scope_is_refused_in_one_line(app: Flask) -> None:
    result = run(app, "api-key", "create", "--name", "Shop", "--scopes", "all")
    assert (result.exit_code, str(result.exception)) == (
        1,
        "onecode: Choose one or more of these scopes: read, redeem, manage.",
    )
