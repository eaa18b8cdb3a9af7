"""Rotation and revocation of signing keys, also in processes with an old cache."""

from __future__ import annotations

import contextlib
import hmac
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from webapp.accounts import api_key_actions, signing_key_actions
from webapp.campaigns import tokens as campaign_tokens
from webapp.core import database_clock, signing_keys
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes, personal_links, public_ids
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import RedemptionRequest

T = TypeVar("T")
PURPOSES = ["personal_code", "personal_link", "redemption_id", "api_key"]


@pytest.fixture(autouse=True)
def own_keys(app: Flask) -> Iterator[None]:
    """Delete the keys of each test: other tests expect one of each purpose."""
    _delete_keys()
    yield
    _delete_keys()


def _delete_keys() -> None:
    db.session.rollback()
    db.session.execute(text("delete from signing_key"))
    db.session.commit()
    signing_keys.clear_key_cache()


def in_other_process(act: Callable[[], T], seconds: float = 5) -> T:
    """Call `act` as another process would: this one keeps its cache.

    :param seconds: the age of the cache afterwards.
    """
    cache = dict(signing_keys._cache)
    signing_keys.clear_key_cache()
    try:
        return act()
    finally:
        signing_keys._cache.clear()
        signing_keys._cache.update(
            {key: entry._replace(read_at=entry.read_at - seconds) for key, entry in cache.items()}
        )


def rotate_an_hour_ago(purpose: str) -> None:
    """Rotate a key so long ago that every process uses the new one."""
    signing_key_actions.rotate_signing_key(purpose, by="tests")
    db.session.execute(text("update signing_key set created_at = created_at - interval '1 hour'"))
    db.session.commit()


