"""Errors that keep an email from being saved, and warnings that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from webapp.campaigns.content import design, lint
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent, parse_template
from webapp.campaigns.content.validation import validate_content
from webapp.core.errors import InvalidInput
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.shop import queries as shop_queries

pytestmark = pytest.mark.usefixtures("app")

AVAILABLE = (
    "Available placeholders: {{ customer.name }}, {{ customer.email }}, {{ offer.name }}, {{ offer.code }}, "
    "{{ offer.discount }}, {{ offer.ends }}, {{ link }}, {{ unsubscribe }}, {{ shop.name }}."
)
REPAIR = "Close the comment, style sheet, tag or quotation mark before it."
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
    message = f"There is no placeholder {typed}. Did you mean {suggestion}? {AVAILABLE}"
    assert found == ("placeholder_unknown", message)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("{{ weather }}", "{{ weather }}"),
        ("{{  wea\n ther }}", "{{ wea ther }}"),
        ("{{" + "x" * 100 + "}}", "{{" + "x" * 78),
    ],
)
def test_an_unfamiliar_placeholder_gets_no_suggestion(typed: str, shown: str) -> None:
    assert find_error("text", typed) == ("placeholder_unknown", f"There is no placeholder {shown}. {AVAILABLE}")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("Hi {{ customer.name }", "“{{ customer.name }” is not closed with }}."),
        ("Hi {{\n" + "x" * 50, "“{{ " + "x" * 37 + "” is not closed with }}."),
        ("{% if x %}{{ link }}", "“{% if x %}” is not a placeholder."),
        ("{{ link }} {{", "“{{” is not closed with }}."),
        ("}}", "“}}” is not opened with {{."),
        ("Hi customer.name }} and {{ link }}", "“Hi customer.name }}” is not opened with {{."),
        ("abc" + "x" * 24 + "}}", "“c" + "x" * 24 + "}}” is not opened with {{."),
    ],
)
def test_unbalanced_braces_are_shown_with_the_text_beside_them(typed: str, message: str) -> None:
    assert find_error("text", typed) == ("placeholder_unknown", f"{message} {AVAILABLE}")


def test_closing_braces_of_style_sheets_are_accepted() -> None:
    sheet = "<style>@media print{p{color:red}}</style>"
    assert find_error("html", f"{sheet}<p>Hi</p><STYLE >a{{}}</style >{sheet}") is None
    assert find_error("text", sheet) is not None
    found = find_error("html", f"{sheet}<p>Hi }}}}</p>{sheet}")
    assert found == ("placeholder_unknown", f"“<p>Hi }}}}” is not opened with {{{{. {AVAILABLE}")


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


@pytest.mark.parametrize(("length", "shown"), [(251, "251"), (1234, "1,234")])
def test_a_subject_that_is_too_long_is_rejected_with_its_length(length: int, shown: str) -> None:
    message = f"The subject may have at most 250 characters; this one has {shown}."
    assert find_error("subject", "x" * length) == ("too_long", message)
    assert find_error("subject", "x" * 250) is None


@pytest.mark.parametrize(("size", "shown"), [(256 * 1024 + 1, "256"), (5 * 2**20, "5,120")])
@pytest.mark.parametrize("field", ["text", "html"])
def test_a_body_that_is_too_large_is_rejected_with_its_size(field: str, size: int, shown: str) -> None:
    message = f"This is larger than 256 kB (it is {shown} kB); mail clients would cut it off."
    assert find_error(field, "x" * size) == ("too_large", message)
    # In bytes, not characters.
    assert find_error(field, "é" * (size // 2 + 1)) == ("too_large", message)
    assert find_error(field, "x" * 256 * 1024) is None


@pytest.mark.parametrize("character", ["\0", "\x1b", "\ud800", "\ue000"])
def test_characters_that_cannot_be_sent_are_rejected(character: str) -> None:
    message = "This contains characters that cannot be sent by email. Please type it again."
    for field in ("subject", "text", "html"):
        assert find_error(field, f"Hi{character}") == ("bad_character", message)
    assert find_error("text", "Hi\tAda\r\nBye") is None


@pytest.mark.parametrize(
    ("source", "location"),
    [
        ("<script>{{ link }}</script>", "a script"),
        ("<p onclick='{{ link }}'>", "a script"),
        ("<template>{{ link }}</template>", "a template that is never shown"),
        ("<template><script></script>{{ link }}</template>", "a template that is never shown"),
        ("<textarea>{{ link }}</textarea>", "a text field"),
        ("<select>{{ link }}</select>", "a selection list"),
        ("<select><option>{{ link }}</option></select>", "a selection list"),
        ("<iframe>{{ link }}</iframe>", "a frame"),
        ("<object>{{ link }}</object>", "an element that is never shown"),
        ("<p{{ link }}>", "the name of a tag"),
        ("<p {{ link }}>", "the name of an attribute"),
        ("<!-- {{ link }} -->", "a comment"),
        ("<!--[iffy {{ link }} -->", "a comment"),
    ],
)
def test_a_hidden_placeholder_is_rejected_with_its_location(source: str, location: str) -> None:
    message = f"The placeholder {{{{ link }}}} ends up in {location}. Move it, or fix the HTML: {REPAIR.lower()}"
    assert find_error("html", f"<p>Hi {{{{ link }}}}</p>{source}<p>{UNSUBSCRIBE_LINK}</p>") == ("html_broken", message)


NOT_SHOWN = (
    "The placeholder {{ link }} would not appear in the email. Move it, or fix the HTML: close the comment, style "
    "sheet, tag or quotation mark before it."
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<style>{{ link }}</style>", NOT_SHOWN),
        ("</p {{ link }}>", NOT_SHOWN),
        ("<!-- never closed", f"The unsubscribe link that is added at the end ends up in a comment. {REPAIR}"),
        (
            "<a href='https://example.com",
            f"The unsubscribe link that is added at the end would not appear in the email. {REPAIR}",
        ),
        (
            "<p title='{{ unsubscribe }}'>",
            "The unsubscribe link can't be clicked: put {{ unsubscribe }} into an <a href>.",
        ),
    ],
)
def test_html_that_loses_a_placeholder_is_rejected_with_what_to_do(source: str, message: str) -> None:
    assert find_error("html", f"<p>Hi</p>{source}") == ("html_broken", message)


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


def test_each_field_has_its_first_error() -> None:
    content = EmailContent("a\nb", "{{ weather }}", "x" * 2**20)
    for prefix, fields in (("", ["subject", "text", "html"]), ("mail", ["mail.subject", "mail.text", "mail.html"])):
        with pytest.raises(InvalidInput) as raised:
            validate_content(content, prefix)
        assert [error.field for error in raised.value.errors] == fields
        assert [error.key for error in raised.value.errors] == ["line_break", "placeholder_unknown", "too_large"]


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


def lint_email(
    content: EmailContent, code: str = "SUMMER25", has_end: bool = False, subject: str = "Hi", html_size: int = 0
) -> list[str]:
    text, html = parse_template(content.text), parse_template(content.html)
    return list(lint.lint_content(content, text, html, code, has_end, subject, html_size))


@pytest.mark.parametrize(
    ("content", "values", "warnings"),
    [
        (EmailContent(text="{{ link }}"), {"html_size": 102_400, "subject": "x" * 70}, []),
        (
            EmailContent(text="{{ link }}"),
            {"html_size": 102_401},
            ["The HTML is 100 kB. Gmail cuts off an email after about 100 kB, including its footer."],
        ),
        (
            EmailContent(text="{{ link }}"),
            {"subject": "x" * 71},
            ["The subject has 71 characters; most mail clients show no more than 70."],
        ),
        (
            EmailContent(text="SUMMER"),
            {},
            ["The email contains neither the code nor the personal link, so recipients can't redeem the offer."],
        ),
        (EmailContent(html="<p>SUMMER25</p>"), {}, []),
        (EmailContent(text="{{ offer.code }}"), {}, []),
        (
            EmailContent(text="{{ offer.code }}"),
            {"has_end": True},
            ["The offer has an end date, but the email does not say when it ends. Add {{ offer.ends }}."],
        ),
        (EmailContent(text="{{ offer.code }}", html="<p>{{ offer.ends }}</p>"), {"has_end": True}, []),
        (
            EmailContent(
                subject="{name}", text="{ offer.code } {name} {{ link }}", html="<style>a {b}</style><p>x</p>"
            ),
            {},
            [
                "“{ offer.code }” will be sent as is: placeholders need two braces on each side.",
                "“{name}” will be sent as is: placeholders need two braces on each side.",
            ],
        ),
        (
            EmailContent(text="http://b.example/x http://a.example {{ link }}", html="<p>http://b.example</p>"),
            {},
            [
                "A link or image points to http://a.example. Use https, because some mail clients warn about http.",
                "A link or image points to http://b.example. Use https, because some mail clients warn about http.",
            ],
        ),
    ],
)
def test_warnings_say_what_to_do(content: EmailContent, values: dict[str, Any], warnings: list[str]) -> None:
    assert lint_email(content, **values) == warnings


NOTHING = "Your HTML shows nothing: it has neither visible text nor images."
NO_ALT = "An image has no alternative text (alt), and most mail clients hide images at first."
NO_SCRIPT = "Mail clients remove links that begin with javascript: and attributes such as onclick."


def not_closed(tag: str) -> str:
    return f"A <{tag}> is not closed, so the rest of the email may look different in each mail client."


def removed(tag: str) -> str:
    return f"Mail clients remove <{tag}>, so it has no effect in an email."


@pytest.mark.parametrize(
    ("html", "warnings"),
    [
        ("  ", []),
        ("<p> </p>", [NOTHING]),
        ("<img src='a' alt=''>", []),
        ("<img src='a'>", [NO_ALT]),
        ("<img src='a'><img src='b'>", [NO_ALT.replace("An image has", "2 images have")]),
        ("<title>Hi</title><style>p</style>", [NOTHING]),
        ("<head><title>Hi</title>", [NOTHING, not_closed("head")]),
        ("<head><title>Hi</title><p>Hi", []),
        ("<head><title>Hi</title></head>Hi", []),
        ("<body style='display: none'>Hi", [NOTHING]),
        ("<style>body{color:red}p{display:none}</style>Hi", []),
        ("<div><b>Hi", [not_closed("b"), not_closed("div")]),
        ("<b><i>Hi</b></i>", [not_closed("i")]),
        ("<b><i>Hi</b><i>Hi</i>", [not_closed("i")]),
        ("<b>Hi</b></b><p>Hi", []),
        ("<video></video><form>Hi</form>", [removed("form"), removed("video")]),
        ("<a href=' JavaScript:x()'>Hi</a>", [NO_SCRIPT]),
        ("<img src='javascript:x()' alt=''>", [NO_SCRIPT]),
        ("<form action='javascript:x()'>Hi</form>", [removed("form"), NO_SCRIPT]),
        ("<a href='https://example.com/javascript:' title='javascript:'>Hi</a>", []),
        ("<p onfocus='x()'>Hi", [NO_SCRIPT]),
    ],
)
def test_warnings_about_html(html: str, warnings: list[str]) -> None:
    assert lint_email(EmailContent(text="{{ link }}", html=html)) == warnings
