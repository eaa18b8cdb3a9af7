"""JSON calls of customers and their imports."""

from __future__ import annotations

from flask import Response, current_app, g, jsonify, request, url_for
from flask_openapi import APIBlueprint

from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers import tasks as customer_tasks
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.models import Customer
from webapp.customers.suppressions import queries as suppression_queries
from webapp.customers.validation import CustomerValues
from webapp.views.api.blueprint import needs_scope, takes
from webapp.views.api.schemas.customers import (
    CustomerIn,
    CustomerOut,
    ErasureIn,
    ErrorsPage,
    ImportId,
    ImportOut,
    ImportQuery,
    ImportQueued,
    SourceId,
    customer_json,
    import_json,
)

room = APIBlueprint("customers", __name__)


@room.post("/customers/import", responses={202: ImportQueued, 411: None})
@needs_scope("manage")
@takes(CSV, NDJSON)
def import_customers(query: ImportQuery) -> tuple[Response, int, dict[str, str]]:
    """Import a file of customers: CSV or one JSON object a line.

    Columns or names: email, and if you like name, source_id, locale, audience; others are ignored. The file may have
    any number of rows and is received as a stream; say its `Content-Length`. 202 means that all of it is on disk; the
    address in `Location` tells what becomes of it. A customer is known by the e-mail: a second import changes what
    differs and makes nobody twice.
    """
    limit: int = current_app.config["SETTINGS"].max_upload
    request.max_content_length = 2 * limit
    try:
        length = request.content_length or 0
        if "Transfer-Encoding" in request.headers:
            raise upload.length_required()
        if length > limit:
            raise upload.too_large(limit)
        pieces = upload.body(request.stream, length, limit)
        name = f"{g.api_key.name}.{'csv' if request.mimetype == CSV else 'ndjson'}"
        import_id = customer_tasks.receive_import(
            pieces, name, request.mimetype, query.audience or "", f"key {g.api_key.name}"
        )
    except DomainError:
        upload.drain(request.stream, 2 * limit)
        raise
    where = url_for("api.customers.read_import", id=import_id)
    return jsonify({"id": import_id, "status": "queued"}), 202, {"Location": where}


@room.get("/imports/<int:id>", responses={200: ImportOut})
@needs_scope("read")
def read_import(path: ImportId, query: ErrorsPage) -> Response:
    """How far an import is, with the rows that could not be taken, page by page.

    Among the `errors` are rows that were taken though not everything in them could be, and that do not count as
    `rejected`: `locale_unknown`, `reason_unknown` and `cells_odd`.
    """
    row = customer_queries.import_by_id(path.id)
    if row is None:
        raise NotFound("There is no such import.")
    found = customer_queries.rejections(row.id, pagination.read(query.cursor, 2), query.limit)
    shown = found[: query.limit]
    following = pagination.write(shown[-1].line, shown[-1].id) if len(found) > query.limit else None
    response = jsonify(import_json(row, shown, following))
    pagination.link(response, following)
    return response


@room.put("/customers/<path:source_id>", responses={200: CustomerOut, 201: CustomerOut})
@needs_scope("manage")
def put(path: SourceId, body: CustomerIn) -> tuple[Response, int]:
    """Make or change one customer. Another e-mail keeps the customer, with what they have redeemed."""
    values = CustomerValues(email=body.email, name=body.name, locale=body.locale, source_id=path.source_id)
    customer, is_new = customer_actions.put(values, body.audiences, by=f"key {g.api_key.name}", joins=body.audience)
    return _json(customer), 201 if is_new else 200


@room.delete("/customers/<path:source_id>", responses={204: None})
@needs_scope("manage")
def erase(path: SourceId) -> tuple[str, int]:
    """Erase one customer: all that names the person goes for good, what they redeemed stays counted."""
    customer_actions.erase(_by_source_id(path.source_id).id, by=f"key {g.api_key.name}")
    return "", 204


@room.post("/erasures", responses={204: None})
@needs_scope("manage")
def erase_by_email(body: ErasureIn) -> tuple[str, int]:
    """Erase the customer who has this e-mail. It stands in the body so that no log of addresses keeps it."""
    customer = customer_queries.by_email(normalise_email(body.email))
    if customer is None:
        raise NotFound("No customer has this e-mail.")
    customer_actions.erase(customer.id, by=f"key {g.api_key.name}")
    return "", 204


@room.get("/customers/<path:source_id>", responses={200: CustomerOut})
@needs_scope("read")
def read(path: SourceId) -> Response:
    """Read one customer."""
    return _json(_by_source_id(path.source_id))


def _by_source_id(source_id: str) -> Customer:
    customer = customer_queries.by_source_id(source_id)
    if customer is None:
        raise NotFound("No customer has this source id.")
    return customer


def _json(customer: Customer) -> Response:
    listed = suppression_queries.of_email(customer.email)
    return jsonify(customer_json(customer, customer_queries.audiences_of(customer.id), listed))
