"""The rule for new passwords."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import pytest
from flask import Flask
from zxcvbn import matching

from tests.support.accounts import PASSWORD
from webapp.accounts import invitation_actions, links, passwords, sign_in_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.models import StaffUser
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.core.settings import ROOT
from webapp.shop.models import Shop

Person = Callable[..., StaffUser]
Token = Callable[..., str]
# Every digit and symbol that zxcvbn reads as a letter.
ALL_SUBSTITUTIONS = "4@8({[<369&#!1/|0$5+7%2"


def find_error(password: str, name: str = "Zoë Müller", email: str = "z.mueller@florist.example") -> FieldError | None:
    """Return the error of a new password, or None if it is accepted."""
    try:
        passwords.check_new_password(password, name, email)
    except InvalidInput as error:
        (field_error,) = error.errors
        assert field_error.field == "password"
        return field_error
    return None


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "three random words",
        "xK9#mQ2$vLw",
        "сорок две синие кошки",
        "日本語の長い合言葉です",
        "🦊🌵🚲🎻🍋🧵🪁🥁🧭🪴",
        "no digits and no capital letters",
        "kX3!pQ9zvW",
        "aa" + "correct horse battery " * 9,
    ],
)
def test_long_or_random_passwords_of_any_characters_are_accepted(app: Flask, password: str) -> None:
    assert find_error(password) is None


@pytest.mark.parametrize("password", ["kX3!pQ9zv", "x", "", "ﬀ" * 4, "aaa" + "correct horse battery " * 9])
def test_passwords_that_are_too_short_or_too_long_are_refused(app: Flask, password: str) -> None:
    error = find_error(password)
    assert error
    assert (error.key, error.message) == ("password_length", "Use 10 to 200 characters.")


def test_the_recent_years_end_with_the_next_one() -> None:
    this_year = datetime.now(UTC).year
    assert [passwords._list_recent_years()[n] for n in (0, -1)] == ["2020", str(this_year + 1)]


def test_the_list_of_common_passwords_has_more_than_3000_of_the_required_length() -> None:
    """ASVS 5.0, 6.2.4."""
    listed = passwords.COMMON_PASSWORDS_FILE.read_text("utf-8").splitlines()
    assert len(set(listed)) == len(listed) == 10_000
    assert {password for password in listed if len(password) < passwords.MIN_PASSWORD_LENGTH} == set()
    assert [password for password in listed if password != password.casefold()] == []


@pytest.mark.parametrize("password", ["password123", "PassWord123", "1q2w3e4r5t", "soso123aljg", "ｐassword123"])
def test_common_passwords_are_refused_in_any_case(app: Flask, password: str) -> None:
    error = find_error(password)
    assert error
    assert error.key == "password_common"


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("Password-123456!", "similar to a commonly used one"),
        ("wwwwwwwwwwwwwwww", "repeats itself"),
        ("mnbvcmnbvcmnbvc", "repeats itself"),
        ("defghijklmnopq", "the order of"),
        ("98765432109876", "the order of"),
        ("cft6yhnji9", "the order of"),
        ("correcthorse", "Make it longer"),
        ("Summer2026!!", "a recent year"),
        ("manchester united", "similar to a commonly used one"),
    ],
)
def test_passwords_that_are_easy_to_guess_are_refused_with_the_reason(app: Flask, password: str, reason: str) -> None:
    error = find_error(password)
    assert error
    assert error.key == "password_weak"
    assert reason in error.message


@pytest.mark.parametrize(
    "password",
    [
        "Zoë Müller 26",
        "zoemuller1!",
        "muller-zoe-1",
        "rellum.eoz12",
        "zoe7dragonfly",
        "z.mueller2026",
        "florist2026!",
        "Onecode-2026",
        "testshop1234",
    ],
)
def test_the_words_of_the_account_do_not_count(app: Flask, password: str) -> None:
    error = find_error(password)
    assert error
    assert (error.key, "your name, your email address or the name of the shop" in error.message) == (
        "password_weak",
        True,
    )


def test_the_saved_name_of_the_shop_does_not_count(app: Flask) -> None:
    assert find_error("Krzyzanowska26") is None
    db.session.add(
        Shop(
            id=1, name="Krzyżanowska & Co", sender_name="", reply_to="", address="", colour="#0f766e", locale="en",
            reason="", unsubscribe_words="u", button_words="b", link_words="l",
        )
    )  # fmt: skip
    db.session.commit()

    error = find_error("Krzyzanowska26")
    assert error
    assert error.key == "password_weak"


def test_words_of_another_account_count(app: Flask) -> None:
    assert find_error("zygmunt.rex5", "Zygmunt")
    assert find_error("zygmunt.rex5", "Ann") is None


@pytest.mark.parametrize("password", ["correct horse battery Zoe", "Zoë has three blue bicycles", "xK9#zoemQ2$vLw!"])
def test_the_words_of_the_account_may_be_part_of_a_good_password(app: Flask, password: str) -> None:
    assert find_error(password) is None


@pytest.mark.parametrize("password", [ALL_SUBSTITUTIONS * 8, "correct horse " + ALL_SUBSTITUTIONS, "4@8(" * 50])
def test_the_work_for_a_password_is_bounded(app: Flask, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    """Without the bounds, these would take seconds."""
    looked_up: list[int] = []
    original = matching.dictionary_match

    def counted(text: str, _ranked_dictionaries: object) -> object:
        looked_up.append(len(text))
        return original(text, _ranked_dictionaries)

    monkeypatch.setattr(matching, "dictionary_match", counted)
    find_error(password[: passwords.MAX_PASSWORD_LENGTH])

    assert 0 < max(looked_up) <= passwords.MAX_ESTIMATED_LENGTH
    # Two look-ups for each estimate, one for each combination of substitutions, and those of a repeated part.
    assert len(looked_up) <= 30


def test_only_the_start_of_a_long_text_is_normalised(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these two megabytes would take an hour, in which the process could do nothing else."""
    password = "é" * passwords.MAX_PASSWORD_LENGTH
    password_hash = passwords.hash_password(password)
    lengths: list[int] = []
    original = unicodedata.normalize

    def recorded(form: Literal["NFKC"], text: str) -> str:
        lengths.append(len(text))
        return original(form, text)

    marks = "\u0301\u0327" * 1_000
    with monkeypatch.context() as patch:
        patch.setattr(unicodedata, "normalize", recorded)
        assert not passwords.verify_password(password_hash, password + marks)
        passwords.verify_dummy_password(marks)
    assert max(lengths) == 5 * passwords.MAX_PASSWORD_LENGTH
    assert passwords.verify_password(password_hash, original("NFD", password))


