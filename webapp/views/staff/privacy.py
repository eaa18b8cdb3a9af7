"""The staff page of retention periods."""

from __future__ import annotations

from flask import Response

from webapp.retention import queries as retention_queries
from webapp.views.rendering import render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import require_role


@blueprint.get("/settings/privacy")
@require_role("manager")
def privacy() -> Response:
    """Show how long data is kept, and what the next run deletes.

    The periods are settings of the operator, so that no user can start a deletion by mistake.
    """
    return render(
        "accounts/privacy.html",
        statuses=retention_queries.list_retention_statuses(),
        max_due=retention_queries.MAX_DUE_COUNT,
    )
