"""Passkeys: where they work, and which responses of browsers are accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import time_machine
from sqlalchemy import select

from tests.support.authenticator import USER_PRESENT, SoftwareAuthenticator, decode
from webapp.accounts import audit_queries
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import passkey_actions, passkeys, recovery_code_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.factors.models import Passkey
from webapp.accounts.factors.passkeys import Challenge
from webapp.accounts.models import StaffUser
from webapp.core.errors import DomainError
from webapp.core.extensions import db


@pytest.fixture
def user(make_staff_user: Callable[..., StaffUser]) -> StaffUser:
    return make_staff_user("manager")


@pytest.fixture
def authenticator(user: StaffUser) -> SoftwareAuthenticator:
    """An authenticator with a passkey of the user."""
    authenticator = SoftwareAuthenticator()
    add_passkey(user, authenticator)
    return authenticator


def add_passkey(user: StaffUser, authenticator: SoftwareAuthenticator, name: str = "Laptop") -> list[str]:
    known = factor_queries.list_passkeys(user.id)
    options, challenge = passkeys.build_registration_options(user.email, user.name, known)
    return passkey_actions.add_passkey(user.id, name, authenticator.create(options), challenge)


def key_of_refusal(response: str, challenge: Challenge | None, user_id: int | None = None) -> str:
    with pytest.raises(DomainError) as error:
        passkey_actions.verify_passkey(response, challenge, user_id)
    return error.value.key


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        ("https://offers.example.com/a", ("offers.example.com", "https://offers.example.com")),
        ("https://offers.example.com:443", ("offers.example.com", "https://offers.example.com")),
        ("https://offers.example.com:8443", ("offers.example.com", "https://offers.example.com:8443")),
        ("http://localhost:8000", ("localhost", "http://localhost:8000")),
        ("http://localhost:80", ("localhost", "http://localhost")),
        ("http://127.0.0.1:8000", None),
        ("https://192.0.2.1", None),
        ("https://[2001:db8::1]", None),
        ("http://offers.example.com", None),
    ],
)
def test_passkeys_need_a_host_name_and_https_or_localhost(
    with_settings: Callable[..., object], public_url: str, expected: tuple[str, str] | None
) -> None:
    with_settings(public_url=public_url)
    party = passkeys.find_relying_party()
    assert (party and (party.id, party.origin)) == expected


def test_where_they_do_not_work_nothing_is_created(user: StaffUser, with_settings: Callable[..., object]) -> None:
    with_settings(public_url="http://127.0.0.1:8000")
    with pytest.raises(DomainError) as error:
        passkeys.build_registration_options(user.email, user.name, [])
    assert error.value.key == "passkeys_unavailable"


def test_the_options_ask_for_user_verification_and_exclude_known_passkeys(
    user: StaffUser, authenticator: SoftwareAuthenticator
) -> None:
    known = factor_queries.list_passkeys(user.id)
    options, _ = passkeys.build_registration_options(user.email, user.name, known)
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["authenticatorSelection"]["residentKey"] == "preferred"
    assert [decode(item["id"]) for item in options["excludeCredentials"]] == [authenticator.credential_id]
    assert decode(options["user"]["id"]) == authenticator.user_handle
    assert (options["user"]["name"], options["user"]["displayName"]) == (user.email, user.name)
    options, _ = passkeys.build_authentication_options(known)
    assert options["userVerification"] == "required"
    assert [(decode(item["id"]), item["transports"]) for item in options["allowCredentials"]] == [
        (authenticator.credential_id, ["internal"])
    ]


def test_a_passkey_signs_in_and_its_use_is_recorded(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    for count in (1, 2):
        options, challenge = passkeys.build_authentication_options()
        assert passkey_actions.verify_passkey(authenticator.get(options), challenge) == user
        [passkey] = factor_queries.list_passkeys(user.id)
        db.session.refresh(passkey)
        assert passkey.sign_count == count
        assert passkey.last_used_at is not None


def test_the_first_passkey_comes_with_recovery_codes(user: StaffUser) -> None:
    codes = add_passkey(user, SoftwareAuthenticator())
    assert len(codes) == 10
    recovery_code_actions.use_recovery_code(user.id, codes[0])
    assert add_passkey(user, SoftwareAuthenticator(), "Phone") == []
    assert [passkey.name for passkey in factor_queries.list_passkeys(user.id)] == ["Laptop", "Phone"]


def test_a_passkey_is_added_once(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    with pytest.raises(DomainError) as error:
        add_passkey(user, authenticator)
    assert error.value.key == "passkey_exists"


def test_there_is_a_maximum_of_twenty(user: StaffUser, make_staff_user: Callable[..., StaffUser]) -> None:
    for owner in (user, make_staff_user("viewer")):
        for n in range(19):
            db.session.add(
                Passkey(
                    staff_user_id=owner.id, credential_id=f"{owner.id} {n}".encode(), public_key=b"", sign_count=0,
                    user_handle=b"", rp_id="", name="", transports=[],
                )
            )  # fmt: skip
    db.session.commit()
    add_passkey(user, SoftwareAuthenticator())
    with pytest.raises(DomainError) as error:
        add_passkey(user, SoftwareAuthenticator())
    assert error.value.key == "too_many_passkeys"


@pytest.mark.parametrize("name", ["", "x" * 61])
def test_a_passkey_needs_a_name(user: StaffUser, name: str) -> None:
    with pytest.raises(DomainError):
        add_passkey(user, SoftwareAuthenticator(), name)
    add_passkey(user, SoftwareAuthenticator(), "x" * 60)


@pytest.mark.parametrize(
    "changes",
    [{"origin": "http://localhost:81"}, {"origin": "https://evil.example"}, {"flags": USER_PRESENT}, {"flags": 4}],
    ids=str,
)
def test_a_response_of_another_origin_or_an_unverified_user_is_refused(
    user: StaffUser, authenticator: SoftwareAuthenticator, changes: dict[str, object]
) -> None:
    options, challenge = passkeys.build_authentication_options()
    response = replace(authenticator, **changes).get(options)  # type: ignore[arg-type]
    assert key_of_refusal(response, challenge) == "passkey_invalid"
    with pytest.raises(DomainError) as error:
        add_passkey(user, SoftwareAuthenticator(**changes))  # type: ignore[arg-type]
    assert error.value.key == "passkey_invalid"


def test_a_passkey_for_another_host_is_refused(authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options()
    assert key_of_refusal(replace(authenticator, rp_id="evil.example").get(options), challenge) == "passkey_invalid"


def test_a_challenge_works_once(authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options()
    passkey_actions.verify_passkey(authenticator.get(options), challenge)
    assert key_of_refusal(authenticator.get(options), challenge) == "passkey_expired"


def test_a_failed_response_uses_up_its_challenge_too(authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options()
    assert key_of_refusal("{}", challenge) == "passkey_invalid"
    assert key_of_refusal(authenticator.get(options), challenge) == "passkey_expired"


def test_a_challenge_expires(authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options()
    assert options["timeout"] == 300_000
    for seconds in (-1, 301):
        with time_machine.travel(challenge.issued_at + seconds, tick=False):
            assert key_of_refusal(authenticator.get(options), challenge) == "passkey_expired"
    assert key_of_refusal(authenticator.get(options), None) == "passkey_expired"
    with time_machine.travel(challenge.issued_at + 300, tick=False):
        passkey_actions.verify_passkey(authenticator.get(options), challenge)


def test_a_challenge_has_256_random_bits(user: StaffUser) -> None:
    for options, challenge in (
        passkeys.build_registration_options(user.email, user.name, []),
        passkeys.build_authentication_options(),
    ):
        assert len(challenge.value) == len(decode(options["challenge"])) == 32
        assert len(challenge.user_handle) == (32 if "user" in options else 0)


@pytest.mark.parametrize(("length", "is_accepted"), [(65_536, True), (65_537, False)])
def test_the_length_of_a_response_is_limited(
    authenticator: SoftwareAuthenticator, length: int, is_accepted: bool
) -> None:
    options, challenge = passkeys.build_authentication_options()
    response = authenticator.get(options).ljust(length)
    if is_accepted:
        passkey_actions.verify_passkey(response, challenge)
    else:
        assert key_of_refusal(response, challenge) == "passkey_invalid"


def test_the_response_to_another_challenge_is_refused(authenticator: SoftwareAuthenticator) -> None:
    options, _ = passkeys.build_authentication_options()
    _, other = passkeys.build_authentication_options()
    assert key_of_refusal(authenticator.get(options), other) == "passkey_invalid"


def test_a_signature_by_another_key_is_refused(authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options()
    forged = replace(authenticator, key=SoftwareAuthenticator().key)
    assert key_of_refusal(forged.get(options), challenge) == "passkey_invalid"


def test_a_passkey_of_another_user_is_no_second_factor(
    authenticator: SoftwareAuthenticator, make_staff_user: Callable[..., StaffUser]
) -> None:
    other = make_staff_user("viewer")
    add_passkey(other, SoftwareAuthenticator())
    options, challenge = passkeys.build_authentication_options(factor_queries.list_passkeys(other.id))
    assert key_of_refusal(authenticator.get(options), challenge, other.id) == "passkey_unknown"


@pytest.mark.parametrize("handle", [b"", b"another handle"])
def test_the_user_handle_must_be_that_of_the_owner(authenticator: SoftwareAuthenticator, handle: bytes) -> None:
    options, challenge = passkeys.build_authentication_options()
    response = replace(authenticator, user_handle=handle).get(options)
    assert key_of_refusal(response, challenge) == "passkey_unknown"


def test_a_second_factor_needs_no_user_handle(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    options, challenge = passkeys.build_authentication_options(factor_queries.list_passkeys(user.id))
    response = json.loads(authenticator.get(options))
    del response["response"]["userHandle"]
    assert passkey_actions.verify_passkey(json.dumps(response), challenge, user.id) == user


@pytest.mark.parametrize("count", [1, 2])
def test_a_sign_count_that_has_not_grown_is_refused_and_recorded(
    user: StaffUser, authenticator: SoftwareAuthenticator, count: int
) -> None:
    """The copy reports 1."""
    copied = replace(authenticator)
    for _ in range(count):
        options, challenge = passkeys.build_authentication_options()
        passkey_actions.verify_passkey(authenticator.get(options), challenge)
    options, challenge = passkeys.build_authentication_options()
    assert key_of_refusal(copied.get(options), challenge) == "passkey_invalid"
    db.session.rollback()
    refused = audit_queries.find_last_audit_entry("passkey.refused", user.email)
    assert refused is not None
    assert (refused.actor, refused.detail) == (user.email, {"name": "Laptop"})
    assert factor_queries.list_passkeys(user.id)[0].sign_count == count


def test_the_use_of_one_passkey_is_not_that_of_another(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    phone = SoftwareAuthenticator()
    add_passkey(user, phone, "Phone")
    authenticator.sign_count = 70
    options, challenge = passkeys.build_authentication_options()
    passkey_actions.verify_passkey(authenticator.get(options), challenge)
    db.session.commit()
    used = {passkey.name: passkey.last_used_at is not None for passkey in factor_queries.list_passkeys(user.id)}
    assert used == {"Laptop": True, "Phone": False}
    options, challenge = passkeys.build_authentication_options()
    assert passkey_actions.verify_passkey(phone.get(options), challenge) == user


def test_the_user_is_locked_until_the_session_starts(
    user: StaffUser, authenticator: SoftwareAuthenticator, make_staff_user: Callable[..., StaffUser]
) -> None:
    """A concurrent reset of the second factors ends the session, too."""
    make_staff_user("viewer")
    options, challenge = passkeys.build_authentication_options()
    passkey_actions.verify_passkey(authenticator.get(options), challenge)
    with db.engine.connect() as other:
        unlocked = other.scalars(select(StaffUser.role).with_for_update(skip_locked=True)).all()
    assert unlocked == ["viewer"]


def test_an_authenticator_without_a_counter_is_accepted(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    for _ in range(2):
        authenticator.sign_count = -1
        options, challenge = passkeys.build_authentication_options()
        assert passkey_actions.verify_passkey(authenticator.get(options), challenge) == user


def test_a_removed_passkey_is_unknown(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    [passkey] = factor_queries.list_passkeys(user.id)
    assert factor_actions.remove_passkey(user.id, passkey.id) == "Laptop"
    options, challenge = passkeys.build_authentication_options()
    assert key_of_refusal(authenticator.get(options), challenge) == "passkey_unknown"
    with pytest.raises(DomainError) as error:
        factor_actions.remove_passkey(user.id, passkey.id)
    assert error.value.key == "not_found"


def test_a_passkey_of_another_user_cannot_be_removed(
    user: StaffUser, authenticator: SoftwareAuthenticator, make_staff_user: Callable[..., StaffUser]
) -> None:
    [passkey] = factor_queries.list_passkeys(user.id)
    with pytest.raises(DomainError) as error:
        factor_actions.remove_passkey(make_staff_user("viewer").id, passkey.id)
    assert error.value.key == "not_found"


def test_a_disabled_user_is_refused(user: StaffUser, authenticator: SoftwareAuthenticator) -> None:
    user.disabled_at = user.created_at
    db.session.commit()
    options, challenge = passkeys.build_authentication_options()
    assert key_of_refusal(authenticator.get(options), challenge) == "disabled"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "[]",
        "null",
        "{",
        "{}",
        '{"id": "a", "rawId": "b", "type": "public-key", "response": {}}',
        '{"id": "!!", "rawId": "!!", "type": "public-key", "response": {"clientDataJSON": "!", "signature": "!", '
        '"authenticatorData": "!", "attestationObject": "!"}}',
        '{"id": "AAAA", "rawId": "AAAA", "type": "public-key", "response": {"clientDataJSON": "AAAA", '
        '"attestationObject": "_____w", "signature": "AA", "authenticatorData": "AA"}}',
        '{"id": "AAAA", "rawId": "AAAA", "type": "public-key", "response": {"clientDataJSON": "AAAA", '
        '"attestationObject": "n_8", "signature": "AA", "authenticatorData": "AA", "userHandle": 7}}',
        "[" * 100_000,
        "\x00",
        "\udcff",
    ],
    ids=range(12),
)
def test_a_malformed_response_is_refused(user: StaffUser, authenticator: SoftwareAuthenticator, response: str) -> None:
    _, challenge = passkeys.build_authentication_options()
    assert key_of_refusal(response, challenge) in ("passkey_invalid", "passkey_unknown")
    _, challenge = passkeys.build_registration_options(user.email, user.name, [])
    with pytest.raises(DomainError) as error:
        passkey_actions.add_passkey(user.id, "Phone", response, challenge)
    assert error.value.key == "passkey_invalid"


@pytest.mark.parametrize("data", [None, [], "x", ["a", "b", "c"], [1, 2, 3], ["a", 1, 2]])
def test_a_malformed_challenge_is_none(data: object) -> None:
    assert Challenge.load(data) is None


def test_a_challenge_survives_the_session() -> None:
    challenge = Challenge(b"\x00\xff", 7, b"handle")
    assert Challenge.load(json.loads(json.dumps(challenge.dump()))) == challenge