def test_symbols_are_still_read_as_letters(app: Flask) -> None:
    error = find_error("P@$$w0rd1234")
    assert error
    assert error.key in ("password_common", "password_weak")


def test_the_word_lists_are_loaded_only_when_a_password_is_set() -> None:
    """They take 15 MB and 0.2 s, which would slow down the start of every process and command."""
    code = "import sys, webapp; print('zxcvbn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestActions:
    def test_an_invitation_with_a_weak_password_still_works(self, make_invitation_token: Token) -> None:
        token = make_invitation_token("viewer")
        with pytest.raises(InvalidInput, match="your name"):
            invitation_actions.accept_invitation(token, "Annabel Lee", "annabel@example.com", "annabel.lee1", "UTC")
        assert invitation_actions.accept_invitation(token, "Annabel Lee", "annabel@example.com", PASSWORD, "UTC").id

    def test_a_reset_link_with_a_weak_password_still_works(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer")
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        with pytest.raises(InvalidInput):
            invitation_actions.reset_password(token, f"{user.email}1")
        assert account_queries.find_unused_invitation(links.hash_token(token))
        assert invitation_actions.reset_password(token, "a brand new one").id == user.id

    def test_a_weak_password_does_not_replace_the_own_one(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer")
        with pytest.raises(InvalidInput) as raised:
            sign_in_actions.change_own_password(user.id, PASSWORD, "password1234")
        assert raised.value.errors[0].field == "password"
        db.session.rollback()
        assert sign_in_actions.sign_in_user(user.email, PASSWORD)

    @pytest.mark.parametrize(
        ("name", "email"),
        [("Annabel Lee", "viewer@example.com"), ("Viewer", "annabel.lee@example.com")],
        ids=["name", "email address"],
    )
    def test_every_new_password_is_checked_for_the_words_of_its_account(
        self, make_user_with_password: Person, make_invitation_token: Token, name: str, email: str
    ) -> None:
        token = make_invitation_token("viewer")
        with pytest.raises(InvalidInput, match="your name"):
            invitation_actions.accept_invitation(token, name, email, "annabel.lee1", "UTC")
        user = make_user_with_password("viewer", email=email)
        user.name = name
        token = invitation_actions.create_password_reset_link(user.id, by="tests").rpartition("/")[2]
        with pytest.raises(InvalidInput, match="your name"):
            invitation_actions.reset_password(token, "annabel.lee1")
        with pytest.raises(InvalidInput, match="your name"):
            sign_in_actions.change_own_password(user.id, PASSWORD, "annabel.lee1")

    def test_an_older_password_still_works(self, make_user_with_password: Person) -> None:
        user = make_user_with_password("viewer")
        user.password_hash = passwords.hash_password("password")
        db.session.commit()
        assert sign_in_actions.sign_in_user(user.email, "password")
