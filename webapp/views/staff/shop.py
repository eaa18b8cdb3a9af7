"""Staff pages for the shop: details, sample email and check of the mail relay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from flask import Blueprint, Response, current_app, flash, redirect, request, url_for
from flask_babel import gettext as _
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
from webapp.shop.models import default_reason
from webapp.shop.validation import validate_shop
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.shop import ShopForm

blueprint = Blueprint("shop", __name__, url_prefix="/settings/shop")


@blueprint.get("")
@require_role("manager")
def edit() -> Response:
    """Show the form with the details of the shop."""
    form = ShopForm(formdata=None)
    form.fill_from_shop(shop_queries.get_shop())
    return _render_page(form)


@blueprint.post("")
def save() -> BaseResponse:
    """Save the details of the shop."""
    form = ShopForm()
    try:
        if not form.validate_on_submit():
            return _render_page(form, 422)
        shop_actions.save_shop(form.to_values(), by=current_user.email)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_page(form, error.status)
    flash(_("The shop details were saved. Emails that have not been sent yet will use them."), "success")
    return redirect(url_for("staff.shop.edit"))


@blueprint.get("/sample")
@require_role("manager")
def sample() -> Response:
    """Render the section with a sample email, with the details as entered.

    Nothing is saved.
    """
    form = ShopForm(request.args, meta={"csrf": False})
    return rendering.render("shop/_sample.html", **_sample_context(form))


@blueprint.get("/sample/frame")
@require_role("manager")
def frame() -> Response:
    """Render the sample email itself, with the details as entered.

    If they are invalid, the saved details are used.
    """
    form = ShopForm(request.args, meta={"csrf": False})
    try:
        values = validate_shop(form.to_values())
    except InvalidInput:
        values = shop_queries.get_shop()
    return rendering.sandboxed_response(
        MailMerge(EmailContent(), _sample_offer(), 0, shop=values).preview(_sample_customer()).html
    )


@blueprint.post("/relay")
def check_relay() -> BaseResponse:
    """Check the connection to the relay without sending an email."""
    result = relay_check.check_relay_connection()
    if rendering.is_htmx():
        return rendering.render("shop/_relay.html", settings=current_app.config["SETTINGS"], relay_result=result)
    form = ShopForm(formdata=None)
    form.fill_from_shop(shop_queries.get_shop())
    return _render_page(form, relay_result=result)


def _render_page(form: ShopForm, status: int = 200, relay_result: RelayCheckResult | None = None) -> Response:
    page = rendering.render(
        "shop/edit.html",
        status=status,
        settings=current_app.config["SETTINGS"],
        sender=addresses.sender_address(current_app.config["SETTINGS"].mail_default_sender),
        relay_result=relay_result,
        default_reason=default_reason(form.name.data or ""),
        **_sample_context(form),
    )
    return rendering.allow_frames(page)


def _sample_context(form: ShopForm) -> dict[str, Any]:
    """Return the form, and the URL of its sample email; the URL is None while the form has errors."""
    try:
        validate_shop(form.to_values())
    except InvalidInput:
        return {"form": form, "frame_url": None}
    details = {name: value for name, value in form.data.items() if name != "csrf_token"}
    return {"form": form, "frame_url": url_for("staff.shop.frame", **details)}


def _sample_offer() -> Offer:
    return Offer(
        id=0,  # No offer has this id.
        code="WELCOME25",
        code_as_written="WELCOME25",
        name=_("Welcome"),
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
        name="Ada Lovelace",  # no translation
        locale=None,
    )
