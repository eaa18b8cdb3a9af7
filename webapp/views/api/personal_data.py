"""API views for the export of a customer's personal data."""

from __future__ import annotations

from flask import Response, stream_with_context
from flask_babel import gettext as _
from flask_openapi import APIBlueprint

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import NotFound
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.overview import personal_data
from webapp.views.api.blueprint import get_actor, require_scope
from webapp.views.api.schemas.customers import CustomerPath
from webapp.views.api.schemas.personal_data import PersonalDataIn, PersonalDataOut, stream_personal_data_json

blueprint = APIBlueprint("personal_data", __name__)


@blueprint.get("/personal-data/<path:source_id>", responses={200: PersonalDataOut})
@require_scope("manage")
def export(path: CustomerPath) -> Response:
    """Export the personal data of a customer.

    All that is stored about the person, from one snapshot. The audit log records the export.
    """
    customer = customer_queries.find_customer_by_source_id(path.source_id)
    if customer is None:
        raise NotFound(_("No customer has this source ID."))
    return _export_response(customer)


@blueprint.post("/personal-data", responses={200: PersonalDataOut})
@require_scope("manage")
def export_by_email(body: PersonalDataIn) -> Response:
    """Export the personal data of the customer with this email address.

    The address is sent in the body, which keeps it out of access logs.
    """
    customer = customer_queries.find_customer_by_email(normalise_email(body.email))
    if customer is None:
        raise NotFound(_("No customer has this email address."))
    return _export_response(customer)


def _export_response(customer: Customer) -> Response:
    customer_actions.record_personal_data_export(customer, by=get_actor(), form="json")
    data = personal_data.load_personal_data(customer.id)
    if data is None:
        raise NotFound(_("This customer does not exist."))
    return Response(stream_with_context(stream_personal_data_json(data)), mimetype="application/json")
