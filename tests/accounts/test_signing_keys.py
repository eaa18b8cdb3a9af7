"""Keys are renewed and retired; what they signed works as long as it should, also in a process that knows less."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from webapp.accounts import api_key_actions, signing_key_actions
from webapp.core import signing_keys
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
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
    """Keys of this test alone: the others expect one of each purpose."""
    _drop()
    yield
    _drop()


def _drop() -> None:
    db.session.rollback()
    db.session.execute(text("delete from signing_key"))
    db.session.commit()
    signing_keys.clear_key_cache()


def elsewhere(act: Callable[[], T], seconds: float = 5) -> T:
    """Done by another process: ours remembers what it has read so many seconds before."""
    remembered = dict(signing_keys._cache)
    signing_keys.clear_key_cache()
    try:
        return act()
    finally:
        signing_keys._cache.clear()
        signing_keys._cache.update(
            {place: held._replace(read_at=held.read_at - seconds) for place, held in remembered.items()}
        )


def renewed_long_ago(purpose: str) -> None:
    """Renewed, and every process has noticed."""
    signing_key_actions.rotate_signing_key(purpose, by="tests")
    db.session.execute(text("update signing_key set created_at = created_at - interval '1 hour'"))
    db.session.commit()


@pytest.fixture
def reads(app: Flask) -> Iterator[list[str]]:
    """Every statement about the keys."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if "FROM signing_key" in statement:
            seen.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    yield seen
    event.remove(db.engine, "before_cursor_execute", note)


def token(offer_id: int, customer_id: int) -> str:
    return personal_links.build_personal_url(offer_id, customer_id).rpartition("/")[2]


def typed(offer: Offer, customer: Customer) -> str:
    return personal_codes.derive_personal_code(offer.code, offer.id, customer.id).replace("-", "")


# --- renewal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_renewed_key_signs_and_the_one_before_is_still_accepted(app: Flask, purpose: str) -> None:
    first = signing_keys.current_secret(purpose)

    version = signing_key_actions.rotate_signing_key(purpose, by="ann")

    assert version == 2
    assert [number for number, _ in signing_keys.accepted_keys(purpose)] == [2, 1]
    assert signing_keys.current_secret(purpose) != first


def test_what_went_out_before_a_renewal_works_after_it(
    client: FlaskClient, offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    row, ada, bob = offer(personal_code_required=True), customer(), customer("bob@example.com")
    code, link, key = (
        typed(row, ada),
        token(row.id, bob.id),
        api_key_actions.create_api_key("till", ["read"], by="tests"),
    )
    reference = group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com")).public_id
    for purpose in PURPOSES:
        signing_key_actions.rotate_signing_key(purpose, by="ann")

    assert typed(row, ada) != code
    assert personal_codes.verify_personal_code(code[-personal_codes.SUFFIX_LENGTH :], row.id, ada.id)
    assert client.post(f"/r/{link}").status_code == 200
    assert getattr(redemption_queries.find_redemption(reference), "customer_id", None) == ada.id
    assert api_key_actions.authenticate_api_key(f"Bearer {key}").scopes == ["read"]


def test_a_key_that_nothing_has_signed_yet_can_be_renewed(app: Flask) -> None:
    assert signing_key_actions.rotate_signing_key("personal_code", by="ann") == 2


def test_the_trail_tells_who_renewed_and_retired(app: Flask) -> None:
    signing_key_actions.rotate_signing_key("personal_link", by="ann")
    renewed_long_ago("personal_link")
    signing_key_actions.revoke_signing_key("personal_link", 1, by="bob")

    found = db.session.execute(text("select actor, action, subject, detail from audit_entry order by id")).all()

    assert found[0] == ("ann", "key.renewed", "personal_link", {"version": 2})
    assert found[-1] == ("bob", "key.retired", "personal_link", {"version": 1})


# --- a process that has not noticed yet -----------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_personal_code_of_a_key_that_this_process_does_not_know_yet_redeems(
    offer: Callable[..., Offer], customer: Callable[..., Customer], seconds: int
) -> None:
    row, ada = offer(personal_code_required=True), customer()
    typed(row, ada)

    def renew_and_mail() -> str:
        signing_key_actions.rotate_signing_key("personal_code", by="ann")
        return typed(row, ada)

    code = elsewhere(renew_and_mail, seconds)

    assert len(signing_keys._cache[signing_keys._cache_key("personal_code")].keys) == 1
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com")).customer_id == ada.id
    )


