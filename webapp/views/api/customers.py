"""API views for customers and their imports."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response, current_app, g, jsonify, request, url_for
from flask_babel import gettext as _
from flask_openapi import APIBlueprint

from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.models import Customer
from webapp.customers.suppressions import queries as suppression_queries
from webapp.customers.validation import CustomerValues
from webapp.views.access_notes import note_access
from webapp.views.api.blueprint import accept_media_types, authenticate, get_actor, require_scope
from webapp.views.api.schemas.customers import (
    CustomerIn,
    CustomerOut,
    CustomerPath,
    ErasureIn,
    ImportErrorsQuery,
    ImportOut,
    ImportPath,
    ImportQuery,
    ImportQueued,
    customer_json,
    import_json,
)

blueprint = APIBlueprint("customers", __name__)


@blueprint.post("/customers/import", responses={202: ImportQueued, 411: None})
@require_scope("manage")
@accept_media_types(CSV, NDJSON)
def import_customers(query: ImportQuery) -> tuple[Response, int, dict[str, str]]:
    """Import a file of customers: CSV, or one JSON object per line.

    Columns or names: `email`, and optionally `name`, `source_id`, `locale` and `audience`; others are ignored. The file
    may have any number of rows and is received as a stream; send its `Content-Length`. 202 means that the complete file
    is stored; the URL in `Location` returns the progress and the result. Customers are identified by email address: a
    repeated import updates what differs and creates no duplicates.
    """
    limit: int = current_app.config["SETTINGS"].max_upload_bytes
    request.max_content_length = 2 * limit
    try:
        length = request.content_length or 0
        if "Transfer-Encoding" in request.headers:
            raise upload.length_required_error()
        if length > limit:
            raise upload.file_too_large_error(limit)
        chunks = _check_key_at_end(upload.read_raw_body(request.stream, length, limit))
        filename = f"{g.api_key.name}.{'csv' if request.mimetype == CSV else 'ndjson'}"
        import_id = import_actions.store_import_file(
            chunks, filename, request.mimetype, query.audience or "", get_actor()
        )
    except DomainError:
        upload.drain_body(request.stream, 2 * limit)
        raise
    location = url_for("api.customers.read_import", id=import_id)
    return jsonify({"id": import_id, "status": "queued"}), 202, {"Location": location}


def _check_key_at_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks, then check that the key was not revoked while they were received."""
    yield from chunks
    authenticate("manage")


@blueprint.get("/imports/<int:id>", responses={200: ImportOut})
@require_scope("read")
def read_import(path: ImportPath, query: ImportErrorsQuery) -> Response:
    """Get the progress of an import and a page of its rejected rows.

    The `errors` also contain rows that were imported without some of their values. These have the code
    `locale_unknown`, `reason_unknown` or `cells_odd` and do not count as `rejected`.
    """
    row = import_queries.find_import(path.id)
    if row is None:
        raise NotFound(_("This import does not exist."))
    rejected_rows = import_queries.list_rejected_rows(row.id, pagination.decode_cursor(query.cursor, 2), query.limit)
    page = rejected_rows[: query.limit]
    next_cursor = pagination.encode_cursor(page[-1].line, page[-1].id) if len(rejected_rows) > query.limit else None
    if page:
        note_access("rejected_rows.listed")
    response = jsonify(import_json(row, page, next_cursor))
    pagination.add_next_link(response, next_cursor)
    return response


@blueprint.put("/customers/<path:source_id>", responses={200: CustomerOut, 201: CustomerOut})
@require_scope("manage")
def put(path: CustomerPath, body: CustomerIn) -> tuple[Response, int]:
    """Create or update a customer.

    With a new email address the customer keeps all redemptions.
    """
    values = CustomerValues(email=body.email, name=body.name, locale=body.locale, source_id=path.source_id)
    customer, is_new = customer_actions.upsert_customer(
        values, body.audiences, by=get_actor(), extra_audience=body.audience
    )
    if not is_new:
        # The response has all values, also those that the call has not sent.
        note_access("customer.viewed")
    return _customer_response(customer), 201 if is_new else 200


@blueprint.delete("/customers/<path:source_id>", responses={204: None})
@require_scope("manage")
def erase(path: CustomerPath) -> tuple[str, int]:
    """Erase a customer.

    All personal data is deleted permanently. Redemptions stay counted.
    """
    customer_actions.erase_customer(_get_customer_or_404(path.source_id).id, by=get_actor())
    return "", 204


@blueprint.post("/erasures", responses={204: None})
@require_scope("manage")
def erase_by_email(body: ErasureIn) -> tuple[str, int]:
    """Erase the customer with this email address.

    The address is sent in the body, which keeps it out of access logs.
    """
    customer = customer_queries.find_customer_by_email(normalise_email(body.email))
    if customer is None:
        raise NotFound(_("No customer has this email address."))
    customer_actions.erase_customer(customer.id, by=get_actor())
    return "", 204


@blueprint.get("/customers/<path:source_id>", responses={200: CustomerOut})
@require_scope("read")
def read(path: CustomerPath) -> Response:
    """Get a customer."""
    customer = _get_customer_or_404(path.source_id)
    note_access("customer.viewed")
    return _customer_response(customer)


def _get_customer_or_404(source_id: str) -> Customer:
    customer = customer_queries.find_customer_by_source_id(source_id)
    if customer is None:
        raise NotFound(_("No customer has this source ID."))
    return customer


def _customer_response(customer: Customer) -> Response:
    suppression = suppression_queries.find_suppression_by_email(customer.email)
    return jsonify(customer_json(customer, customer_queries.list_customer_audiences(customer.id), suppression))
