"""Lookups, URLs and the preview that the staff pages for campaigns share."""

from __future__ import annotations

from flask import url_for
from flask_babel import gettext as _

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.mail_merge import MailMerge, Preview
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.models import Campaign
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import personal_links
from webapp.views import rendering
from webapp.views.access_notes import note_access


def preview_email(content: EmailContent, offer: Offer, customer_email: str) -> Preview:
    """Render an email as a customer would get it, and note the view of this customer.

    :param customer_email: address of the customer whose email to render; empty for the first customer of the audience.
    :raises InvalidInput: when there is no customer with this address.
    """
    customer = _find_preview_customer(offer, customer_email)
    if customer.id != personal_links.PREVIEW_CUSTOMER_ID:
        note_access("customer.viewed", f"customer {customer.id}")
    return MailMerge(content, offer, 0, shop=rendering.load_shop()).preview(customer)


def check_preview_customer(customer_email: str) -> None:
    """Check that an email can be previewed as this customer.

    :param customer_email: address of the customer; empty for the first customer of the audience.
    :raises InvalidInput: when there is no customer with this address.
    """
    if customer_email.strip():
        _find_requested_customer(customer_email)


def _find_preview_customer(offer: Offer, customer_email: str) -> Customer:
    """Return the requested customer, the first of the audience, or a sample.

    :raises InvalidInput: when there is no customer with this address.
    """
    if customer_email.strip():
        return _find_requested_customer(customer_email)
    first_ids = customer_queries.list_customer_ids_after(offer.audience_id, 0, 1)
    customer = customer_queries.find_customer(first_ids[0]) if first_ids else None
    return customer or Customer(
        id=personal_links.PREVIEW_CUSTOMER_ID,
        email="ada@example.com",
        email_as_given="ada@example.com",
        name="Ada Lovelace",  # no translation
    )


def _find_requested_customer(customer_email: str) -> Customer:
    try:
        customer = customer_queries.find_customer_by_email(normalise_email(customer_email))
    except InvalidInput:
        customer = None
    if customer is None or customer.erased_at is not None:
        message = _("No customer has this email address.")
        raise InvalidInput(FieldError("seen_as", "customer_unknown", message))
    return customer


def campaign_url(campaign: Campaign, to_launch: bool = False) -> str:
    """Return the URL of the page for the campaign's current status.

    :param to_launch: whether that of a draft is its launch page instead of the editor.
    """
    if campaign.status == "scheduled" or (to_launch and campaign.status == "draft"):
        return url_for("staff.campaign_editor.review", campaign_id=campaign.id)
    if campaign.status == "draft":
        return url_for("staff.campaign_editor.edit", campaign_id=campaign.id)
    return url_for("staff.campaigns.show", campaign_id=campaign.id)


def campaign_content(campaign: Campaign) -> EmailContent:
    """Return the content of a campaign's email as it was written."""
    return EmailContent(campaign.subject, campaign.text, campaign.html)


def audience_name(audience_id: int | None) -> str:
    """Return the displayed name of an audience; None is the audience of all customers."""
    if audience_id is None:
        return str(_("All customers"))
    return next((audience.name for audience in customer_queries.list_audiences() if audience.id == audience_id), "–")


def get_offer_or_404(offer_id: int) -> Offer:
    """Load the offer of a page.

    :raises NotFound: when it does not exist.
    """
    offer = offer_queries.find_offer(offer_id)
    if offer is None:
        raise NotFound(_("This offer does not exist."))
    return offer


def get_campaign_or_404(campaign_id: int) -> Campaign:
    """Load the campaign of a page.

    :raises NotFound: when it does not exist.
    """
    campaign = campaign_queries.find_campaign(campaign_id)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    return campaign
