"""What keeps a mail from being saved, and what staff are only told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.core.errors import InvalidInput
from webapp.customers.models import Customer
from webapp.offers.models import Offer

pytestmark = pytest.mark.usefixtures("app")

WAY_OUT = '<a href="{{ unsubscribe }}">out</a>'


def wrong(field: str, value: str) -> tuple[str, str] | None:
    """(key, sentence) of what is wrong with one field."""
    try:
        validate_content(EmailContent(**{field: value}))
    except InvalidInput as error:
        (found,) = error.errors
        assert found.field == field
        return found.key, found.message
    return None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("{{ customer.nmae }}", "{{ customer.name }}"),
        ("{{ name }}", "{{ customer.name }}"),
        ("{{ offer_code }}", "{{ offer.code }}"),
        ("{{ Code }}", "{{ offer.code }}"),
        ("{{ unsubscribe_url }}", "{{ unsubscribe }}"),
        ('{{ costumer.name or "you" }}', "{{ customer.name }}"),
    ],
)
def test_an_unknown_placeholder_is_named_with_the_one_that_was_meant(typed: str, meant: str) -> None:
    found = wrong("text", f"Hello {typed}")
    assert found is not None
    assert found[0] == "placeholder_unknown"
    assert f"There is no placeholder {typed}. Did you mean {meant}?" in found[1]


def test_where_nothing_is_near_nothing_is_suggested() -> None:
    assert "Did you mean" not in str(wrong("text", "{{ weather }}"))


@pytest.mark.parametrize("field", ["subject", "text", "html"])
@pytest.mark.parametrize(
    "typed", ["Hi {{ customer.name }", "Hi { customer.name }}", "Hi customer.name }}", "Hi {{", "}}"]
)
def test_braces_that_do_not_match_are_refused(field: str, typed: str) -> None:
    found = wrong(field, typed)
    assert found is not None
    assert found[0] == "placeholder_unknown"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "Hi\r\nBcc: eve@example.com"])
def test_a_subject_is_one_line(value: str) -> None:
    assert wrong("subject", value) == ("line_break", "The subject must be one line.")


def test_a_body_of_five_megabytes_is_refused_with_its_size() -> None:
    found = wrong("html", "x" * 5 * 2**20)
    assert found is not None
    assert found[0] == "too_large"
    assert "larger than 256 kB (it has 5,120 kB)" in found[1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"<p>Hi</p><!-- {WAY_OUT}", "comment"),
        ("<p>Hi</p><!-- never closed", "unsubscribe link"),
        ("<p>Hi</p><style>p { color: red }", "unsubscribe link"),
        ("<p>Hi</p><script>let a = 1", "unsubscribe link"),
        ("<p>Hi</p><textarea>", "unsubscribe link"),
        ("<p>Hi</p><a href='https://example.com", "unsubscribe link"),
        ("<p {{ customer.name }}>Hi</p>", "{{ customer.name }}"),
        ("<p{{ customer.name }}>Hi</p>", "{{ customer.name }}"),
        ("<!-- {{ offer.code }} --><p>Hi</p>", "{{ offer.code }} ends up in a comment"),
        ("<style>p::after { content: '{{ offer.code }}' }</style><p>Hi</p>", "{{ offer.code }}"),
        ("<script>go('{{ link }}')</script><p>Hi</p>", "{{ link }}"),
        ("<p onclick=\"go('{{ link }}')\">Hi</p>", "{{ link }}"),
        ("<template>{{ offer.code }}</template><p>Hi</p>", "{{ offer.code }}"),
        ('<p title="{{ unsubscribe }}">Hi</p>', "The unsubscribe link cannot be clicked"),
        ('<img src="{{ unsubscribe }}">', "The unsubscribe link cannot be clicked"),
        ("</p {{ offer.code }}>Hi", "{{ offer.code }}"),
    ],
)
def test_html_that_swallows_what_is_needed_is_refused(source: str, words: str) -> None:
    found = wrong("html", source)
    assert found is not None
    assert found[0] == "html_broken"
    assert words in found[1]


@pytest.mark.parametrize(
    "source",
    [
        "<p>Hi {{ customer.name }}",
        "Hi <b>{{ customer.name }}<i> and {{ offer.code }}</b>",
        f"<table><tr><td>{{{{ offer.code }}}}<tr><td>{WAY_OUT}</table>",
        "<html><body><p>Hi</body></html><p>after the end",
        "<style>@media(max-width:9px){p{color:red}}</style><p>Hi {{ customer.name }}</p>",
        '<a href="{{ link }}" title="For {{ customer.name }}">go</a>',
        "<title>{{ offer.name }}</title><p>Hi</p>",
        '<!--[if mso]><a href="{{ link }}">go</a><![endif]--><p>Hi</p>',
        "<!-- closed --><p>Hi</p>",
        "<p>a < b & c > d {{ offer.ends }}</p>",
        "<{{ customer.name }}>",
        "{{ unsubscribe }}",
        "",
    ],
)
def test_html_that_mail_programs_can_mend_is_taken(source: str) -> None:
    assert wrong("html", source) is None


def test_what_is_taken_still_has_every_placeholder_and_the_way_out(make_offer: Callable[..., Offer]) -> None:
    source = (
        "<b>{{ customer.name }}<i>{{ offer.code }}</b>{{ link }}<table>{{ offer.ends }}<tr><td>{{ offer.discount }}"
    )
    html = MailMerge(EmailContent(html=source), make_offer(), 3).html
    names = {part.name for part in html if not isinstance(part, str)}
    assert names >= {"customer.name", "link", "offer.ends", "offer.discount", "unsubscribe"}


def test_the_mails_we_suggest_are_in_order() -> None:
    validate_content(EmailContent(DEFAULT_SUBJECT, DEFAULT_TEXT))


# --- advice ---------------------------------------------------------------------------------------


@pytest.fixture
def advised(app: Flask, make_offer: Callable[..., Offer]) -> Callable[..., str]:
    """What staff are told of a mail, as one text."""

    def go(**mail: str) -> str:
        offer = make_offer()
        return "\n".join(MailMerge(EmailContent(**mail), offer, 3).preview(_ada()).warnings)

    return go


def _ada() -> Customer:

    return Customer(id=7, email="ada@example.com", email_as_given="ada@example.com", name="Ada")


def test_there_is_nothing_to_say_of_the_mail_we_suggest(advised: Callable[..., str]) -> None:
    assert advised() == ""


@pytest.mark.parametrize(
    ("mail", "words"),
    [
        ({"text": "Hello, it ends {{ offer.ends }}"}, "neither the code nor the personal link"),
        ({"text": "{{ offer.code }}"}, "the email does not say when"),
        ({"html": f"<p>{{{{ offer.code }}}} {{{{ offer.ends }}}}</p><p>{'x' * 103_000}</p>"}, "Gmail cuts off"),
        (
            {"html": '<img src="https://example.com/a.png"><p>{{ link }} {{ offer.ends }}</p>'},
            "An image has no alternative text",
        ),
        ({"html": '<img src="a"><img src="b"><p>{{ link }} {{ offer.ends }}</p>'}, "2 images have no alternative text"),
        ({"html": '<a href="http://shop.example/x">x</a>{{ link }}'}, "http://shop.example. Use https"),
        ({"text": "See http://shop.example/x {{ link }}"}, "http://shop.example. Use https"),
        ({"subject": "x" * 71}, "71 characters"),
        ({"text": "Hi { customer.name }, {{ link }} {{ offer.ends }}"}, "“{ customer.name }” is sent as it is"),
        ({"subject": "For {name}"}, "“{name}” is sent as it is"),
    ],
)
def test_what_may_be_a_mistake_is_said(advised: Callable[..., str], mail: dict[str, str], words: str) -> None:
    validate_content(EmailContent(**mail))
    assert words in advised(**mail)


@pytest.mark.parametrize(
    "mail",
    [
        {"text": "SUMMER25 until {{ offer.ends }}"},
        {"html": '<img src="https://example.com/a.png" alt=""><p>{{ link }} {{ offer.ends }}</p>'},
        {"html": "<style>p {color}</style><p>{{ link }} {{ offer.ends }}</p>"},
        {"subject": "x" * 70},
        {"text": "{{ link }} {{ offer.ends }} {1, 2}"},
    ],
)
def test_what_is_no_mistake_is_not_said(advised: Callable[..., str], mail: dict[str, str]) -> None:
    assert advised(**mail) == ""


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("<table><tr><td>Hello {{ link }}", "A <table> is not closed"),
        ('<p><a href="{{ link }}">Hello <p>you', "A <a> is not closed"),
        ("<b><i>Hello</b> you {{ link }}", "A <i> is not closed"),
        ("<p>Hello<script>x()</script>", "Mail clients remove <script>"),
        ("<p><a href='javascript:x()'>Hello</a>", "begin with javascript:"),
        ("<p onclick='x()'>Hello", "such as onclick"),
        ("<style>body{color:red;display:none}</style><p>Hello", "Your HTML shows nothing"),
        ("<div> </div>", "Your HTML shows nothing"),
    ],
)
def test_html_that_mailboxes_would_spoil_is_remarked_on(advised: Callable[..., str], html: str, words: str) -> None:
    assert words in advised(html=html)


def test_html_that_is_well_is_not_remarked_on(advised: Callable[..., str]) -> None:
    whole = """<html><head><title>Hi</title><style>p{color:red}</style></head><body><table><tr><td><p>One<p>Two<br>
    <ul><li>Three<li>Four</ul><img src="https://example.com/a.png" alt="A"><a href="{{ link }}">Here</a></table>
    {{ offer.ends }}"""
    assert advised(html=whole) == ""
