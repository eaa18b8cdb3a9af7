"""HTML that is nested too deep is refused before it can crash the parser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from flask import Flask

from tests.support import smtp_relay
from tests.support.campaigns import issue_states, launch_to
from webapp.campaigns.content import design, mail_merge
from webapp.campaigns.content.placeholders import EmailContent, parse_template
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.models import Campaign
from webapp.campaigns.sending import sender
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.mail import html_depth
from webapp.offers.models import Offer
from webapp.shop import queries as shop_queries

DEEP = "<div>" * 20_000 + "x"


# Inlines each source in a child process, because HTML that is not refused crashes it. Prints the exit statuses.
INLINE_IN_CHILDREN = """
import json, os, sys
from webapp.campaigns.content import design
from webapp.mail import html_depth
statuses = []
for source in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        try:
            design._inline_css(source)
        except html_depth.HtmlTooDeep:
            os._exit(0)
        os._exit(1)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


def test_html_that_is_nested_too_deep_is_rejected_at_its_field(app: Flask) -> None:
    sources = [
        DEEP,
        "".join(f"<p><b id={n}></p>" for n in range(5_000)),
        "<div>" * 150 + "<object>" + "</div>" * 150 + "<div>" * 150,
        "<svg><style>" + "<g>" * 5_000,
        "<svg>" + "<link>" * 5_000,
        "<!-->" + "<div>" * 5_000 + "-->",
        ("<div>" * 150 + "<textarea>" + "</div>" * 150 + "</textarea>") * 20,
        ("<div>" * 150 + "<!-- -- >" + "</div>" * 150 + "-->") * 20,
        "<a " * 80_000,
    ]
    command = [sys.executable, "-c", INLINE_IN_CHILDREN]
    result = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(result.stdout) == [0] * len(sources)
    for source in sources:
        with pytest.raises(InvalidInput) as raised:
            validate_content(EmailContent(html=source))
        assert [error.field for error in raised.value.errors] == ["html"]


@pytest.mark.parametrize(
    "source",
    [
        "<table>" + "<tr><td>a<td>b" * 1_000 + "</table>",
        "<ul>" + "<li>a" * 1_000 + "</ul>" + "<p>b" * 1_000,
        "<div><p>a</div>" * 1_000,
        "<br>" * 1_000 + '<img src="x" alt="">' * 1_000,
        "<div>" * 190 + "x" + "</div>" * 190,
        "<p><b>a</b> <i>b</i></p>" * 1_000,
    ],
)
def test_long_html_without_end_tags_is_accepted(app: Flask, source: str) -> None:
    html_depth.check_html_depth(source)

    assert design.finish_custom_html(parse_template(source), shop_queries.default_shop())


TOO_DEEP = (
    "Elements are nested more than 200 levels deep, or that many elements are not closed. Close them, or remove some "
    "of them."
)
IN_COMMENTS = "The HTML has more than 500 tags in comments. Remove some of them."


@pytest.mark.parametrize(
    ("accepted", "rejected", "message"),
    [
        ("<div>" * 200, "<div>" * 201, TOO_DEEP),
        # Few tags are never nested too deeply.
        (
            "<br>" * 200 + "<!-- -- >",
            "<br>" * 201 + "<!-- -- >",
            "A comment is not closed with “-->”. Correct the HTML.",
        ),
        (
            "<br>" * 201 + "<a " * 200,
            "<br>" * 201 + "<a " * 201,
            "Many tags at the end of the HTML are not closed. Correct the HTML.",
        ),
        (f"<!--{'<b>' * 500}-->", f"<!--{'<b>' * 501}-->", IN_COMMENTS),
        (f"<p><!--{'<b>' * 500}-->", f"<p><!--{'<b>' * 501}-->", IN_COMMENTS),
        # Elements without an end tag stay open within SVG and MathML, unless they are closed at once.
        ("<br>" * 500, "<svg>" + "<br>" * 200, TOO_DEEP),
        ("<svg></svg>" + "<br>" * 500, "<math>" + "<br>" * 200, TOO_DEEP),
        ("<svg>" + "<g/>" * 500, "<svg>" + "<br/>" * 200, TOO_DEEP),
        ("<math>" + "<g/>" * 500, "<div/>" * 201, TOO_DEEP),
        # End tags in a text field are text.
        (
            "<div>" * 99 + "<textarea></div></textarea>" + "<div>" * 101,
            "<div>" * 99 + "<textarea></div></textarea>" + "<div>" * 102,
            TOO_DEEP,
        ),
        ("<div><p></div>" * 300, "<p><b></p>" * 201, TOO_DEEP),
        ("<b></b>" * 300, "<b></i>" * 201, TOO_DEEP),
    ],
)
def test_html_is_rejected_from_a_limit_on(app: Flask, accepted: str, rejected: str, message: str) -> None:
    html_depth.check_html_depth(accepted)
    with pytest.raises(html_depth.HtmlTooDeep) as raised:
        html_depth.check_html_depth(rejected)
    assert str(raised.value) == message


def test_building_a_stored_email_that_is_too_deep_fails_with_a_message(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    campaign = launch_to(make_offer, ["c0@example.com"])
    stored = db.session.get_one(Campaign, campaign.id)
    stored.html = DEEP
    db.session.commit()
    merge = mail_merge.create_mail_merge(stored, db.session.get_one(Offer, stored.offer_id))
    customer = db.session.scalars(db.select(Customer)).one()

    with pytest.raises(ValueError, match="nested more than 200 levels deep"):
        merge.build_message(customer)
    with pytest.raises(InvalidInput, match="nested more than 200 levels deep"):
        merge.preview(customer)


def test_deliveries_of_a_template_that_is_too_deep_fail(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., object]
) -> None:
    campaign = launch_to(make_offer, ["c0@example.com"])
    db.session.get_one(Campaign, campaign.id).html = DEEP
    db.session.commit()
    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        sender.send_pending_emails()

    assert issue_states(campaign) == {"c0@example.com": ("failed", None)}
    assert "nested more than 200 levels deep" in db.session.scalars(db.text("select text from mail_issue")).one()
