"""Staff pages for customer imports: upload, progress and rejected rows."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Response, current_app, redirect, request, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.core import pagination
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import csrf
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports.csv_rows import CUSTOMER_COLUMN_NAMES
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.imports.upload import Upload
from webapp.customers.models import CustomerImport
from webapp.monitoring import queries as monitoring_queries
from webapp.views import rendering
from webapp.views.access_notes import note_access
from webapp.views.staff import uploads
from webapp.views.staff.blueprint import refreshes_itself, require_role
from webapp.views.staff.customers import blueprint, csv_response
from webapp.views.staff.forms.customers import ImportForm

# These views belong to the blueprint of customers, so that their endpoints keep its name.
__all__ = ["blueprint"]

PAGE_SIZE = 50
SAMPLE_CSV = (
    "email,name,source_id,locale,audience\r\n"
    "ada@example.com,Ada Lovelace,C-1001,en-GB,Newsletter\r\n"
    'grace@example.com,"Hopper, Grace",C-1002,en-US,\r\n'
)


@blueprint.get("/customers/import")
@require_role("manager")
def import_form() -> Response:
    """Show the upload form for a customer file."""
    return _render_import_page(ImportForm(audience=request.args.get("audience", "")))


@blueprint.post("/customers/import")
@csrf.exempt
def receive_upload() -> BaseResponse:
    """Receive a customer file as a stream and queue its import.

    The CSRF check of the app would parse the whole form, so `uploads.receive_file` checks the token.
    """
    form = ImportForm()

    def store(received: Upload) -> int:
        audience = received.fields.get("audience", "")
        form.audience.data = audience  # The page keeps the input when there is an error.
        uploads.require_file(received, *uploads.CSV_SUFFIXES, *uploads.NDJSON_SUFFIXES)
        media_type = NDJSON if received.filename.lower().endswith(uploads.NDJSON_SUFFIXES) else CSV
        return import_actions.store_import_file(
            received.chunks, received.filename, media_type, audience, by=current_user.email
        )

    try:
        import_id = uploads.receive_file(store)
    except DomainError as error:
        rendering.add_form_errors(form, error)
        return _render_import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _render_import_page(form: ImportForm, status: int = 200) -> Response:
    limit_mb = current_app.config["SETTINGS"].max_upload_bytes // 1024 // 1024
    audiences = customer_queries.list_audiences()
    return rendering.render(
        "customers/import.html",
        status=status,
        form=form,
        audiences=audiences,
        limit_mb=limit_mb,
        column_names=CUSTOMER_COLUMN_NAMES,
    )


@blueprint.get("/customers/import/sample.csv")
def download_sample() -> Response:
    """Download a sample import file."""
    return csv_response(iter([SAMPLE_CSV.encode()]), "customers-sample.csv")


@blueprint.get("/customers/imports")
def list_imports() -> Response:
    """List imports, newest first."""
    before = request.args.get("before", type=rendering.parse_row_id)
    rows = import_queries.list_imports(before, PAGE_SIZE)
    page = rows[:PAGE_SIZE]
    return rendering.render(
        "customers/imports.html",
        imports=page,
        first_url=url_for("staff.customers.list_imports") if before is not None else None,
        next_url=url_for("staff.customers.list_imports", before=page[-1].id) if len(rows) > PAGE_SIZE else None,
    )


@blueprint.get("/customers/imports/<int:import_id>")
@refreshes_itself
def show_import(import_id: int) -> Response:
    """Show the progress and result of an import.

    htmx refreshes the block `card` until the import has finished or failed.
    """
    row = _get_import_or_404(import_id)
    cursor = pagination.decode_cursor(request.args.get("cursor"), 2)
    rejected_rows = import_queries.list_rejected_rows(row.id, cursor, PAGE_SIZE) if not row.is_open else []
    page = rejected_rows[:PAGE_SIZE]
    next_cursor = pagination.encode_cursor(page[-1].line, page[-1].id) if len(rejected_rows) > PAGE_SIZE else None
    endpoint = "staff.customers.show_import"
    if page:
        note_access("rejected_rows.listed", f"import {import_id}")
    return rendering.render(
        "customers/show_import.html",
        block="card",
        row=row,
        audience=customer_queries.find_audience(row.audience_id) if row.audience_id else None,
        worker_problem=(
            monitoring_queries.find_worker_problem() if row.is_open and row.status != "receiving" else None
        ),
        rows_per_second=row.rows_per_second(datetime.now(UTC)),
        rejected_rows=page,
        first_url=url_for(endpoint, import_id=row.id) if cursor else None,
        next_url=url_for(endpoint, import_id=row.id, cursor=next_cursor) if next_cursor else None,
    )


@blueprint.get("/customers/imports/<int:import_id>/rejected.csv")
@require_role("manager")
def download_rejected_rows(import_id: int) -> Response:
    """Export the rejected rows of an import with their errors as CSV."""
    row = _get_import_or_404(import_id)
    import_actions.record_rejected_rows_export(row.id, by=current_user.email)
    return csv_response(import_queries.export_rejected_rows(row.id), f"import-{row.id}-rejected.csv")


def _get_import_or_404(import_id: int) -> CustomerImport:
    row = import_queries.find_import(import_id)
    if row is None:
        raise NotFound(_("This import does not exist."))
    return row
