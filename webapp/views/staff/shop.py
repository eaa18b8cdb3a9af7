"""Settings → Shop: what customers see of the shop, a sample of the mail, and whether the relay takes mail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.core.errors import DomainError, InvalidInput
from webapp.customers.models import Customer
from webapp.mail import addresses, relay_check
from webapp.mail.relay_check import RelayCheckResult
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries
from webapp.shop.validation import validate_shop
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.shop import ShopForm

blueprint = Blueprint("shop", __name__, url_prefix="/settings/shop")


@blueprint.get("")
@require_role("manager")
def edit() -> Response:
    """What is known of the shop."""
    form = ShopForm(formdata=None)
    form.fill_from_shop(shop_queries.get_shop())
    return _render_page(form)


@blueprint.post("")
def save() -> BaseResponse:
    """Keep what was typed."""
    form = ShopForm()
    try:
        if not form.validate_on_submit():
            return _render_page(form, 422)
        shop_actions.save_shop(form.values(), by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_page(form, error.status)
    flash("Saved. Mails that are still to go out say it, too.", "success")
    return redirect(url_for("staff.shop.edit"))


@blueprint.get("/sample")
@require_role("manager")
def sample() -> Response:
    """The piece with the sample of a mail, as the shop would be with what is typed; nothing is kept."""
    form = ShopForm(request.args, meta={"csrf": False})
    return rendering.render("shop/_sample.html", **_sample_context(form))


@blueprint.get("/sample/frame")
@require_role("manager")
def frame() -> Response:
    """The sample itself, alone. What can't be taken leaves the shop as it is."""
    form = ShopForm(request.args, meta={"csrf": False})
    try:
        values = validate_shop(form.values())
    except InvalidInput:
        values = shop_queries.get_shop()
    return rendering.sandboxed_response(
        MailMerge(EmailContent(), _sample_offer(), 0, shop=values).preview(_sample_customer()).html
    )


@blueprint.post("/relay")
def check_relay() -> BaseResponse:
    """See whether the relay takes mail. Nothing is sent."""
    finding = relay_check.check_relay_connection()
    if rendering.is_htmx():
        return rendering.render("shop/_relay.html", settings=current_app.config["SETTINGS"], finding=finding)
    form = ShopForm(formdata=None)
    form.fill_from_shop(shop_queries.get_shop())
    return _render_page(form, finding=finding)


def _render_page(form: ShopForm, status: int = 200, finding: RelayCheckResult | None = None) -> Response:
    page = rendering.render(
        "shop/edit.html",
        status=status,
        settings=current_app.config["SETTINGS"],
        sender=addresses.sender_address(current_app.config["SETTINGS"].mail_default_sender),
        finding=finding,
        **_sample_context(form),
    )
    return rendering.allow_frames(page)


def _sample_context(form: ShopForm) -> dict[str, Any]:
    """The form, and where the sample is; no address while what was typed can't be taken."""
    try:
        validate_shop(form.values())
    except InvalidInput:
        return {"form": form, "frame_url": None}
    typed = {name: value for name, value in form.data.items() if name != "csrf_token"}
    return {"form": form, "frame_url": url_for("staff.shop.frame", **typed)}


def _sample_offer() -> Offer:
    return Offer(
        id=personal_links.PREVIEW_CUSTOMER_ID,
        code="WELCOME25",
        code_as_written="WELCOME25",
        name="Welcome",
        discount_type="percent",
        percent=Decimal(25),
        time_zone="UTC",
        personal_code_required=False,
        ends_at=(datetime.now(UTC) + timedelta(days=30)).replace(hour=0, minute=0, second=0, microsecond=0),
    )


def _sample_customer() -> Customer:
    return Customer(
        id=personal_links.PREVIEW_CUSTOMER_ID,
        email="ada@example.com",
        email_as_given="ada@example.com",
        name="Ada Lovelace",
        locale=None,
    )
