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
