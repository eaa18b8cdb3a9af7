"""Commands that create invitations and API keys."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import Result
from flask import Flask

from tests.support.accounts import PASSWORD
from tests.support.factors import add_app
from webapp.accounts import api_key_actions, invitation_actions, sign_in_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.models import StaffUser


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=[*arguments])


def parse_token(result: Result) -> str:
    return result.output.strip().rpartition("/")[2]


def test_the_invite_command_invites_an_admin(app: Flask) -> None:
    token = parse_token(run(app, "invite"))
    assert invitation_actions.accept_invitation(token, "Ann", "ann@example.com", PASSWORD, "UTC").role == "admin"


def test_the_invite_command_resets_a_password(app: Flask, make_user_with_password: Callable[..., StaffUser]) -> None:
    user = make_user_with_password("admin")
    invitation_actions.reset_password(
        parse_token(run(app, "invite", "--reset", "Admin@example.com")), "a brand new one"
    )
    assert sign_in_actions.sign_in_user(user.email, "a brand new one")


def test_a_reset_for_an_unknown_email_fails_with_one_line(app: Flask) -> None:
    result = run(app, "invite", "--reset", "nobody@example.com")
    assert (result.exit_code, str(result.exception)) == (
        1,
        "onecode: there is no user with the email address nobody@example.com",
    )


def test_the_api_key_command_prints_only_the_key(app: Flask) -> None:
    result = run(app, "api-key", "create", "--name", "Shop", "--scopes", "read, redeem")
    assert api_key_actions.authenticate_api_key(f"Bearer {result.output.strip()}").scopes == ["read", "redeem"]


def test_an_unknown_scope_fails_with_one_line(app: Flask) -> None:
    result = run(app, "api-key", "create", "--name", "Shop", "--scopes", "all")
    assert (result.exit_code, str(result.exception)) == (
        1,
        "onecode: Choose one or more of these scopes: read, redeem, manage.",
    )


class TestResetSecondFactor:
    def test_the_factors_of_a_user_are_removed(self, app: Flask, make_staff_user: Callable[..., StaffUser]) -> None:
        user = make_staff_user("admin")
        add_app(user)
        result = run(app, "reset-second-factor", "Admin@example.com", "--yes")
        assert (result.exit_code, result.output) == (
            0,
            "The two-step verification of admin@example.com is reset; their sessions have ended.\n",
        )
        assert not factor_queries.has_second_factor(user.id)

    def test_without_a_confirmation_nothing_is_removed(
        self, app: Flask, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        user = make_staff_user("admin")
        add_app(user)
        assert run(app, "reset-second-factor", "admin@example.com").exit_code == 1
        assert factor_queries.has_second_factor(user.id)

    def test_an_unknown_email_fails_with_one_line(self, app: Flask) -> None:
        result = run(app, "reset-second-factor", "nobody@example.com", "--yes")
        assert str(result.exception) == "onecode: there is no user with the email address nobody@example.com"