def test_a_link_of_a_key_that_this_process_does_not_know_yet_opens(app: Flask) -> None:
    token(1, 2)

    def renew_and_mail() -> str:
        signing_key_actions.rotate_signing_key("personal_link", by="ann")
        return token(1, 2)

    assert personal_links.parse_personal_token(elsewhere(renew_and_mail)) == (1, 2)


def test_a_reference_of_a_key_that_this_process_does_not_know_yet_is_found(
    offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    offer(), customer()
    done = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    before = done.public_id

    def renew_and_print() -> str:
        signing_key_actions.rotate_signing_key("redemption_id", by="ann")
        return public_ids.encode_public_id(done.offer_id, done.customer_id, done.row.redeemed_at)

    reference = elsewhere(renew_and_print)

    assert reference != before
    assert getattr(redemption_queries.find_redemption(reference), "customer_id", None) == done.customer_id


def test_a_secret_of_a_version_that_this_process_does_not_know_yet_is_found(app: Flask) -> None:
    first = signing_keys.current_secret("api_key")
    elsewhere(lambda: signing_key_actions.rotate_signing_key("api_key", by="ann"))

    assert signing_keys.find_secret("api_key", 2) not in (None, first)
    assert signing_keys.find_secret("api_key", 1) == first
    assert signing_keys.find_secret("api_key", 3) is None


def test_made_up_links_make_the_table_be_read_once_a_second_at_most(app: Flask, reads: list[str]) -> None:
    token(1, 2)
    elsewhere(lambda: None)
    reads.clear()

    for n in range(20):
        assert personal_links.parse_personal_token(f"WzEsMl0.made-up-{n}") is None

    assert len(reads) == 1


def test_a_link_that_is_known_reads_nothing(app: Flask, reads: list[str]) -> None:
    link = token(1, 2)
    elsewhere(lambda: None)
    reads.clear()

    assert personal_links.parse_personal_token(link) == (1, 2)
    assert reads == []


def test_after_a_minute_a_process_reads_the_keys_again(app: Flask) -> None:
    signing_keys.accepted_keys("personal_link")
    elsewhere(lambda: signing_key_actions.rotate_signing_key("personal_link", by="ann"), signing_keys.CACHE_SECONDS + 1)

    assert [version for version, _ in signing_keys.accepted_keys("personal_link")] == [2, 1]


# --- retiring -------------------------------------------------------------------------------------


def test_a_retired_personal_code_is_refused_at_once_in_every_process(
    offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    row, ada = offer(personal_code_required=True), customer()
    old = typed(row, ada)
    renewed_long_ago("personal_code")
    new = typed(row, ada)

    elsewhere(lambda: signing_key_actions.revoke_signing_key("personal_code", 1, by="ann"), seconds=0)

    with pytest.raises(RedemptionRefused) as refused:
        group_commit.redeem(RedemptionRequest(channel="form", code=old, email="ada@example.com"))
    assert refused.value.reason == "personal_code_required"
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code=new, email="ada@example.com")).customer_id == ada.id
    )


