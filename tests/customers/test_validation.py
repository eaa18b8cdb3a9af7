"""Limits and spellings of customer fields and audience names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from flask import Flask

from webapp.core.errors import InvalidInput
from webapp.customers.validation import clean_audience_name, clean_locale, clean_name, clean_source_id

LIMITS = [(clean_name, "name", 200), (clean_source_id, "source_id", 200), (clean_audience_name, "audience", 100)]


@pytest.mark.parametrize(("clean", "field", "limit"), LIMITS)
def test_a_text_may_be_as_long_as_its_limit(app: Flask, clean: Callable[[str], str], field: str, limit: int) -> None:
    assert clean("x" * limit) == "x" * limit
    # Leading, trailing and repeated spaces do not count.
    assert clean(f"  {'x' * (limit - 2)}   y ") == f"{'x' * (limit - 2)} y"
    with pytest.raises(InvalidInput) as raised:
        clean("x" * (limit + 1))
    assert [(error.field, error.key) for error in raised.value.errors] == [(field, f"{field}_invalid")]
    assert f"at most {limit} characters" in raised.value.message


@pytest.mark.parametrize(("clean", "field", "_limit"), LIMITS)
@pytest.mark.parametrize("given", ["a\x00b", "a\x07b", "a\x1bb", "a\x7fb", "a\ud800b"])
def test_control_characters_are_rejected(
    app: Flask, clean: Callable[[str], str], field: str, _limit: int, given: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        clean(given)
    assert [(error.field, error.key) for error in raised.value.errors] == [(field, f"{field}_invalid")]
    assert "control characters" in raised.value.message


@pytest.mark.parametrize(("clean", "field", "limit"), LIMITS)
def test_a_text_that_is_much_too_long_is_not_normalised(
    app: Flask, clean: Callable[[str], str], field: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normalising two megabytes of accents would take an hour."""
    normalised: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(unicodedata, "normalize", lambda *text: normalised.append(text))
        with pytest.raises(InvalidInput, match=f"at most {limit} characters"):
            clean("\x07" + "\u0301\u0327" * 2 * limit)
    assert normalised == []


@pytest.mark.parametrize(
    "given", ["a\u200bb", "a\u200db", "\U0001f469\u200d\U0001f680", "\u0639\u0627\u0626\u0634\u0629"]
)
def test_invisible_and_joining_characters_are_kept(given: str) -> None:
    assert clean_name(given) == given


@pytest.mark.parametrize("given", ["a", "abcd", "de-", "de_", "de CH", "d1", "de-" + "x" * 9, "de-aa-bb-cc-dd", "*"])
def test_an_invalid_language_tag_is_rejected(app: Flask, given: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        clean_locale(given)
    assert [(error.field, error.key) for error in raised.value.errors] == [("locale", "locale_invalid")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("DEU", "deu"),
        ("de-1996", "de-1996"),
        ("zh_HANT", "zh-Hant"),
        ("en-us-POSIX", "en-US-posix"),
        ("es-419", "es-419"),
    ],
)
def test_the_parts_of_a_language_tag_get_their_usual_case(given: str, expected: str) -> None:
    assert clean_locale(given) == expected
