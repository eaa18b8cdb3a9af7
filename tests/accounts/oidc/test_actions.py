"""Identities: how they are linked, and that an email address never links them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import select

from webapp.accounts import audit_queries, passwords
from webapp.accounts.models import StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc import queries as oidc_queries
from webapp.accounts.oidc.models import OidcIdentity
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db

ISSUER = "https://login.example.com"
MakeUser = Callable[..., StaffUser]


def claims(subject: str = "1", email: str = "ada@example.com", verified: bool = True) -> OidcClaims:
    return OidcClaims(ISSUER, subject, email, verified, "Ada Lovelace", False)


def key_of_refusal(action: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(DomainError) as error:
        action(*arguments)
    db.session.rollback()
    return error.value.key


def test_an_identity_is_found_after_it_was_linked(make_staff_user: MakeUser) -> None:
    user = make_staff_user()
    for _ in range(2):
        oidc_actions.link_identity(user.id, claims())
    assert oidc_actions.find_user_for_claims(claims()) == user
    identity = oidc_queries.find_identity_of_user(user.id, ISSUER)
    assert identity is not None
    assert identity.last_used_at is not None
    entry = audit_queries.find_last_audit_entry("identity.linked", user.email)
    assert entry is not None
    assert entry.detail == {"issuer": ISSUER, "account": "1"}


def test_a_provider_that_lies_about_the_email_address_gets_nothing(make_staff_user: MakeUser) -> None:
    make_staff_user(email="ada@example.com")
    assert key_of_refusal(oidc_actions.find_user_for_claims, claims()) == "identity_unknown"


def test_the_same_subject_of_another_issuer_is_another_identity(make_staff_user: MakeUser) -> None:
    oidc_actions.link_identity(make_staff_user().id, claims())
    other = OidcClaims("https://evil.example", "1", "ada@example.com", True, "", False)
    assert key_of_refusal(oidc_actions.find_user_for_claims, other) == "identity_unknown"


def test_an_identity_has_one_user_and_a_user_one_identity(make_staff_user: MakeUser) -> None:
    user, other = make_staff_user("manager"), make_staff_user("viewer")
    oidc_actions.link_identity(user.id, claims("1"))
    assert key_of_refusal(oidc_actions.link_identity, other.id, claims("1")) == "identity_taken"
    assert key_of_refusal(oidc_actions.link_identity, user.id, claims("2")) == "identity_taken"
    oidc_actions.unlink_identity(user.id, ISSUER)
    oidc_actions.link_identity(other.id, claims("1"))
    oidc_actions.link_identity(user.id, claims("2"))


def test_an_unlinked_identity_is_unknown(make_staff_user: MakeUser) -> None:
    user = make_staff_user()
    oidc_actions.link_identity(user.id, claims())
    for _ in range(2):
        oidc_actions.unlink_identity(user.id, ISSUER)
    assert key_of_refusal(oidc_actions.find_user_for_claims, claims()) == "identity_unknown"


def test_an_administrator_unlinks_the_accounts_of_a_user(make_staff_user: MakeUser) -> None:
    user, other = make_staff_user("manager"), make_staff_user("viewer")
    oidc_actions.link_identity(user.id, claims("1"))
    oidc_actions.link_identity(other.id, claims("2"))
    for _ in range(2):
        oidc_actions.unlink_all_identities(user.id, by="ann@example.com")
    assert key_of_refusal(oidc_actions.find_user_for_claims, claims("1")) == "identity_unknown"
    assert oidc_actions.find_user_for_claims(claims("2")) == other
    entry = audit_queries.find_last_audit_entry("identity.unlinked", user.email)
    assert entry is not None
    assert entry.actor == "ann@example.com"


def test_the_identities_of_others_and_at_other_providers_stay(make_staff_user: MakeUser) -> None:
    user, other = make_staff_user("manager"), make_staff_user("viewer")
    for owner, identity in (
        (user, claims("1")),
        (user, replace(claims("1"), issuer="https://former.example.com")),
        (other, claims("2")),
    ):
        oidc_actions.link_identity(owner.id, identity)
    oidc_actions.find_user_for_claims(claims("1"))
    columns = OidcIdentity.staff_user_id, OidcIdentity.issuer
    used = db.session.execute(select(*columns).where(OidcIdentity.last_used_at.is_not(None))).all()
    assert used == [(user.id, ISSUER)]
    assert [row.issuer for row in oidc_queries.list_identities(user.id)] == [ISSUER, "https://former.example.com"]

    oidc_actions.unlink_identity(user.id, ISSUER)

    remaining = db.session.execute(select(*columns).order_by(OidcIdentity.id)).all()
    assert remaining == [(user.id, "https://former.example.com"), (other.id, ISSUER)]
    assert oidc_queries.find_identity_of_user(user.id, ISSUER) is None


def test_a_disabled_user_is_refused(make_staff_user: MakeUser) -> None:
    user = make_staff_user()
    oidc_actions.link_identity(user.id, claims())
    user.disabled_at = user.created_at
    db.session.commit()
    assert key_of_refusal(oidc_actions.find_user_for_claims, claims()) == "disabled"


class TestInvitations:
    def accept(self, token: str, claims: OidcClaims, email: str = "typed@example.com") -> StaffUser:
        return oidc_actions.accept_invitation_with_identity(token, claims, "Ada", email, "Asia/Tokyo")

    def test_the_new_user_signs_in_with_the_identity(self, make_invitation_token: Callable[..., str]) -> None:
        user = self.accept(make_invitation_token("viewer"), claims())
        assert (user.email, user.role, user.time_zone) == ("typed@example.com", "viewer", "Asia/Tokyo")
        assert oidc_actions.find_user_for_claims(claims()) == user
        # Signing in with a password takes as long as for other users, and fails.
        assert user.password_hash.startswith("$argon2id$")
        assert not passwords.verify_password(user.password_hash, "")

    def test_an_addressed_invitation_needs_its_verified_address(
        self, make_invitation_token: Callable[..., str]
    ) -> None:
        token = make_invitation_token("admin", "ada@example.com")
        for wrong in (claims(verified=False), claims(email="eve@example.com"), claims(email=""), claims(email="ada")):
            assert key_of_refusal(self.accept, token, wrong) == "email_mismatch"
        assert self.accept(token, claims(email=" Ada@Example.com")).email == "ada@example.com"

    def test_a_linked_identity_accepts_no_invitation(
        self, make_staff_user: MakeUser, make_invitation_token: Callable[..., str]
    ) -> None:
        oidc_actions.link_identity(make_staff_user("viewer").id, claims())
        token = make_invitation_token("admin")
        assert key_of_refusal(self.accept, token, claims()) == "identity_taken"
        assert self.accept(token, claims("2")).role == "admin"

    def test_an_identity_that_was_linked_at_the_same_time_leaves_no_user(
        self, make_staff_user: MakeUser, make_invitation_token: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the link would be used up by a user who cannot sign in."""
        oidc_actions.link_identity(make_staff_user("viewer").id, claims())
        token = make_invitation_token("manager")
        with monkeypatch.context() as patch:
            patch.setattr(oidc_queries, "find_user_by_identity", lambda issuer, subject: None)
            assert key_of_refusal(self.accept, token, claims()) == "identity_taken"
        assert db.session.scalars(select(StaffUser.role)).all() == ["viewer"]
        assert self.accept(token, claims("2")).role == "manager"

    def test_a_used_link_is_refused(self, make_invitation_token: Callable[..., str]) -> None:
        token = make_invitation_token("admin")
        self.accept(token, claims())
        with pytest.raises(NotFound):
            self.accept(token, claims("2"))