def test_a_retired_link_leads_nowhere_and_a_new_one_opens(
    client: FlaskClient, offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    row, ada = offer(), customer()
    old = token(row.id, ada.id)
    renewed_long_ago("personal_link")

    signing_key_actions.revoke_signing_key("personal_link", 1, by="ann")

    assert client.get(f"/r/{old}").status_code == 404
    assert client.get(f"/r/{token(row.id, ada.id)}").status_code == 200


def test_a_code_and_a_link_have_keys_of_their_own(app: Flask) -> None:
    link = token(1, 2)
    renewed_long_ago("personal_code")
    signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert personal_links.parse_personal_token(link) == (1, 2)


def test_only_the_version_that_leaked_is_retired(app: Flask) -> None:
    for _ in range(3):
        renewed_long_ago("personal_code")

    signing_key_actions.revoke_signing_key("personal_code", 2, by="ann")

    assert [version for version, _ in signing_keys.accepted_keys("personal_code")] == [4, 3, 1]


def test_retiring_twice_is_as_good_as_once(app: Flask) -> None:
    renewed_long_ago("personal_code")

    for _ in range(2):
        signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert db.session.execute(text("select count(*) from audit_entry where action = 'key.retired'")).scalar() == 1


@pytest.mark.parametrize("purpose", ["redemption_id", "api_key"])
def test_keys_of_receipts_and_of_api_keys_are_never_retired(app: Flask, purpose: str) -> None:
    renewed_long_ago(purpose)

    with pytest.raises(DomainError) as error:
        signing_key_actions.revoke_signing_key(purpose, 1, by="ann")

    assert error.value.message == signing_key_actions.SIGNING_KEY_PURPOSES[purpose].revocation_blocker
    assert len(signing_keys.accepted_keys(purpose)) == 2


def test_the_version_that_signs_is_not_retired(app: Flask) -> None:
    renewed_long_ago("personal_code")

    with pytest.raises(DomainError, match="Rotate the key first"):
        signing_key_actions.revoke_signing_key("personal_code", 2, by="ann")


def test_a_version_is_not_retired_while_workers_may_still_write_mails_with_it(app: Flask) -> None:
    signing_key_actions.rotate_signing_key("personal_code", by="ann")

    with pytest.raises(DomainError, match=r"Revoke it in \d+ seconds"):
        signing_key_actions.revoke_signing_key("personal_code", 1, by="ann")

    assert timedelta(seconds=signing_keys.CACHE_SECONDS) < signing_key_actions.REVOCATION_DELAY


@pytest.mark.parametrize(("purpose", "version"), [("personal_code", 9), ("personal_code", 0), ("unsubscribe", 1)])
def test_what_is_not_there_is_not_retired(app: Flask, purpose: str, version: int) -> None:
    with pytest.raises(NotFound):
        signing_key_actions.revoke_signing_key(purpose, version, by="ann")


# --- what a personal code is ----------------------------------------------------------------------


def test_making_codes_and_links_stores_nothing(offer: Callable[..., Offer], customer: Callable[..., Customer]) -> None:
    row, ada = offer(personal_code_required=True), customer()
    typed(row, ada), token(row.id, ada.id)
    before = _rows()

    for n in range(100):
        personal_codes.derive_personal_code(row.code_as_written, row.id, n)
        token(row.id, n)

    assert _rows() == before


def test_a_redemption_by_a_personal_code_keeps_neither_code_nor_suffix(
    offer: Callable[..., Offer], customer: Callable[..., Customer]
) -> None:
    row, ada = offer(personal_code_required=True), customer()
    code = typed(row, ada)

    group_commit.redeem(RedemptionRequest(channel="form", code=code, email="ada@example.com"))

    assert [name for name in _tables() if _holds(name, code[-personal_codes.SUFFIX_LENGTH :])] == []


def test_a_suffix_is_compared_with_every_key_in_constant_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    right = personal_codes.derive_personal_code("SUMMER25", 1, 2)[-personal_codes.SUFFIX_LENGTH :]
    renewed_long_ago("personal_code")
    newest = personal_codes.derive_personal_code("SUMMER25", 1, 2)[-personal_codes.SUFFIX_LENGTH :]
    compared: list[int] = []
    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared[-1] += 1
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", count)
    answers = []
    for suffix in (newest, right, "00000000", ""):
        compared.append(0)
        answers.append(personal_codes.verify_personal_code(suffix, 1, 2))

    assert answers == [True, True, False, False]
    assert compared == [2, 2, 2, 2]


def _tables() -> list[str]:
    return [table.name for table in db.metadata.sorted_tables]


def _rows() -> dict[str, int]:
    counts = {name: text(f"select count(*) from {name}") for name in _tables()}
    return {name: db.session.execute(statement).scalar_one() for name, statement in counts.items()}


def _holds(table: str, words: str) -> bool:
    statement = text(f"select exists (select from {table} t where t::text ilike :words)")
    return bool(db.session.execute(statement, {"words": f"%{words}%"}).scalar_one())


# --- commands -------------------------------------------------------------------------------------


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=["key", *arguments])


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_key_is_renewed_by_command(app: Flask, purpose: str) -> None:
    result = run(app, "renew", purpose)

    assert result.exit_code == 0
    assert result.output.startswith(f"Version 2 of {purpose} signs from now on.")
    assert f"{purpose} 2 signs\n{purpose} 1 accepted\n" in run(app, "list").output


