"""Errors that keep an email from being saved, and warnings that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from webapp.campaigns.content import design
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent, parse_template
from webapp.campaigns.content.validation import validate_content
from webapp.core.errors import InvalidInput
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.shop import queries as shop_queries

pytestmark = pytest.mark.usefixtures("app")

UNSUBSCRIBE_LINK = '<a href="{{ unsubscribe }}">out</a>'


def find_error(field: str, value: str) -> tuple[str, str] | None:
    """Validate one field; return the (key, message) of its error, if any."""
    try:
        validate_content(EmailContent(**{field: value}))
    except InvalidInput as error:
        (found,) = error.errors
        assert found.field == field
        return found.key, found.message
    return None


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("{{ customer.nmae }}", "{{ customer.name }}"),
        ("{{ name }}", "{{ customer.name }}"),
        ("{{ offer_code }}", "{{ offer.code }}"),
        ("{{ Code }}", "{{ offer.code }}"),
        ("{{ unsubscribe_url }}", "{{ unsubscribe }}"),
        ('{{ costumer.name or "you" }}', "{{ customer.name }}"),
    ],
)
def test_an_unknown_placeholder_gets_a_suggestion(typed: str, suggestion: str) -> None:
    found = find_error("text", f"Hello {typed}")
    assert found is not None
    assert found[0] == "placeholder_unknown"
    assert f"There is no placeholder {typed}. Did you mean {suggestion}?" in found[1]


def test_an_unfamiliar_placeholder_gets_no_suggestion() -> None:
    assert "Did you mean" not in str(find_error("text", "{{ weather }}"))


@pytest.mark.parametrize("field", ["subject", "text", "html"])
@pytest.mark.parametrize(
    "typed", ["Hi {{ customer.name }", "Hi { customer.name }}", "Hi customer.name }}", "Hi {{", "}}"]
)
def test_unbalanced_braces_are_rejected(field: str, typed: str) -> None:
    found = find_error(field, typed)
    assert found is not None
    assert found[0] == "placeholder_unknown"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "Hi\r\nBcc: eve@example.com"])
def test_a_subject_with_a_line_break_is_rejected(value: str) -> None:
    assert find_error("subject", value) == ("line_break", "The subject must be one line.")


def test_a_body_of_five_megabytes_is_rejected_with_its_size() -> None:
    found = find_error("html", "x" * 5 * 2**20)
    assert found is not None
    assert found[0] == "too_large"
    assert "larger than 256 kB (it is 5,120 kB)" in found[1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (f"<p>Hi</p><!-- {UNSUBSCRIBE_LINK}", "comment"),
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
        ('<p title="{{ unsubscribe }}">Hi</p>', "The unsubscribe link can't be clicked"),
        ('<img src="{{ unsubscribe }}">', "The unsubscribe link can't be clicked"),
        ("<title>{{ unsubscribe }}</title><p>Hi</p>", "The unsubscribe link can't be clicked"),
        ("</p {{ offer.code }}>Hi", "{{ offer.code }}"),
    ],
)
def test_html_that_hides_placeholders_or_the_unsubscribe_link_is_rejected(source: str, reason: str) -> None:
    found = find_error("html", source)
    assert found is not None
    assert found[0] == "html_broken"
    assert reason in found[1]


@pytest.mark.parametrize(
    "source",
    [
        "<p>Hi {{ customer.name }}",
        "Hi <b>{{ customer.name }}<i> and {{ offer.code }}</b>",
        f"<table><tr><td>{{{{ offer.code }}}}<tr><td>{UNSUBSCRIBE_LINK}</table>",
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
def test_html_that_mail_clients_can_repair_is_accepted(source: str) -> None:
    assert find_error("html", source) is None


def test_repaired_html_keeps_every_placeholder() -> None:
    source = (
        "<b>{{ customer.name }}<i>{{ offer.code }}</b>{{ link }}<table>{{ offer.ends }}<tr><td>{{ offer.discount }}"
    )
    html = design.finish_custom_html(parse_template(source), shop_queries.default_shop())
    names = {part.name for part in html if not isinstance(part, str)}
    assert names >= {"customer.name", "offer.code", "link", "offer.ends", "offer.discount", "unsubscribe"}


def test_the_default_email_is_valid() -> None:
    validate_content(EmailContent(DEFAULT_SUBJECT, DEFAULT_TEXT))


# --- warnings -------------------------------------------------------------------------------------


@pytest.fixture
def warnings(app: Flask, make_offer: Callable[..., Offer]) -> Callable[..., str]:
    """Render an email; return its warnings as one text."""
    offer = make_offer()

    def warn(**content: str) -> str:
        return "\n".join(MailMerge(EmailContent(**content), offer, 3).preview(_ada()).warnings)

    return warn


def _ada() -> Customer:
    return Customer(id=7, email="ada@example.com", email_as_given="ada@example.com", name="Ada")


def test_the_default_email_has_no_warnings(warnings: Callable[..., str]) -> None:
    assert warnings() == ""


@pytest.mark.parametrize(
    ("content", "warning"),
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
        ({"text": "Hi { customer.name }, {{ link }} {{ offer.ends }}"}, "“{ customer.name }” will be sent as is"),
        ({"subject": "For {name}"}, "“{name}” will be sent as is"),
    ],
)
def test_likely_mistakes_cause_a_warning(warnings: Callable[..., str], content: dict[str, str], warning: str) -> None:
    validate_content(EmailContent(**content))
    assert warning in warnings(**content)


@pytest.mark.parametrize(
    "content",
    [
        {"text": "SUMMER25 until {{ offer.ends }}"},
        {"html": '<img src="https://example.com/a.png" alt=""><p>{{ link }} {{ offer.ends }}</p>'},
        {"html": "<style>p {color}</style><p>{{ link }} {{ offer.ends }}</p>"},
        {"subject": "x" * 70},
        {"text": "{{ link }} {{ offer.ends }} {1, 2}"},
    ],
)
def test_correct_emails_cause_no_warning(warnings: Callable[..., str], content: dict[str, str]) -> None:
    assert warnings(**content) == ""


@pytest.mark.parametrize(
    ("html", "warning"),
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
def test_html_that_mail_clients_would_break_causes_a_warning(
    warnings: Callable[..., str], html: str, warning: str
) -> None:
    assert warning in warnings(html=html)


def test_valid_html_causes_no_warning(warnings: Callable[..., str]) -> None:
    document = """<html><head><title>Hi</title><style>p{color:red}</style></head><body><table><tr><td><p>One<p>Two<br>
    <ul><li>Three<li>Four</ul><img src="https://example.com/a.png" alt="A"><a href="{{ link }}">Here</a></table>
    {{ offer.ends }}"""
    assert warnings(html=document) == ""
    assert warnings(html=document.replace("</head>", "")) == ""
