"""Staff pages of customer imports: upload, progress and rejected rows."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Response, current_app, redirect, request, url_for
from flask_babel import gettext as _
from flask_login import current_user
from flask_wtf.csrf import CSRFError, validate_csrf
from werkzeug.wrappers import Response as BaseResponse
from wtforms.validators import ValidationError

from webapp.core import pagination
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import csrf
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import upload
from webapp.customers.imports.parser import CSV, NDJSON
from webapp.customers.models import CustomerImport
from webapp.views import rendering
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.customers import blueprint, check_row_id, csv_response, parse_row_id
from webapp.views.staff.forms.customers import ImportForm

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
    """Receive an uploaded file as a stream.

    The CSRF token precedes the file and is checked before it.
    """
    limit: int = current_app.config["SETTINGS"].max_upload_bytes
    # Leaves room for form fields and boundaries, and for draining a body that is too large before the error response.
    request.max_content_length = 2 * limit
    form = ImportForm()
    try:
        if (request.content_length or 0) > limit + upload.MAX_FIELDS_SIZE:
            raise upload.file_too_large_error(limit)
        received = upload.parse_multipart_form(request.stream, request.headers.get("Content-Type", ""), limit)
        check_upload_csrf(received)
        form = ImportForm(audience=received.fields.get("audience", ""))
        import_id = _start_import(received)
    except DomainError as error:
        upload.drain_body(request.stream, 2 * limit)
        rendering.add_form_errors(form, error)
        return _render_import_page(form, error.status)
    return redirect(url_for("staff.customers.show_import", import_id=import_id))


def _start_import(received: upload.Upload) -> int:
    if not received.filename:
        raise InvalidInput(FieldError("file", "file_missing", _("Choose a file.")))
    media_type = NDJSON if received.filename.lower().endswith((".ndjson", ".jsonl")) else CSV
    audience = received.fields.get("audience", "")
    return import_actions.store_import_file(
        received.chunks, received.filename, media_type, audience, by=current_user.email
    )


def check_upload_csrf(received: upload.Upload) -> None:
    """Check the CSRF token of an upload like CSRFProtect, without reading the file.

    :raises CSRFError: when the token is missing or invalid.
    """
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(received.fields.get("csrf_token") or request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        upload.drain_body(request.stream, 2 * current_app.config["SETTINGS"].max_upload_bytes)
        raise CSRFError(str(error)) from error


def _render_import_page(form: ImportForm, status: int = 200) -> Response:
    limit_mb = current_app.config["SETTINGS"].max_upload_bytes // 1024 // 1024
    audiences = customer_queries.list_audiences()
    return rendering.render("customers/import.html", status=status, form=form, audiences=audiences, limit_mb=limit_mb)


@blueprint.get("/customers/import/sample.csv")
def download_sample() -> Response:
    """Download a sample import file."""
    return csv_response(iter([SAMPLE_CSV.encode()]), "customers-sample.csv")


@blueprint.get("/customers/imports")
def imports() -> Response:
    """List imports, newest first."""
    before = request.args.get("before", type=parse_row_id)
    rows = import_queries.list_imports(before, PAGE_SIZE)
    page = rows[:PAGE_SIZE]
    return rendering.render(
        "customers/imports.html",
        imports=page,
        prev_url=url_for("staff.customers.imports") if before is not None else None,
        next_url=url_for("staff.customers.imports", before=page[-1].id) if len(rows) > PAGE_SIZE else None,
    )


@blueprint.get("/customers/imports/<int:import_id>")
def show_import(import_id: int) -> Response:
    """Show the progress and result of an import.

    The card polls until the import has ended.
    """
    row = _get_import_or_404(import_id)
    cursor = pagination.decode_cursor(request.args.get("cursor"), 2)
    rejected_rows = import_queries.list_rejected_rows(row.id, cursor, PAGE_SIZE) if not row.is_open else []
    page = rejected_rows[:PAGE_SIZE]
    next_cursor = pagination.encode_cursor(page[-1].line, page[-1].id) if len(rejected_rows) > PAGE_SIZE else None
    endpoint = "staff.customers.show_import"
    return rendering.render(
        "customers/show_import.html",
        block="card",
        row=row,
        audience=customer_queries.find_audience(row.audience_id) if row.audience_id else None,
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
    row = import_queries.find_import(check_row_id(import_id))
    if row is None:
        raise NotFound(_("This import does not exist."))
    return row
