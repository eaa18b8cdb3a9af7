"""The staff pages of the audit log and of the counts of accesses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Response, redirect, request, stream_with_context, url_for
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import audit_actions, audit_queries
from webapp.accounts.access_counts import ACCESS_LABELS
from webapp.core import pagination
from webapp.core.log_pages import LogPage, LogPosition
from webapp.views.rendering import render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.audit_labels import action_label, detail_label, format_detail, group_labels
from webapp.views.staff.blueprint import require_role
from webapp.views.staff.forms.audit import AccessSearchForm, AuditSearchForm


@blueprint.get("/settings/audit", endpoint="audit")
@require_role("admin")
def audit_log() -> Response:
    """Show a page of the audit log, newest entries first."""
    form = AuditSearchForm(request.args)
    form.set_group_choices(group_labels())
    audit_filter = form.to_filter(current_user.time_zone)
    page = audit_queries.load_audit_page(audit_filter, _position()) if audit_filter else LogPage([], None)
    return render(
        "accounts/audit.html",
        form=form,
        page=page,
        is_exact=bool(audit_filter and audit_filter.q and audit_queries.has_subject(audit_filter.q)),
        action_label=action_label,
        detail_label=detail_label,
        format_detail=format_detail,
        **_urls("staff.accounts.audit", form, page),
    )


@blueprint.get("/settings/audit.csv")
@require_role("admin")
def download_audit_log() -> BaseResponse:
    """Export the entries that match the filters as CSV; redirect to the page if a filter is invalid."""
    form = AuditSearchForm(request.args)
    form.set_group_choices(group_labels())
    audit_filter = form.to_filter(current_user.time_zone)
    if audit_filter is None:
        return redirect(url_for("staff.accounts.audit", **_filters(form)))
    audit_actions.record_audit_export("audit log", _filters(form), by=current_user.email)
    return _csv_response(audit_queries.export_audit_entries(audit_filter), "audit-log.csv")


@blueprint.get("/settings/audit/access")
@require_role("admin")
def access() -> Response:
    """Show a page of failed sign-ins, refused requests and views of personal data, latest first."""
    form = AccessSearchForm(request.args)
    access_filter = form.to_filter(current_user.time_zone)
    page = audit_queries.load_access_page(access_filter, _position()) if access_filter else LogPage([], None)
    urls = _urls("staff.accounts.access", form, page)
    return render("accounts/access.html", form=form, page=page, labels=ACCESS_LABELS, **urls)


@blueprint.get("/settings/audit/access.csv")
@require_role("admin")
def download_access() -> BaseResponse:
    """Export the counts of accesses that match the filters as CSV; redirect to the page if a filter is invalid."""
    form = AccessSearchForm(request.args)
    access_filter = form.to_filter(current_user.time_zone)
    if access_filter is None:
        return redirect(url_for("staff.accounts.access", **_filters(form)))
    audit_actions.record_audit_export("access", _filters(form), by=current_user.email)
    return _csv_response(audit_queries.export_access_counts(access_filter), "access.csv")


def _position() -> LogPosition | None:
    position = pagination.decode_cursor(request.args.get("cursor"), 2)
    return LogPosition.from_integers(*position) if position else None


def _filters(form: AuditSearchForm | AccessSearchForm) -> dict[str, Any]:
    names = {field.name for field in form}
    values = {name: value.replace("\0", "") for name, value in request.args.items() if name in names}
    return {name: value for name, value in values.items() if value}


def _urls(endpoint: str, form: AuditSearchForm | AccessSearchForm, page: LogPage) -> dict[str, Any]:
    filters, position = _filters(form), page.next_position
    cursor = pagination.encode_cursor(*position.to_integers()) if position else None
    exports = {"staff.accounts.audit": "download_audit_log", "staff.accounts.access": "download_access"}
    return {
        "is_filtered": bool(filters),
        "first_url": url_for(endpoint, **filters) if request.args.get("cursor") else None,
        "next_url": url_for(endpoint, **filters, cursor=cursor) if cursor else None,
        "export_url": url_for(f"staff.accounts.{exports[endpoint]}", **filters),
    }


def _csv_response(chunks: Iterator[bytes], filename: str) -> Response:
    response = Response(stream_with_context(chunks), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return response