@pytest.fixture
def key_queries(app: Flask) -> Iterator[list[str]]:
    """The SELECT statements on the signing keys."""
    recorded: list[str] = []

    def record(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if "FROM signing_key" in statement:
            recorded.append(statement)

    event.listen(db.engine, "before_cursor_execute", record)
    yield recorded
    event.remove(db.engine, "before_cursor_execute", record)


def personal_token(offer_id: int, customer_id: int) -> str:
    return personal_links.build_personal_url(offer_id, customer_id).rpartition("/")[2]


def personal_code(offer: Offer, customer: Customer) -> str:
    return personal_codes.derive_personal_code(offer.code, offer.id, customer.id).replace("-", "")


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", PURPOSES)
def test_after_rotation_the_new_version_signs_and_the_old_one_is_accepted(app: Flask, purpose: str) -> None:
    first = signing_keys.get_current_secret(purpose)

    version = signing_key_actions.rotate_signing_key(purpose, by="ann")

    assert version == 2
    assert [number for number, _ in signing_keys.list_accepted_keys(purpose)] == [2, 1]
    assert signing_keys.get_current_secret(purpose) != first


def test_codes_links_and_keys_from_before_a_rotation_still_work(
    client: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada, bob = make_offer(personal_code_required=True), make_customer(), make_customer("bob@example.com")
    code, link, key = (
        personal_code(offer, ada),
        personal_token(offer.id, bob.id),
        api_key_actions.create_api_key("till", ["read"], by="tests"),
    )
    reference = group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com")).public_id
    for purpose in PURPOSES:
        signing_key_actions.rotate_signing_key(purpose, by="ann")

    assert personal_code(offer, ada) != code
    assert personal_codes.verify_personal_code(code[-personal_codes.SUFFIX_LENGTH :], offer.id, ada.id)
    assert client.post(f"/r/{link}").status_code == 200
    assert getattr(redemption_queries.find_redemption(reference), "customer_id", None) == ada.id
    assert api_key_actions.authenticate_api_key(f"Bearer {key}").scopes == ["read"]


def test_a_new_api_key_is_stored_with_the_current_version(app: Flask) -> None:
    signing_key_actions.rotate_signing_key("api_key", by="ann")
    key = api_key_actions.create_api_key("Till", ["read"], by="ann")

    assert db.session.execute(text("select key_version from api_key")).scalar() == 2
    assert api_key_actions.authenticate_api_key(f"Bearer {key}").name == "Till"


def test_an_unused_key_can_be_rotated(app: Flask) -> None:
    assert signing_key_actions.rotate_signing_key("personal_code", by="ann") == 2


def test_the_audit_log_has_rotations_and_revocations(app: Flask) -> None:
    signing_key_actions.rotate_signing_key("personal_link", by="ann")
    rotate_an_hour_ago("personal_link")
    signing_key_actions.revoke_signing_key("personal_link", 1, by="bob")

    entries = db.session.execute(text("select actor, action, subject, detail from audit_entry order by id")).all()

    assert entries[0] == ("ann", "key.renewed", "personal_link", {"version": 2})
    assert entries[-1] == ("bob", "key.retired", "personal_link", {"version": 1})


# --- a process with an old cache ------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_personal_code_signed_with_an_uncached_key_is_redeemed(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer], seconds: int
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    personal_code(offer, ada)

    def rotate_and_sign() -> str:
        signing_key_actions.rotate_signing_key("personal_code", by="ann")
        return personal_code(offer, ada)

    code = in_other_process(rotate_and_sign, seconds)

    assert len(signing_keys._cache[signing_keys._cache_id("personal_code")].keys) == 1
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com")).customer_id == ada.id
    )


def test_a_link_signed_with_an_uncached_key_is_accepted(app: Flask) -> None:
    personal_token(1, 2)

    def rotate_and_sign() -> str:
        signing_key_actions.rotate_signing_key("personal_link", by="ann")
        return personal_token(1, 2)

    assert personal_links.parse_personal_token(in_other_process(rotate_and_sign)) == (1, 2)


@pytest.mark.parametrize(
    ("purpose", "build", "parse"),
    [
        ("message_id", lambda: campaign_tokens.build_message_id(1, 2, "example.com"), campaign_tokens.parse_message_id),
        ("return_path", lambda: campaign_tokens.build_return_path(1, 2, ""), campaign_tokens.parse_return_path),
        (
            "unsubscribe",
            lambda: campaign_tokens.build_unsubscribe_url(2, 1).rpartition("/")[2],
            campaign_tokens.parse_unsubscribe_token,
        ),
    ],
    ids=["message_id", "return_path", "unsubscribe"],
)
def test_what_emails_sign_with_an_uncached_key_is_accepted(
    with_settings: Callable[..., Settings],
    purpose: str,
    build: Callable[[], str],
    parse: Callable[[str], campaign_tokens.DeliveryIds | None],
) -> None:
    with_settings(mail_bounce_address="bounces@example.com")
    before = build()

    def rotate_and_build() -> str:
        signing_keys.lock_signing_keys()
        signing_keys.add_key_version(purpose)
        db.session.commit()
        signing_keys.clear_key_cache()
        return build()

    signed = in_other_process(rotate_and_build)

    assert signed != before
    assert [parse(signed), parse(before)] == [(1, 2)] * 2


def test_a_reference_encoded_with_an_uncached_key_is_found(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_offer(), make_customer()
    redemption = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    before = redemption.public_id

    def rotate_and_encode() -> str:
        signing_key_actions.rotate_signing_key("redemption_id", by="ann")
        return public_ids.encode_public_id(
            redemption.offer_id, redemption.customer_id, redemption.row.redeemed_at, public_ids.load_secret()
        )

    reference = in_other_process(rotate_and_encode)

    assert reference != before
    assert getattr(redemption_queries.find_redemption(reference), "customer_id", None) == redemption.customer_id


def test_the_secret_of_an_uncached_version_is_found(app: Flask) -> None:
    first = signing_keys.get_current_secret("api_key")
    in_other_process(lambda: signing_key_actions.rotate_signing_key("api_key", by="ann"))

    assert signing_keys.find_secret("api_key", 2) not in (None, first)
    assert signing_keys.find_secret("api_key", 1) == first
    assert signing_keys.find_secret("api_key", 3) is None


def test_invalid_links_query_the_keys_at_most_once_a_second(app: Flask, key_queries: list[str]) -> None:
    personal_token(1, 2)
    in_other_process(lambda: None)
    key_queries.clear()

    for n in range(20):
        assert personal_links.parse_personal_token(f"WzEsMl0.made-up-{n}") is None

    assert len(key_queries) == 1


def test_a_link_signed_with_a_cached_key_runs_no_query(app: Flask, key_queries: list[str]) -> None:
    link = personal_token(1, 2)
    in_other_process(lambda: None)
    key_queries.clear()

    assert personal_links.parse_personal_token(link) == (1, 2)
    assert key_queries == []


def test_the_cache_of_keys_expires_after_a_minute(app: Flask) -> None:
    signing_keys.list_accepted_keys("personal_link")
    in_other_process(
        lambda: signing_key_actions.rotate_signing_key("personal_link", by="ann"), signing_keys.CACHE_SECONDS + 1
    )

    assert [version for version, _ in signing_keys.list_accepted_keys("personal_link")] == [2, 1]


def test_a_slower_read_does_not_replace_the_result_of_a_later_one(app: Flask) -> None:
    signing_keys.list_accepted_keys("personal_link")
    cache_id = signing_keys._cache_id("personal_link")
    later = signing_keys._cache[cache_id]._replace(keys=[(7, b"later")], read_at=time.monotonic() + 60)
    signing_keys._cache[cache_id] = later

    signing_keys._load_keys("personal_link")

    assert signing_keys._cache[cache_id] == later


def test_the_versions_are_listed_newest_first(app: Flask) -> None:
    for _ in range(3):
        signing_key_actions.rotate_signing_key("personal_link", by="ann")

    assert [key.version for key in signing_keys.list_key_versions("personal_link")] == [4, 3, 2, 1]


# --- revocation -----------------------------------------------------------------------------------


def test_a_revoked_personal_code_is_refused_immediately_in_every_process(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    revoked = personal_code(offer, ada)
    rotate_an_hour_ago("personal_code")
    current = personal_code(offer, ada)

    in_other_process(lambda: signing_key_actions.revoke_signing_key("personal_code", 1, by="ann"), seconds=0)

    with pytest.raises(RedemptionRefused) as error:
        group_commit.redeem(RedemptionRequest(channel="form", code=revoked, email="ada@example.com"))
    assert error.value.reason == "personal_code_required"
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code=current, email="ada@example.com")).customer_id
        == ada.id
    )


