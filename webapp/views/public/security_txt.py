"""The contact for reports about security (RFC 9116)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, current_app

from webapp.core.formatting import format_rfc3339
from webapp.core.settings import Settings

blueprint = Blueprint("security_txt", __name__)

PATH = "/.well-known/security.txt"
# RFC 9116 recommends less than a year, so that an abandoned file is recognised.
VALIDITY = timedelta(days=90)


@blueprint.get(PATH)
def show() -> Response:
    """Show the contact that the operator has set; 404 without one."""
    settings: Settings = current_app.config["SETTINGS"]
    if settings.security_contact is None:
        abort(404)
    expires_at = datetime.now(UTC).replace(microsecond=0) + VALIDITY
    # The file belongs to the host, even if PUBLIC_URL has a path.
    site = urlsplit(settings.public_url)
    fields = {
        "Contact": settings.security_contact,
        "Expires": format_rfc3339(expires_at),
        "Preferred-Languages": "en",
        "Canonical": f"{site.scheme}://{site.netloc}{PATH}",
    }
    return Response("".join(f"{name}: {value}\n" for name, value in fields.items()), mimetype="text/plain")
