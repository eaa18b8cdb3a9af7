"""Settings → Shop: what customers see of the shop, a sample of the mail, and whether the relay takes mail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns.content.mail_merge import FormLetter
from webapp.campaigns.content.placeholders import MailText
from webapp.core.errors import DomainError, Invalid
from webapp.customers.models import Customer
from webapp.mail import addresses, relay_check
from webapp.mail.relay_check import Finding
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries
from webapp.shop.validation import checked
from webapp.views import rendering
from webapp.views.staff.blueprint import needs
from webapp.views.staff.forms.shop import ShopForm

room = Blueprint("shop", __name__, url_prefix="/settings/shop")


@room.get("")
@needs("manager")
def edit() -> Response:
    """What is known of the shop."""
    form = ShopForm(formdata=None)
    form.show(shop_queries.shop())
    return _page(form)


@room.post("")
def save() -> BaseResponse:
    """Keep what was typed."""
    form = ShopForm()
    try:
        if not form.validate_on_submit():
            return _page(form, 422)
        shop_actions.save(form.values(), by=current_user.email)
    except DomainError as error:
        rendering.attach(form, error)
        return _page(form, error.status)
    flash("Saved. Mails that are still to go out say it, too.", "success")
    return redirect(url_for("staff.shop.edit"))


@room.get("/sample")
@needs("manager")
def sample() -> Response:
    """The piece with the sample of a mail, as the shop would be with what is typed; nothing is kept."""
    form = ShopForm(request.args, meta={"csrf": False})
    return rendering.render("shop/_sample.html", **_sample_values(form))


@room.get("/sample/frame")
@needs("manager")
def frame() -> Response:
    """The sample itself, alone. What can't be taken leaves the shop as it is."""
    form = ShopForm(request.args, meta={"csrf": False})
    try:
        values = checked(form.values())
    except Invalid:
        values = shop_queries.shop()
    return rendering.framed(FormLetter(MailText(), _offer(), 0, shop=values).preview(_customer()).html)


@room.post("/relay")
def check_relay() -> BaseResponse:
    """See whether the relay takes mail. Nothing is sent."""
    finding = relay_check.check()
    if rendering.is_htmx():
        return rendering.render("shop/_relay.html", settings=current_app.config["SETTINGS"], finding=finding)
    form = ShopForm(formdata=None)
    form.show(shop_queries.shop())
    return _page(form, finding=finding)


def _page(form: ShopForm, status: int = 200, finding: Finding | None = None) -> Response:
    page = rendering.render(
        "shop/edit.html",
        status=status,
        settings=current_app.config["SETTINGS"],
        sender=addresses.sender(current_app.config["SETTINGS"].mail_default_sender),
        finding=finding,
        **_sample_values(form),
    )
    return rendering.with_frames(page)


def _sample_values(form: ShopForm) -> dict[str, Any]:
    """The form, and where the sample is; no address while what was typed can't be taken."""
    try:
        checked(form.values())
    except Invalid:
        return {"form": form, "frame_url": None}
    typed = {name: value for name, value in form.data.items() if name != "csrf_token"}
    return {"form": form, "frame_url": url_for("staff.shop.frame", **typed)}


def _offer() -> Offer:
    return Offer(
        id=personal_links.NOBODY,
        code="WELCOME25",
        code_as_written="WELCOME25",
        name="Welcome",
        discount_type="percent",
        percent=Decimal(25),
        time_zone="UTC",
        personal_code_required=False,
        ends_at=(datetime.now(UTC) + timedelta(days=30)).replace(hour=0, minute=0, second=0, microsecond=0),
    )


def _customer() -> Customer:
    return Customer(
        id=personal_links.NOBODY,
        email="ada@example.com",
        email_as_given="ada@example.com",
        name="Ada Lovelace",
        locale=None,
    )
