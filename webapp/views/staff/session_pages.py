"""Staff pages for the own sessions."""

from __future__ import annotations

from flask import flash, g, redirect, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response as BaseResponse

from webapp.accounts import session_actions, session_queries
from webapp.core.user_agents import describe_user_agent
from webapp.views.rendering import render
from webapp.views.staff.accounts import blueprint
from webapp.views.staff.blueprint import require_recent_password, require_role


@blueprint.get("/settings/profile/sessions")
@require_role("viewer")
def own_sessions() -> BaseResponse:
    """List the sessions of the signed-in user."""
    return render(
        "accounts/sessions.html",
        sessions=session_queries.list_staff_sessions(current_user.id),
        current_id=g.staff_session_id,
        describe_user_agent=describe_user_agent,
    )


@blueprint.post("/settings/profile/sessions/<int:session_id>/end")
@require_role("viewer")
@require_recent_password
def end_own_session(session_id: int) -> BaseResponse:
    """Sign the user out of one of their sessions."""
    session_actions.end_own_session(current_user, session_id, g.staff_session_id)
    if session_id == g.staff_session_id:
        session.clear()
        flash(_("You are signed out."), "success")
        return redirect(url_for("staff.accounts.sign_in"))
    flash(_("The session was ended."), "success")
    return redirect(url_for("staff.accounts.own_sessions"))


@blueprint.post("/settings/profile/sessions/end-others")
@require_role("viewer")
@require_recent_password
def end_other_sessions() -> BaseResponse:
    """Sign the user out of all sessions except this one."""
    session_actions.end_other_sessions(current_user, g.staff_session_id)
    flash(_("You were signed out everywhere else."), "success")
    return redirect(url_for("staff.accounts.own_sessions"))