def test_a_revoked_link_is_not_found_and_a_current_one_is(
    client: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(), make_customer()
    revoked = personal_token(offer.id, ada.id)
    rotate_an_hour_ago("personal_link")

    signing_key_actions.revoke_signing_key("personal_link", 1, by="ann")

    assert client.get(f"/r/{revoked}").status_code == 404
    assert client.get(f"/r/{personal_token(offer.id, ada.id)}").status_code == 200


def test_revoking_the_key_of_codes_leaves_links_valid(app: Flask) -> None:
    link = personal_token(1, 2)
    rotate_an_hour_ago("personal_code")
    signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert personal_links.parse_personal_token(link) == (1, 2)


def test_revocation_affects_one_version(app: Flask) -> None:
    for _ in range(3):
        rotate_an_hour_ago("personal_code")

    signing_key_actions.revoke_signing_key("personal_code", 2, by="ann")

    assert [version for version, _ in signing_keys.list_accepted_keys("personal_code")] == [4, 3, 1]


def test_the_process_that_revokes_a_version_does_not_accept_it_any_longer(app: Flask) -> None:
    rotate_an_hour_ago("personal_link")
    assert len(signing_keys.list_accepted_keys("personal_link")) == 2

    signing_key_actions.revoke_signing_key("personal_link", 1, by="ann")

    assert [version for version, _ in signing_keys.list_accepted_keys("personal_link")] == [2]


def test_revocation_is_idempotent(app: Flask) -> None:
    rotate_an_hour_ago("personal_code")

    for _ in range(2):
        signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert db.session.execute(text("select count(*) from audit_entry where action = 'key.retired'")).scalar() == 1


@pytest.mark.parametrize("purpose", ["redemption_id", "api_key"])
def test_keys_of_receipts_and_api_keys_cannot_be_revoked(app: Flask, purpose: str) -> None:
    rotate_an_hour_ago(purpose)

    with pytest.raises(DomainError) as error:
        signing_key_actions.revoke_signing_key(purpose, 1, by="ann")

    assert error.value.message == signing_key_actions.SIGNING_KEY_PURPOSES[purpose].revocation_blocker
    assert len(signing_keys.list_accepted_keys(purpose)) == 2


def test_the_signing_version_cannot_be_revoked(app: Flask) -> None:
    rotate_an_hour_ago("personal_code")

    with pytest.raises(DomainError, match="Rotate the key first"):
        signing_key_actions.revoke_signing_key("personal_code", 2, by="ann")


def test_a_version_that_workers_may_still_use_cannot_be_revoked(app: Flask) -> None:
    signing_key_actions.rotate_signing_key("personal_code", by="ann")

    with pytest.raises(DomainError, match=r"Revoke it in \d+ seconds"):
        signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert timedelta(seconds=signing_keys.CACHE_SECONDS) < signing_key_actions.REVOCATION_DELAY


@pytest.mark.parametrize(
    "change",
    [
        lambda: signing_key_actions.rotate_signing_key("personal_link", by="ann"),
        lambda: signing_key_actions.revoke_signing_key("personal_link", 1, by="ann"),
    ],
    ids=["rotation", "revocation"],
)
def test_only_one_transaction_changes_the_keys(app: Flask, change: Callable[[], object]) -> None:
    rotate_an_hour_ago("personal_link")
    with db.engine.connect() as other:
        other.execute(text("select pg_advisory_xact_lock(hashtext('onecode.signing_key'))"))
        db.session.execute(text("set local lock_timeout = '100ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            change()
    db.session.rollback()
    change()


@pytest.mark.parametrize(
    ("ages", "version", "is_revocable"),
    [
        ((3600, 80), 1, False),
        ((3600, 90), 1, True),
        ((3600, 90, 0), 1, True),
        ((3600, 90, 0), 2, False),
    ],
    ids=str,
)
def test_a_version_can_be_revoked_90_seconds_after_the_next_one_was_created(
    app: Flask, ages: tuple[int, ...], version: int, is_revocable: bool
) -> None:
    for number, age in enumerate(ages, 1):
        if number > 1:
            signing_key_actions.rotate_signing_key("personal_link", by="ann")
        else:
            signing_keys.list_accepted_keys("personal_link")
        db.session.execute(
            text("update signing_key set created_at = now() - make_interval(secs => :age) where version = :number"),
            {"age": age, "number": number},
        )
        db.session.commit()

    with contextlib.suppress(DomainError):
        signing_key_actions.revoke_signing_key("personal_link", version, by="ann")
    revoked = [row.version for row in signing_keys.list_key_versions("personal_link") if row.revoked_at]
    assert revoked == [version] * is_revocable


@pytest.mark.parametrize(("purpose", "version"), [("personal_code", 9), ("personal_code", 0), ("unsubscribe", 1)])
def test_an_unknown_version_cannot_be_revoked(app: Flask, purpose: str, version: int) -> None:
    with pytest.raises(NotFound):
        signing_key_actions.revoke_signing_key(purpose, version, by="ann")


# --- personal codes -------------------------------------------------------------------------------


def test_deriving_codes_and_links_stores_nothing(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    personal_code(offer, ada), personal_token(offer.id, ada.id)
    before = _row_counts()

    for n in range(100):
        personal_codes.derive_personal_code(offer.code_as_written, offer.id, n)
        personal_token(offer.id, n)

    assert _row_counts() == before


def test_no_table_stores_a_redeemed_personal_code(
    make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    code = personal_code(offer, ada)

    group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com"))

    assert [name for name in _tables() if _contains(name, code[-personal_codes.SUFFIX_LENGTH :])] == []


def test_a_suffix_is_compared_with_every_key_in_constant_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    older = personal_codes.derive_personal_code("SUMMER25", 1, 2)[-personal_codes.SUFFIX_LENGTH :]
    rotate_an_hour_ago("personal_code")
    newer = personal_codes.derive_personal_code("SUMMER25", 1, 2)[-personal_codes.SUFFIX_LENGTH :]
    comparisons: list[int] = []
    compare_digest = hmac.compare_digest

    def count_and_compare(one: bytes, other: bytes) -> bool:
        comparisons[-1] += 1
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", count_and_compare)
    results = []
    for suffix in (newer, older, "00000000", ""):
        comparisons.append(0)
        results.append(personal_codes.verify_personal_code(suffix, 1, 2))

    assert results == [True, True, False, False]
    assert comparisons == [2, 2, 2, 2]


def _tables() -> list[str]:
    return [table.name for table in db.metadata.sorted_tables]


def _row_counts() -> dict[str, int]:
    counts = {name: text(f"select count(*) from {name}") for name in _tables()}
    return {name: db.session.execute(statement).scalar_one() for name, statement in counts.items()}


def _contains(table: str, words: str) -> bool:
    statement = text(f"select exists (select from {table} t where t::text ilike :words)")
    return bool(db.session.execute(statement, {"words": f"%{words}%"}).scalar_one())


# --- commands -------------------------------------------------------------------------------------


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=["key", *arguments])


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_renew_command_rotates_a_key(app: Flask, purpose: str) -> None:
    result = run(app, "renew", purpose)

    assert result.exit_code == 0
    assert result.output.startswith(f"Version 2 of {purpose} is now the current version.")
    assert f"{purpose} 2 signs\n{purpose} 1 accepted\n" in run(app, "list").output


def test_the_retire_command_asks_for_confirmation(app: Flask) -> None:
    rotate_an_hour_ago("personal_code")

    unconfirmed = run(app, "retire", "personal_code", "1")
    confirmed = run(app, "retire", "personal_code", "1", "--yes")

    assert unconfirmed.exit_code == 1
    assert "stop working immediately" in unconfirmed.output
    assert confirmed.output.endswith("Version 1 of personal_code is revoked.\n")
    assert run(app, "list").output.endswith("personal_code 1 retired\n")


def test_retiring_a_key_that_cannot_be_revoked_fails_with_one_line(app: Flask) -> None:
    result = run(app, "retire", "redemption_id", "1", "--yes")

    assert (result.exit_code, str(result.exception)) == (
        1,
        f"onecode: {signing_key_actions.SIGNING_KEY_PURPOSES['redemption_id'].revocation_blocker}",
    )


def test_the_renew_command_rejects_an_unknown_purpose(app: Flask) -> None:
    assert run(app, "renew", "message_id").exit_code == 2


# --- the page -------------------------------------------------------------------------------------


def test_an_admin_rotates_and_revokes_on_the_settings_page(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    client.post("/settings/keys/personal_code/renew")
    db.session.execute(text("update signing_key set created_at = created_at - interval '1 hour'"))
    db.session.commit()
    before = client.get("/settings/keys").text

    client.post("/settings/keys/personal_code/1/retire")

    assert 'action="/settings/keys/personal_code/1/retire"' in before
    assert "Personal codes signed with this version stop working immediately" in before
    for purpose in signing_key_actions.SIGNING_KEY_PURPOSES.values():
        assert bool(purpose.revocation_effect) is not bool(purpose.revocation_blocker)
    assert "Revoked" in client.get("/settings/keys").text
    assert [version for version, _ in signing_keys.list_accepted_keys("personal_code")] == [2]


def test_the_page_explains_why_a_version_cannot_be_revoked_yet(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    client.post("/settings/keys/personal_code/renew")

    response = client.post("/settings/keys/personal_code/1/retire", follow_redirects=True)

    assert "emails may still be signed with version 1" in response.text


def test_the_page_has_no_button_for_keys_that_cannot_be_revoked(sign_in: Callable[..., FlaskClient]) -> None:
    for purpose in PURPOSES:
        rotate_an_hour_ago(purpose)

    page = sign_in("admin").get("/settings/keys").text

    assert "/settings/keys/personal_link/1/retire" in page
    assert "/settings/keys/redemption_id/1/retire" not in page
    assert "/settings/keys/api_key/1/retire" not in page


def test_no_secret_is_on_the_page_or_in_the_list(app: Flask, sign_in: Callable[..., FlaskClient]) -> None:
    secret = signing_keys.get_current_secret("personal_code")
    shown = sign_in("admin").get("/settings/keys").text + run(app, "list").output

    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("role", ["viewer", "manager"])
def test_only_admins_have_access_to_the_keys(sign_in: Callable[..., FlaskClient], role: str) -> None:
    client = sign_in(role)

    responses = [
        client.get("/settings/keys"),
        client.post("/settings/keys/personal_code/renew"),
        client.post("/settings/keys/personal_code/1/retire"),
    ]

    assert [response.status_code for response in responses] == [403, 403, 403]
    assert "/settings/keys" not in client.get("/settings/profile").text


@pytest.mark.parametrize("path", ["nonsense/renew", "unsubscribe/renew", "personal_code/9/retire"])
def test_an_unknown_key_is_not_found(sign_in: Callable[..., FlaskClient], path: str) -> None:
    assert sign_in("admin").post(f"/settings/keys/{path}").status_code == 404


@pytest.mark.parametrize(
    ("milliseconds_left", "sentence"), [(100, "in 1 second."), (999, "in 1 second."), (29_500, "in 30 seconds.")]
)
def test_the_refusal_says_when_the_former_version_can_be_revoked(
    app: Flask, monkeypatch: pytest.MonkeyPatch, milliseconds_left: int, sentence: str
) -> None:
    signing_key_actions.rotate_signing_key("personal_code", by="ann")
    rotated_at = db.session.execute(text("select max(created_at) from signing_key")).scalar_one()
    now = rotated_at + signing_key_actions.REVOCATION_DELAY - timedelta(milliseconds=milliseconds_left)
    monkeypatch.setattr(database_clock, "get_database_time", lambda: now)

    with pytest.raises(DomainError, match=re.escape(sentence)):
        signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    monkeypatch.setattr(database_clock, "get_database_time", lambda: now + timedelta(milliseconds=milliseconds_left))
    signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")
