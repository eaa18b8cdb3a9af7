"""The plain text of an HTML body, and the blocks of a plain text in the shop's design."""

from __future__ import annotations

import socket

import pytest
from flask import Flask

from webapp.campaigns.content import design
from webapp.campaigns.content.placeholders import parse_template
from webapp.mail.template import MARKER, Placeholder, TemplateParts, insert_markers
from webapp.shop.models import ShopValues


def show(parts: TemplateParts) -> str:
    """Return a template as text, with its placeholders in brackets."""
    return "".join(part if isinstance(part, str) else f"[{part.name}]" for part in parts)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p><p>Two</p>", "One\n\nTwo\n"),
        ("<div>a<div><div>b</div></div></div><h1>c</h1>d<span>e</span>f", "a\n\nb\n\nc\n\ndef\n"),
        ("a<br>b<br/>c", "a\nb\nc\n"),
        ("a  \n b&nbsp;\t c", "a b c\n"),
        ("<ul><li>A<li>B</ul>c", "- A\n\n- B\n\nc\n"),
        ("<ul><li><p>A</p></li><li><p>B</p><p>C</p></li></ul>", "- A\n\n- B\n\nC\n"),
        ("<table><tr><td>a<td>b<tr><th>c</table>d", "a\nb\n\nc\n\nd\n"),
        ('<img alt="A" src="x"><img src="y"><img alt="">', "A\n"),
        ('<a href="https://x">label</a> end', "label: https://x end\n"),
        ('<a href="https://x"> https://x</a>', "https://x\n"),
        ('<a href="https://x"> </a>', "https://x\n"),
        ('<a href="#top">label</a>', "label\n"),
        ("<a>label</a></a>", "label\n"),
        ("<a href='{{ link }}'>Go</a>", "Go: [link]\n"),
        ("<a href='https://x'>a<a href='https://y'>b</a></a>", "ab: https://y : https://x\n"),
        ("<head><style>x</style><title>y</title></head>z", "z\n"),
        ("</style>z<style>x", "z\n"),
        ("<template>a<b>b</b></template>c<script>d</script>", "c\n"),
    ],
)
def test_html_becomes_plain_text(html: str, text: str) -> None:
    assert show(design.convert_html_to_text(parse_template(html))) == text


def split(source: str) -> list[tuple[str, str]]:
    """Return the kinds and the HTML of the blocks of a text; each marker is a bullet."""
    placeholders: list[Placeholder] = []
    text = insert_markers(parse_template(source), placeholders)
    return [(block.kind, MARKER.sub("•", block.html)) for block in design._split_into_blocks(text, placeholders)]


@pytest.mark.parametrize(
    ("source", "blocks"),
    [
        ("{{ offer.code }}\n\n {{ link }} ", [("code", "•"), ("button", "•")]),
        ("{{ offer.discount }}\n\n{{ offer.name }}", [("discount", "•"), ("text", "•")]),
        ("{{ offer.discount }} off for youu", [("discount", "• off for youu")]),
        # The rest is longer than twelve characters.
        ("{{ offer.discount }} off for youu!", [("text", "• off for youu!")]),
        ("off {{ offer.discount }}", [("text", "off •")]),
        ("{{ offer.code }} now", [("text", "• now")]),
        ("{{ offer.code }}\n{{ link }}", [("text", "•<br>\n•")]),
        ("a\nb <i>\r\n\r\nc\n \t\n\n\nd", [("text", "a<br>\nb &lt;i&gt;"), ("text", "c"), ("text", "d")]),
        (
            "https://x.y/?a&b. (http://z)",
            [("text", '<a href="https://x.y/?a&amp;b">https://x.y/?a&amp;b</a>. (<a href="http://z">http://z</a>)')],
        ),
        ("\n \n", []),
    ],
)
def test_a_line_that_is_only_a_code_a_link_or_a_discount_is_a_block(source: str, blocks: list[tuple[str, str]]) -> None:
    assert split(source) == blocks


@pytest.mark.parametrize(
    ("source", "preheader"),
    [
        ("Hello,\n\n{{ offer.code }}\n\n{{ offer.name }}\n\nGet it: {{ link }}\n\nReal\n text\n\nmore", "Real text"),
        ("你好、\n\nمرحبا،\n\nx", "x"),
        ("Until {{ offer.ends }}", "Until •"),
        ("Out: {{ unsubscribe }}", ""),
        ("{{ customer.name }}", ""),
    ],
)
def test_the_preheader_is_the_first_paragraph_after_the_greeting(source: str, preheader: str) -> None:
    placeholders: list[Placeholder] = []
    text = insert_markers(parse_template(source), placeholders)
    assert MARKER.sub("•", design._find_preheader(text, placeholders)) == preheader


SHOP = {"unsubscribe_words": "Unsubscribe", "reason": "You are a customer.", "address": "1 High Street"}
DEFAULT_REASON = "You receive this email because you are a customer of Shop."


@pytest.mark.parametrize(
    ("values", "footer"),
    [
        (SHOP, "Hi\n\n-- \nYou are a customer.\nUnsubscribe: [unsubscribe]\n\n1 High Street\n"),
        (SHOP | {"reason": "", "address": ""}, f"Hi\n\n-- \n{DEFAULT_REASON}\nUnsubscribe: [unsubscribe]\n"),
    ],
)
def test_a_text_without_an_unsubscribe_link_gets_a_footer(values: dict[str, str], footer: str) -> None:
    shop = ShopValues("Shop", **values)
    assert show(design.add_text_footer(parse_template("Hi"), shop)) == footer
    assert show(design.add_text_footer(parse_template("Out: {{ unsubscribe }}"), shop)) == "Out: [unsubscribe]"
    assert show(design.add_text_footer(parse_template("Go: {{ link }}"), shop)) == "Go: [link]" + footer[2:]


def test_custom_html_keeps_an_invalid_style_sheet_and_gets_a_document_type(app: Flask) -> None:
    source = parse_template("<style>p { color: red } } { {</style><p>Hi</p>{{ unsubscribe }}")
    html = show(design.finish_custom_html(source, ShopValues("Shop")))
    assert html.startswith("<!DOCTYPE html>")
    assert "Hi</p>" in html


def test_the_footer_of_custom_html_is_at_the_end_of_its_last_body(app: Flask) -> None:
    source = parse_template("<html><body><pre>&lt;/body></pre><!-- </body> --><p>Hi</p></BODY></html>")
    html = show(design.finish_custom_html(source, ShopValues("Shop", address="1 High Street")))
    assert html.index("<p>Hi</p>") < html.index("1 High Street") < html.lower().rindex("</body>")


def test_style_sheets_of_other_servers_are_not_requested(app: Flask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/style.css"
        source = parse_template(f'<link rel="stylesheet" href="{url}"><p>Hi</p>{{{{ unsubscribe }}}}')
        assert "Hi</p>" in show(design.finish_custom_html(source, ShopValues("Shop")))
        with pytest.raises(BlockingIOError):
            server.accept()
