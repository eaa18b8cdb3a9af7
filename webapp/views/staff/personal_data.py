"""Staff pages for the export of a customer's personal data.

They are for administrators, as is erasing: both answer a request of the person, whose identity has to be verified, and
the export has more than a manager may see elsewhere, such as audit entries and rejected rows of imports.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response, stream_template, stream_with_context
from flask_babel import gettext as _
from flask_login import current_user

from webapp.core.errors import NotFound
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.overview import personal_data
from webapp.views.access_notes import note_access
from webapp.views.api.schemas.personal_data import join_chunks, stream_personal_data_json
from webapp.views.rendering import load_shop, render
from webapp.views.staff.audit_labels import action_label, detail_label, format_detail
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.customers import blueprint


@blueprint.get("/customers/<int:customer_id>/personal-data")
@require_role("admin")
def show_personal_data(customer_id: int) -> Response:
    """Explain the export of a customer's personal data and link its two forms."""
    customer = _get_customer_or_404(customer_id)
    note_access("customer.viewed", f"customer {customer_id}")
    return render("customers/personal_data.html", customer=customer)


@blueprint.get("/customers/<int:customer_id>/personal-data/report")
@require_role("admin")
def print_personal_data(customer_id: int) -> Response:
    """Show the personal data of a customer as a page for the person, to be printed or saved."""
    data = _record_and_load(customer_id, "page")
    load_shop()
    page = stream_template(
        "customers/personal_data_report.html",
        data=data,
        classify_actor=personal_data.classify_actor,
        action_label=action_label,
        detail_label=detail_label,
        format_detail=format_detail,
    )
    return Response(stream_with_context(_close_after(join_chunks(part.encode() for part in page))))


@blueprint.get("/customers/<int:customer_id>/personal-data.json")
@require_role("admin")
def download_personal_data(customer_id: int) -> Response:
    """Export the personal data of a customer as JSON."""
    chunks = stream_personal_data_json(_record_and_load(customer_id, "json"))
    response = Response(stream_with_context(chunks), mimetype="application/json")
    response.headers["Content-Disposition"] = f'attachment; filename="customer-{customer_id}-personal-data.json"'
    return response


def _record_and_load(customer_id: int, form: str) -> personal_data.PersonalData:
    customer = _get_customer_or_404(customer_id)
    customer_actions.record_personal_data_export(customer, by=current_user.email, form=form)
    data = personal_data.load_personal_data(customer_id)
    if data is None:
        raise NotFound(_("This customer does not exist."))
    return data


def _close_after(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    finally:
        personal_data.close_personal_data()


def _get_customer_or_404(customer_id: int) -> Customer:
    customer = customer_queries.find_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        raise NotFound(_("This customer does not exist."))
    return customer
