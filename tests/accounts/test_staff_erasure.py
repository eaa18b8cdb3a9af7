"""Erasing the account of a former user: no table names them, and their work stays."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from tests.support.accounts import PASSWORD
from tests.support.databases import dump_tables
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture
from tests.support.sessions import TEST_CLIENT
from webapp.accounts import (
    access_counts,
    audit_actions,
    invitation_actions,
    links,
    session_actions,
    session_queries,
    sign_in_actions,
    staff_erasure_actions,
)
from webapp.accounts import actions as account_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.factors import totp_actions
from webapp.accounts.factors.models import TotpAuthenticator
from webapp.accounts.models import AccessCount, AuditEntry, Invitation, StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc.provider import OidcClaims
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.imports import actions as import_actions
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest

EVE = "eve@example.com"


@pytest.fixture
def admin(make_staff_user: Callable[..., StaffUser]) -> StaffUser:
    return make_staff_user("admin", email="grace@example.com")


@pytest.fixture
def eve(
    app: Flask,
    admin: StaffUser,
    make_user_with_password: Callable[..., StaffUser],
    make_customer: MakeCustomer,
    make_offer: MakeOffer,
    import_file: ImportFileFixture,
) -> StaffUser:
    """A disabled user whose email address is in every table that may hold one."""
    eve = make_user_with_password("admin", email=EVE)
    sign_in_actions.sign_in_user(EVE, PASSWORD)
    access_counts.count_accesses([access_counts.Access("sign_in.failed", "192.0.2.7", account=EVE)])
    totp_actions.start_totp_setup(eve.id)
    for number in range(2):
        identity = OidcClaims("https://id.example.com", f"{number}", EVE, True, "Eve Moneypenny", False)
        oidc_actions.link_identity(eve.id, identity)
        if number == 0:
            oidc_actions.unlink_identity(eve.id, identity.issuer)
    audit_actions.record_audit_export("audit log", {"actor": EVE}, by=EVE)
    account_actions.update_profile(eve.id, "Eve Moneypenny", "Europe/Berlin")
    invitation_actions.create_invitation("viewer", "new@example.com", by=EVE)
    make_customer()
    offer = make_offer()
    campaign = launch_actions.launch_announcement(offer.id, EVE).campaign
    preparation.prepare_campaign(campaign.id)
    transitions.pause_campaign(campaign.id, by=EVE)
    db.session.execute(
        text("insert into mail_issue (campaign_id, customer_id, state) values (:id, 1, 'uncertain')"),
        {"id": campaign.id},
    )
    db.session.execute(text("update batch set status = 'done', window_start = 1, window_end = 1"))
    db.session.commit()
    delivery_actions.dismiss_uncertain_deliveries(campaign.id, DeliverySelection("uncertain"), by=EVE)
    redemption = group_commit.redeem(RedemptionRequest(channel="staff", code="SUMMER25", email="ada@example.com"))
    redemption_rollback.roll_back_redemption(redemption.public_id, "mistake", by=EVE)
    import_actions.store_import_file([b"email\nbob@example.com\n"], "customers.csv", "text/csv", "", EVE)
    account_actions.disable_staff_user(eve.id, by=admin.email)
    # As written in a request.
    db.session.add(AuditEntry(actor=EVE, action="profile.changed", subject=EVE, address="198.51.100.77"))
    db.session.commit()
    return eve


def test_no_table_names_an_erased_user(eve: StaffUser, admin: StaffUser) -> None:
    before = dump_tables()
    assert before.count(EVE) > 10
    assert ("Moneypenny" in before, "198.51.100.77" in before) == (True, True)

    label = staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    after = dump_tables()
    assert label == f"erased user {eve.id}"
    assert [secret for secret in (EVE, "Moneypenny", "argon2", "198.51.100.77") if secret in after] == []
    assert after.count(label) >= before.count(EVE)
    assert "new@example.com" in after
    assert db.session.scalars(select(TotpAuthenticator)).all() == []


def test_the_work_of_an_erased_user_stays_under_the_label(eve: StaffUser, admin: StaffUser) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    label = f"erased user {eve.id}"
    actions = db.session.scalars(select(AuditEntry.action).where(AuditEntry.actor == label)).all()
    assert {"staff.profile_changed", "campaign.launched", "campaign.paused", "redemption.undone"} <= set(actions)
    campaign = db.session.execute(text("select launched_by, pause_reason from campaign")).one()
    assert tuple(campaign) == (label, f"paused by {label}")
    assert [record.row.rolled_back_by for record in redemption_queries.list_customer_redemptions(1)] == [label]
    last = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc()).limit(1)).one()
    assert (last.actor, last.action, last.subject) == (admin.email, "staff.erased", label)


def test_nothing_of_another_user_is_changed(admin: StaffUser, make_staff_user: Callable[..., StaffUser]) -> None:
    former = make_staff_user("viewer", email=EVE, disabled_at=func.now())
    for account in (EVE, admin.email):
        access_counts.count_accesses([access_counts.Access("sign_in.failed", "192.0.2.7", account=account)])
        db.session.add(AuditEntry(actor=account, action="profile.changed", subject=account, address="198.51.100.77"))
    session_actions.start_staff_session(admin.id, TEST_CLIENT)
    totp_actions.start_totp_setup(admin.id)

    label = staff_erasure_actions.erase_staff_user(former.id, by=admin.email)

    assert set(db.session.scalars(select(AccessCount.account))) == {label, admin.email}
    changes = select(AuditEntry.actor, AuditEntry.subject, AuditEntry.address).order_by(AuditEntry.id)
    assert db.session.execute(changes.where(AuditEntry.action == "profile.changed")).all() == [
        (label, label, None),
        (admin.email, admin.email, "198.51.100.77"),
    ]
    assert len(session_queries.list_staff_sessions(admin.id)) == 1
    assert db.session.scalars(select(TotpAuthenticator.staff_user_id)).all() == [admin.id]
    assert [user.email for user in account_queries.list_staff_users()] == [admin.email]


def test_an_invitation_of_an_erased_user_is_deleted(eve: StaffUser, admin: StaffUser) -> None:
    """A used one stays without the address."""
    links.create_link("admin", EVE, created_by=admin.id)
    db.session.execute(update(Invitation).where(Invitation.email == EVE).values(used_at=func.now()))
    links.create_link("admin", EVE, created_by=admin.id)
    links.create_link("viewer", "new@example.com", created_by=admin.id)
    db.session.commit()

    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    assert [found.email for found in account_queries.list_unused_invitations()] == ["new@example.com"]
    used = db.session.scalars(select(Invitation.email).where(Invitation.used_at.is_not(None))).all()
    assert None in used
    assert EVE not in used


def test_erasing_a_user_twice_changes_nothing(eve: StaffUser, admin: StaffUser) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)
    before = dump_tables()

    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    # The row is not locked any longer.
    assert not db.session().in_transaction()
    assert dump_tables() == before


def test_an_active_user_cannot_be_erased(admin: StaffUser, make_staff_user: Callable[..., StaffUser]) -> None:
    active = make_staff_user("manager")

    with pytest.raises(DomainError, match="Disable Manager first"):
        staff_erasure_actions.erase_staff_user(active.id, by=admin.email)

    assert account_queries.find_staff_user_by_email("manager@example.com") is not None


def test_the_last_active_administrator_cannot_be_erased(admin: StaffUser) -> None:
    with pytest.raises(DomainError):
        staff_erasure_actions.erase_staff_user(admin.id, by=admin.email)
    with pytest.raises(DomainError) as refusal:
        account_actions.disable_staff_user(admin.id, by=admin.email)
    assert refusal.value.key == "last_admin"


def test_an_erased_user_cannot_be_changed_or_sign_in(eve: StaffUser, admin: StaffUser) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    for action in (account_actions.enable_staff_user, invitation_actions.create_password_reset_link):
        with pytest.raises(NotFound):
            action(eve.id, by=admin.email)
        db.session.rollback()
    for email in (EVE, f"erased user {eve.id}"):
        for password in (PASSWORD, "", "!"):
            with pytest.raises(DomainError, match="email address or password is wrong"):
                sign_in_actions.sign_in_user(email, password)
    with pytest.raises(NotFound):
        staff_erasure_actions.erase_staff_user(999, by=admin.email)


def test_the_row_of_an_erased_user_rejects_personal_data(eve: StaffUser, admin: StaffUser) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)

    for change in ("name = 'Eve'", f"email = '{EVE}'", "disabled_at = null", "password_hash = 'x'"):
        with pytest.raises(DBAPIError, match="ck_staff_user_erased"):
            db.session.execute(text(f"update staff_user set {change} where id = :id"), {"id": eve.id})
        db.session.rollback()


def test_a_person_who_is_invited_again_gets_a_new_account(eve: StaffUser, admin: StaffUser) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)
    token = invitation_actions.create_invitation("viewer", EVE, by=admin.email).rpartition("/")[2]

    joined = invitation_actions.accept_invitation(token, "Eve", EVE, PASSWORD, "UTC")

    assert joined.id != eve.id
    assert sign_in_actions.sign_in_user(EVE, PASSWORD).id == joined.id


@pytest.mark.parametrize(
    ("change", "is_allowed"),
    [
        ("actor = 'erased user {erased}'", True),
        ("subject = 'erased user {erased}'", True),
        ("actor = 'erased user {active}'", False),
        ("actor = 'grace'", False),
        ("subject = ''", False),
        ("actor = 'erased user {erased}', action = 'nothing'", False),
        ("at = now()", False),
        ("detail = '{{}}'", False),
    ],
)
def test_the_audit_log_accepts_only_the_labels_of_erased_users(
    eve: StaffUser, admin: StaffUser, test_settings: Settings, change: str, is_allowed: bool
) -> None:
    staff_erasure_actions.erase_staff_user(eve.id, by=admin.email)
    statement = (
        f"update audit_entry set {change.format(erased=eve.id, active=admin.id)} where action = 'staff.disabled'"
    )
    with psycopg.connect(test_settings.libpq_url) as connection:
        connection.execute(
            "create or replace trigger append_only before update or delete on audit_entry "
            "for each row execute function reject_audit_entry_change()"
        )
        if is_allowed:
            assert connection.execute(statement.encode()).rowcount == 1
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(statement.encode())
        connection.rollback()


# --- pages ----------------------------------------------------------------------------------------


def test_an_admin_erases_a_disabled_user_after_a_confirmation(
    client: FlaskClient, sign_in: Callable[..., FlaskClient], eve: StaffUser
) -> None:
    sign_in("admin")
    page = client.get(f"/settings/people/{eve.id}").text
    confirmation = client.get(f"/settings/people/{eve.id}/erase").text
    assert account_queries.find_staff_user_by_email(EVE) is not None

    response = client.post(f"/settings/people/{eve.id}/erase", follow_redirects=True)

    assert f"/settings/people/{eve.id}/erase" in page
    assert all(part in confirmation for part in (EVE, "Eve Moneypenny", f"erased user {eve.id}"))
    assert response.status_code == 200
    assert f"erased user {eve.id}" in response.text
    assert EVE not in response.text
    assert client.get(f"/settings/people/{eve.id}").status_code == 404
    assert EVE not in client.get("/settings/audit").text
    assert client.get("/campaigns/1").status_code == 200


def test_the_page_of_an_active_user_offers_no_erasure(
    sign_in: Callable[..., FlaskClient], make_staff_user: Callable[..., StaffUser]
) -> None:
    active = make_staff_user("viewer")
    admin = sign_in("admin")

    assert "/erase" not in admin.get(f"/settings/people/{active.id}").text
    for response in (
        admin.get(f"/settings/people/{active.id}/erase"),
        admin.post(f"/settings/people/{active.id}/erase"),
    ):
        assert response.headers["Location"] == f"/settings/people/{active.id}"
    assert account_queries.find_staff_user_by_email("viewer@example.com") is not None


def test_managers_cannot_erase_users(sign_in: Callable[..., FlaskClient], eve: StaffUser) -> None:
    manager = sign_in("manager")

    assert manager.get(f"/settings/people/{eve.id}/erase").status_code == 403
    assert manager.post(f"/settings/people/{eve.id}/erase").status_code == 403
    assert account_queries.find_staff_user_by_email(EVE) is not None