def test_retiring_by_command_says_what_stops_and_asks(app: Flask) -> None:
    renewed_long_ago("personal_code")

    asked = run(app, "retire", "personal_code", "1")
    told = run(app, "retire", "personal_code", "1", "--yes")

    assert asked.exit_code == 1
    assert "stop working immediately" in asked.output
    assert told.output.endswith("Version 1 of personal_code is revoked.\n")
    assert run(app, "list").output.endswith("personal_code 1 retired\n")


def test_what_can_not_be_retired_is_told_in_one_line(app: Flask) -> None:
    result = run(app, "retire", "redemption_id", "1", "--yes")

    assert (result.exit_code, str(result.exception)) == (
        1,
        f"onecode: {signing_key_actions.SIGNING_KEY_PURPOSES['redemption_id'].revocation_blocker}",
    )


def test_a_purpose_that_is_none_is_refused_by_the_command(app: Flask) -> None:
    assert run(app, "renew", "message_id").exit_code == 2


# --- the page -------------------------------------------------------------------------------------


def test_an_admin_renews_and_retires_on_the_settings_page(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    client.post("/settings/keys/personal_code/renew")
    db.session.execute(text("update signing_key set created_at = created_at - interval '1 hour'"))
    db.session.commit()
    before = client.get("/settings/keys").text

    client.post("/settings/keys/personal_code/1/retire")

    assert 'action="/settings/keys/personal_code/1/retire"' in before
    assert "Personal codes signed with this version stop working immediately" in before
    assert "Revoked" in client.get("/settings/keys").text
    assert [version for version, _ in signing_keys.accepted_keys("personal_code")] == [2]


def test_the_page_says_why_a_version_can_not_be_retired_yet(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    client.post("/settings/keys/personal_code/renew")

    answer = client.post("/settings/keys/personal_code/1/retire", follow_redirects=True)

    assert "emails may still be signed with version 1" in answer.text


def test_the_page_offers_no_way_to_retire_what_must_stay(sign_in: Callable[..., FlaskClient]) -> None:
    for purpose in PURPOSES:
        renewed_long_ago(purpose)

    page = sign_in("admin").get("/settings/keys").text

    assert "/settings/keys/personal_link/1/retire" in page
    assert "/settings/keys/redemption_id/1/retire" not in page
    assert "/settings/keys/api_key/1/retire" not in page


def test_no_secret_is_on_the_page_or_in_the_list(app: Flask, sign_in: Callable[..., FlaskClient]) -> None:
    secret = signing_keys.current_secret("personal_code")
    shown = sign_in("admin").get("/settings/keys").text + run(app, "list").output

    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown


@pytest.mark.parametrize("role", ["viewer", "manager"])
def test_only_admins_come_near_the_keys(sign_in: Callable[..., FlaskClient], role: str) -> None:
    client = sign_in(role)

    answers = [
        client.get("/settings/keys"),
        client.post("/settings/keys/personal_code/renew"),
        client.post("/settings/keys/personal_code/1/retire"),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert "/settings/keys" not in client.get("/settings/profile").text


@pytest.mark.parametrize("path", ["nonsense/renew", "unsubscribe/renew", "personal_code/9/retire"])
def test_a_key_that_is_not_there_is_not_found(sign_in: Callable[..., FlaskClient], path: str) -> None:
    assert sign_in("admin").post(f"/settings/keys/{path}").status_code == 404
