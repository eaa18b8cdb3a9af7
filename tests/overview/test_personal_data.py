"""The export of a customer's personal data is complete, consistent and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Column, Integer, MetaData, Table, select, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture
from tests.support.sql_statements import recorded_statements
from webapp.accounts import access_counts, api_key_actions
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign
from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.core.formatting import format_rfc3339
from webapp.core.request_origin import RequestOrigin
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience, AudienceMember, Customer, Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.validation import CustomerValues
from webapp.overview import personal_data
from webapp.redemptions import group_commit
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import Order, RedemptionRequest, StaffEntry
from webapp.views.api.schemas.personal_data import PersonalDataOut, stream_personal_data_json

# --- every table is reviewed ----------------------------------------------------------------------

# Columns with data about a customer, by table: where the export has them, or why it does not. A new column of these
# tables, or a new table with a customer or an email address, has to be added here and to docs/privacy.md; if it has
# personal data, also to webapp/overview/personal_data.py.
Review = dict[str, str]


def review(where: str, names: str) -> Review:
    return dict.fromkeys(names.split(), where)


PROGRESS = "the order or progress of the program's own writes"
REDEMPTION = review(
    "redemptions",
    """customer_id offer_id redeemed_at channel api_key_id order_id order_amount order_currency discount_amount
    order_metadata idempotency_key body_hash""",
) | review("about staff: who entered or undid it", "staff_user_id")
REVIEWED: dict[str, Review] = {
    "customer": review("customer", "id email email_as_given name locale source_id created_at active_at")
    | review("erased customers have no export", "erased_at"),
    "suppression": review("suppressions", "email reason at source words"),
    "audience_member": review("audiences", "audience_id customer_id joined_at"),
    "redemption": REDEMPTION,
    "rollback": REDEMPTION | review("redemptions", "rolled_back_at rolled_back_by reason"),
    "mail_issue": review("emails", "campaign_id customer_id state smtp_code text next_at attempts doubt at")
    | review(PROGRESS, "epoch")
    | review("computed from smtp_code and text", "cause"),
    "batch": review("emails", "id campaign_id seq first_id last_id gaps window_start window_end windows")
    | review(PROGRESS, "status owner epoch lease_until not_before sent"),
    "import_rejection": review("rejected_rows", "import_id line code detail row") | review(PROGRESS, "id"),
    "audit_entry": review("audit_entries", "at action subject detail")
    | review("the kind of actor only", "actor")
    | review("about staff and API clients; entries of customers have none", "address staff_session_id api_key_id")
    | review(PROGRESS, "id"),
    "import_chunk": review("deleted after seconds to minutes, when the file was processed", "import_id seq data"),
    "staff_user": review("about staff", "email"),
    "staff_session": review("about staff", "client_address second_factor_at"),
    "invitation": review("about staff", "email emailed_token_hash"),
    "oidc_identity": review("about staff", "subject"),
    "account_email": review("about staff", "address"),
    "access_count": review("views", "period kind subject n")
    | review("about staff", "account address staff_session_id")
    | review(PROGRESS, "id"),
    "address_customers": review("keyed hashes of email addresses, for an hour", "address customers"),
    "address_excess": review("network addresses, for an hour", "address"),
    "campaign": review("the text of an email to all recipients", "subject"),
    "shop": review("about the shop", "address"),
}
# Tables all of whose columns are reviewed.
COMPLETE = REVIEWED.keys() - {
    *("staff_user", "staff_session", "invitation", "oidc_identity", "account_email"),
    *("address_customers", "address_excess", "campaign", "shop"),
}


def _may_refer_to_a_customer(column: Column[Any]) -> bool:
    has_customer_key = any(key.column.table.name == "customer" for key in column.foreign_keys)
    return has_customer_key or bool(re.search("customer|email|recipient|account|address|subject|actor", column.name))


def _unreviewed(tables: list[Table]) -> list[str]:
    return [
        f"{table.name}.{column.name}"
        for table in tables
        for column in table.columns
        if (table.name in COMPLETE or _may_refer_to_a_customer(column))
        and column.name not in REVIEWED.get(table.name, {})
    ]


def test_every_column_about_a_customer_is_reviewed() -> None:
    assert _unreviewed(db.metadata.sorted_tables) == []


@pytest.mark.parametrize("name", ["customer_id", "email", "contact_address"])
def test_a_new_table_with_a_customer_or_an_address_is_not_reviewed(name: str) -> None:
    wishes = Table("wish", MetaData(), Column("id", Integer), Column(name, Integer))

    assert _unreviewed([wishes]) == [f"wish.{name}"]


def test_the_reviewed_columns_exist() -> None:
    reviewed = {f"{table}.{column}" for table, columns in REVIEWED.items() for column in columns}
    existing = {f"{table.name}.{column.name}" for table in db.metadata.sorted_tables for column in table.columns}
    assert reviewed - existing == set()


def test_the_sections_named_by_the_review_exist() -> None:
    sections = {where for table in COMPLETE for where in REVIEWED[table].values() if " " not in where}
    assert sections == PersonalDataOut.model_fields.keys() - {"exported_at"}


# --- contents -------------------------------------------------------------------------------------


@pytest.fixture
def ada(make_offer: MakeOffer, import_file: ImportFileFixture, app: Flask) -> Customer:
    """Ada with personal data in every table that may hold any, and Bob, of whom nothing may be exported."""
    long_name = "Lovelace " * 30
    import_file(
        "email,name,source_id,locale,audience\nada@example.com,Ada Lovelace,C-1815,en-GB,Poets\n"
        f"bob@example.com,Bob Babbage,C-2,,Engineers\nADA@example.com,{long_name},,,\nbob@example.com,{long_name},,,\n"
    )
    found = customer_queries.find_customer_by_email("ada@example.com")
    poets = customer_queries.find_audience_by_name("Poets")
    assert found is not None
    assert poets is not None
    customer_actions.update_customer(
        found.id, CustomerValues("Ada@Example.com", "Ada Lovelace", "en-GB", "C-1815"), [poets.id], by="eve@example.com"
    )
    for code in ("SUMMER25", "WINTER"):
        offer = make_offer(code, name=code.title(), max_redemptions=10)
        campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
        preparation.prepare_campaign(campaign.id)
        redemption = group_commit.redeem(
            RedemptionRequest(
                channel="api",
                code=code,
                email="ada@example.com",
                order=Order(f"A-{code}", 4999, "EUR"),
                metadata={"gift": "poems"},
                api_key_id=1,
                idempotency_key="key-of-ada",
                body_hash=b"hash",
            )
        )
    redemption_rollback.roll_back_redemption(redemption.public_id, "Returned goods", by="eve@example.com")
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text) "
            "values (1, :id, 'failed', 550, '5.1.1 <ada@example.com> unknown')"
        ),
        {"id": found.id},
    )
    db.session.commit()
    suppression_actions.add_suppression_by_staff("ada@example.com", "complained", "eve@example.com", "called us")
    for customer_id, accounts in ((found.id, ("eve@", "eve@", "grace@")), (found.id + 1, ("eve@",))):
        access_counts.count_accesses(
            access_counts.Access("customer.viewed", "192.0.2.7", account, subject=f"customer {customer_id}")
            for account in accounts
        )
    return found


def export(customer: Customer) -> dict[str, Any]:
    data = personal_data.load_personal_data(customer.id)
    assert data is not None
    document = b"".join(stream_personal_data_json(data))
    PersonalDataOut.model_validate_json(document)
    parsed: dict[str, Any] = json.loads(document)
    return parsed


def test_the_export_has_everything_that_is_stored(ada: Customer) -> None:
    exported = export(ada)

    customer = exported["customer"]
    assert (customer["email"], customer["normalised_email"]) == ("Ada@Example.com", "ada@example.com")
    assert (customer["name"], customer["locale"], customer["source_id"]) == ("Ada Lovelace", "en-GB", "C-1815")
    assert [audience["name"] for audience in exported["audiences"]] == ["Poets"]
    undone, current = exported["redemptions"]
    assert (current["code"], current["order"]["id"], current["metadata"]) == (
        "SUMMER25",
        "A-SUMMER25",
        {"gift": "poems"},
    )
    assert (current["discount_amount"], current["request_hash"]) == (1250, b"hash".hex())
    assert (current["idempotency_key_hash"], current["rolled_back_at"]) == ("key-of-ada", None)
    assert (undone["code"], undone["rollback_reason"], undone["rolled_back_by"]) == (
        "WINTER",
        "Returned goods",
        "staff",
    )
    waiting, failed = exported["emails"]
    assert (waiting["offer"], waiting["status"]) == ("Winter", "waiting")
    campaign = db.session.get_one(Campaign, waiting["campaign"])
    assert (waiting["kind"], waiting["subject"], waiting["code"], waiting["launched_at"]) == (
        "announcement",
        campaign.subject,
        "WINTER",
        format_rfc3339(campaign.launched_at),
    )
    assert (failed["status"], failed["reply_code"], failed["reply"]) == (
        "failed",
        550,
        "5.1.1 <ada@example.com> unknown",
    )
    assert [(entry["address"], entry["reason"], entry["detail"]) for entry in exported["suppressions"]] == [
        ("plain", "complained", "called us")
    ]
    assert [row["row"].partition(",")[0] for row in exported["rejected_rows"]] == ["ADA@example.com"]
    assert [(entry["action"], entry["by"]) for entry in exported["audit_entries"]] == [
        ("customer.changed", "staff"),
        ("redemption.undone", "staff"),
        ("suppression.added", "staff"),
    ]
    assert [(views["action"], views["count"]) for views in exported["views"]] == [("customer.viewed", 3)]


def test_the_export_has_no_data_of_others(ada: Customer) -> None:
    exported = json.dumps(export(ada))

    assert [secret for secret in ("bob", "Babbage", "C-2", "Engineers", "eve@") if secret in exported] == []


@pytest.mark.parametrize("kind", ["json", "page"])
def test_the_export_names_no_staff(
    ada: Customer, sign_in: Callable[..., FlaskClient], make_staff_user: Callable[..., StaffUser], kind: str
) -> None:
    client, eve = sign_in("admin"), make_staff_user("manager", email="eve@example.com")
    staff = StaffEntry(eve.id, eve.email, RequestOrigin())
    group_commit.redeem(RedemptionRequest(channel="staff", code="WINTER", email="ada@example.com", staff=staff))
    db.session.execute(
        text(
            "update mail_issue set state = 'left', smtp_code = null, text = 'late; lost; dismissed by eve@example.com'"
        )
    )
    db.session.commit()

    path = {"json": "personal-data.json", "page": "personal-data/report"}[kind]
    document = client.get(f"/customers/{ada.id}/{path}").text

    assert "eve@example.com" not in document
    assert "late; lost" in document
    if kind == "json":
        assert [item["entered_by"] for item in json.loads(document)["redemptions"]] == ["staff", None, None]


def test_a_suppression_under_the_hash_is_exported(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", suppressed="unsubscribed")
    db.session.execute(text("update suppression set email = 'sha256:' || encode(sha256('ada@example.com'), 'hex')"))
    db.session.commit()

    assert [entry["address"] for entry in export(ada)["suppressions"]] == ["hash"]


def test_suppressions_are_in_the_order_of_time_and_audiences_in_that_of_their_names(
    make_customer: MakeCustomer,
) -> None:
    ada = make_customer("ada@example.com", suppressed="unsubscribed")
    hashed = Suppression(email=hash_email("ada@example.com"), reason="bounced", source="tests")
    audiences = [Audience(id=key, name=name) for key, name in ((5, "Guests"), (7, "VIPs"), (6, "Alumni"))]
    db.session.add_all([hashed, *audiences])
    db.session.flush()
    for audience_id in (5, 6, 7):
        db.session.add(AudienceMember(audience_id=audience_id, customer_id=ada.id))
    hashed.at = datetime(2026, 1, 1, tzinfo=UTC)
    db.session.commit()

    exported = export(ada)

    assert [entry["reason"] for entry in exported["suppressions"]] == ["bounced", "unsubscribed"]
    assert [audience["name"] for audience in exported["audiences"]] == ["Alumni", "Guests", "VIPs"]


@pytest.mark.parametrize(
    ("actor", "kind"),
    [
        ("the customer", "customer"),
        ("API key till", "api"),
        ("key till", "api"),
        ("eve@example.com", "staff"),
        ("erased user 7", "staff"),
        ("command line", "system"),
    ],
)
def test_actors_are_exported_by_kind(actor: str, kind: str) -> None:
    assert personal_data.classify_actor(actor) == kind


def test_erased_and_unknown_customers_have_no_export(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    assert personal_data.load_personal_data(ada.id) is None
    assert personal_data.load_personal_data(999) is None


def test_the_export_is_one_snapshot(ada: Customer) -> None:
    data = personal_data.load_personal_data(ada.id)
    assert data is not None
    with db.engine.begin() as connection:
        connection.execute(text("delete from redemption"))
        connection.execute(text("delete from rollback"))

    exported = json.loads(b"".join(stream_personal_data_json(data)))

    assert len(exported["redemptions"]) == 2
    assert export(ada)["redemptions"] == []


# --- large data -----------------------------------------------------------------------------------

MANY = 5000
_MANY_OFFERS = """
with made as (
  insert into offer (code, code_as_written, name, discount_type, percent, starts_at)
  select 'CODE' || n, 'CODE' || n, 'Offer ' || n, 'percent', 25, now() from generate_series(1, :many) n
  returning id, code
), counters as (
  insert into offer_counter (offer_id) select id from made
)
insert into offer_code (code, code_as_written, offer_id) select code, code, id from made
"""
_MANY_REDEMPTIONS = "insert into redemption (customer_id, offer_id, channel) select :id, id, 'link' from offer"


@pytest.fixture
def busy_customer(make_customer: MakeCustomer) -> Iterator[Customer]:
    """A customer with `MANY` redemptions."""
    customer = make_customer("ada@example.com", source_id="C-1")
    db.session.execute(text(_MANY_OFFERS), {"many": MANY})
    db.session.execute(text(_MANY_REDEMPTIONS), {"id": customer.id})
    db.session.commit()
    yield customer
    db.session.rollback()


def test_the_export_is_streamed_row_by_row(busy_customer: Customer) -> None:
    data = personal_data.load_personal_data(busy_customer.id)
    assert data is not None
    built: list[object] = []

    def count(redemptions: Iterator[object]) -> Iterator[object]:
        for redemption in redemptions:
            built.append(redemption)
            yield redemption

    object.__setattr__(data, "redemptions", count(data.redemptions))
    chunks = stream_personal_data_json(data)
    first = next(chunks)

    assert len(first) < 100_000
    assert 0 < len(built) < 1000
    sizes = [len(chunk) for chunk in chunks]
    assert len(built) == MANY
    assert max(sizes) < 100_000


def test_the_number_of_statements_does_not_depend_on_the_number_of_campaigns(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    ada = make_customer("ada@example.com")

    def count_statements() -> int:
        with recorded_statements() as recorded:
            export(ada)
        return len(recorded)

    def launch(codes: list[str]) -> None:
        for code in codes:
            preparation.prepare_campaign(launch_actions.launch_announcement(make_offer(code).id, "tests").campaign.id)

    launch(["CODE1"])
    before = count_statements()
    launch(["CODE2", "CODE3", "CODE4", "CODE5"])

    assert count_statements() == before
    assert len(export(ada)["emails"]) == 5


# --- interfaces -----------------------------------------------------------------------------------


def exports_of(customer: Customer) -> list[tuple[str, object]]:
    db.session.rollback()
    statement = select(AuditEntry).where(
        AuditEntry.action == "customer.personal_data_exported", AuditEntry.subject == f"customer {customer.id}"
    )
    return [(entry.actor, entry.detail) for entry in db.session.scalars(statement)]


def test_an_admin_downloads_the_json(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    admin = sign_in("admin")

    response = admin.get(f"/customers/{ada.id}/personal-data.json")

    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert response.headers["Content-Disposition"] == f'attachment; filename="customer-{ada.id}-personal-data.json"'
    assert response.headers["Cache-Control"] == "no-store"
    assert response.get_json()["customer"]["email"] == "Ada@Example.com"
    assert response.get_json()["audit_entries"][-1]["action"] == "customer.personal_data_exported"
    assert exports_of(ada) == [("admin@example.com", {"form": "json"})]


def test_an_admin_opens_the_page_for_the_person(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    admin = sign_in("admin")
    explanation = admin.get(f"/customers/{ada.id}/personal-data").text
    report = f"/customers/{ada.id}/personal-data/report"

    response = admin.get(report)

    assert report in explanation
    assert f"/customers/{ada.id}/personal-data" in admin.get(f"/customers/{ada.id}").text
    assert response.status_code == 200
    for part in ("Ada@Example.com", "Poets", "€49.99", "poems", "Returned goods", "5.1.1", "UTC", "ADA@example.com,"):
        assert part in response.text, part
    assert "eve@" not in response.text
    assert "End of the export." in response.text
    assert exports_of(ada) == [("admin@example.com", {"form": "page"})]
    assert "form: page" in response.text


def test_the_page_is_streamed(sign_in: Callable[..., FlaskClient], busy_customer: Customer) -> None:
    response = sign_in("admin").get(f"/customers/{busy_customer.id}/personal-data/report", buffered=False)

    sizes = [len(chunk) for chunk in response.iter_encoded()]
    response.close()
    assert len(sizes) > 5
    assert max(sizes) < 200_000


@pytest.mark.parametrize("ending", ["", "/report", ".json"])
def test_only_admins_may_export(staff: FlaskClient, ada: Customer, ending: str) -> None:
    response = staff.get(f"/customers/{ada.id}/personal-data{ending}")

    assert response.status_code == 403
    assert "personal-data" not in staff.get(f"/customers/{ada.id}").text
    assert exports_of(ada) == []


@pytest.mark.parametrize("ending", ["", "/report", ".json"])
def test_an_erased_customer_has_no_export_page(sign_in: Callable[..., FlaskClient], ada: Customer, ending: str) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    assert sign_in("admin").get(f"/customers/{ada.id}/personal-data{ending}").status_code == 404


def test_the_api_exports_by_source_id_and_by_email(api: FlaskClient, ada: Customer) -> None:
    # A streamed response has to be read before the next request.
    by_source_id = api.get("/api/v1/personal-data/C-1815").get_json()
    by_email = api.post("/api/v1/personal-data", json={"email": " ADA@example.com"}).get_json()

    assert by_source_id["customer"]["email"] == "Ada@Example.com"
    assert by_email["customer"] == by_source_id["customer"]
    assert exports_of(ada) == [("API key tests", {"form": "json"})] * 2


def test_the_api_exports_no_unknown_customer(api: FlaskClient) -> None:
    assert api.get("/api/v1/personal-data/C-1").status_code == 404
    assert api.post("/api/v1/personal-data", json={"email": "ada@example.com"}).status_code == 404


@pytest.mark.parametrize("body", [{}, {"email": "ada"}, {"email": 1}, {"email": "a@b.example", "name": "x"}])
def test_an_invalid_export_request_is_rejected(api: FlaskClient, body: dict[str, object]) -> None:
    assert api.post("/api/v1/personal-data", json=body).status_code == 422


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_exporting_requires_the_scope_manage(app: Flask, ada: Customer, scope: str) -> None:
    headers = {"Authorization": f"Bearer {api_key_actions.create_api_key('reader', [scope], by='tests')}"}
    client = app.test_client()

    by_source_id = client.get("/api/v1/personal-data/C-1815", headers=headers)
    by_email = client.post("/api/v1/personal-data", json={"email": "ada@example.com"}, headers=headers)

    assert (by_source_id.status_code, by_email.status_code) == (403, 403)
    assert exports_of(ada) == []
