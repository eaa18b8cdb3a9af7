"""The staff page of the audit log."""

from __future__ import annotations

from flask import request
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import audit_queries
from webapp.views.rendering import parse_row_id, render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.audit_labels import action_label, detail_label
from webapp.views.staff.blueprint import require_role


@blueprint.get("/settings/audit")
@require_role("admin")
def audit() -> BaseResponse:
    """Show a page of the audit log, newest entries first."""
    page = audit_queries.load_audit_page(
        before=request.args.get("before", type=parse_row_id), after=request.args.get("after", type=parse_row_id)
    )
    return render("accounts/audit.html", page=page, action_label=action_label, detail_label=detail_label)
