"""The pages of the mail sink, in plain HTML without scripts.

Emails contain working personal links. Requests are therefore accepted for loopback host names only (against DNS
rebinding), and forms only from the mail sink's own pages (against cross-site request forgery).
"""

from __future__ import annotations

import re
import sqlite3
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, render_template, request, send_from_directory, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from local.mailsink import message_parser
from local.mailsink.index import MailIndex
from webapp.core.settings import ROOT

PAGE_SIZE = 50
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
MESSAGE_VIEWS = {"html": "HTML", "phone": "Phone", "text": "Text", "headers": "Headers"}

PAGE_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# For the HTML of an email: an opaque origin, no scripts, no forms, no requests. Links open pages without these limits.
SANDBOX_FLAGS = "allow-popups allow-popups-to-escape-sandbox"
MESSAGE_HTML_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    f"frame-ancestors 'self'; sandbox {SANDBOX_FLAGS}"
)


def create_sink_app(index: MailIndex) -> Flask:
    """Create the application that shows the emails of an index."""
    app = Flask("mailsink", template_folder=str(ROOT / "templates" / "mailsink"), static_folder=str(ROOT / "static"))
    app.jinja_env.filters.update(when=_format_datetime, iso=_format_iso, size=_format_size)
    app.jinja_env.globals.update(sandbox=SANDBOX_FLAGS)
    app.before_request(_check_host_and_origin)
    app.after_request(_add_security_headers)
    app.register_error_handler(HTTPException, _handle_http_error)
    app.register_error_handler(sqlite3.Error, _handle_storage_error)
    app.register_error_handler(OSError, _handle_storage_error)

    @app.get("/")
    def show_list() -> str:
        query, before = request.args.get("q", "").strip(), request.args.get("before", "")
        rows = index.list_messages(query, before, PAGE_SIZE + 1)
        return render_template(
            "index.html",
            emails=rows[:PAGE_SIZE],
            next_before=rows[PAGE_SIZE - 1].sort_key if len(rows) > PAGE_SIZE else None,
            total=index.count_messages(),
            matches=index.count_messages(query) if query else None,
            query=query,
            before=before,
            folder=index.folder,
            time_zone=datetime.now().astimezone().tzname(),
        )

    @app.post("/empty")
    def delete_all() -> BaseResponse:
        # Keep emails that arrived after the page was rendered.
        index.delete_up_to(request.form.get("up_to", ""))
        return redirect(url_for("show_list"), 303)

    @app.get("/<name>")
    def show(name: str) -> str:
        email = _require_message(index, name)
        view = request.args.get("view", "html")
        view = view if view in MESSAGE_VIEWS else "html"
        if email.html is None and view in ("html", "phone"):
            view = "text"
        return render_template(
            "message.html",
            name=name,
            email=email,
            view=view,
            views=MESSAGE_VIEWS,
            has_remote_content=_has_remote_content(email),
        )

    @app.get("/<name>/html")
    def html(name: str) -> Response:
        body = _require_message(index, name).html
        if body is None:
            abort(404)
        headers = {"Content-Security-Policy": MESSAGE_HTML_CSP, "X-DNS-Prefetch-Control": "off"}
        return Response(_neutralise_html(body), mimetype="text/html", headers=headers)

    @app.get("/<name>/source")
    def source(name: str) -> Response:
        return send_from_directory(
            index.folder, _validate_file_name(name), mimetype="message/rfc822", as_attachment=True, download_name=name
        )

    return app


def _require_message(index: MailIndex, name: str) -> message_parser.ParsedMessage:
    try:
        return message_parser.parse_message(index.folder / _validate_file_name(name))
    except FileNotFoundError:
        abort(404)


def _validate_file_name(name: str) -> str:
    """Return the name of an email's file; respond 404 to other names and paths."""
    if not name.endswith(".eml") or name.startswith(".") or not name.isprintable() or "/" in name:
        abort(404)
    return name


def _check_host_and_origin() -> None:
    """Reject requests for other host names, and forms of other sites.

    Browsers send the site of a form in `Origin` or `Sec-Fetch-Site`; a form without either header is rejected.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in LOOPBACK_HOSTS:
        abort(403, "Emails are only shown on this machine. Open this page at 127.0.0.1 or localhost.")
    if request.method == "POST":
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        known = [site in ("same-origin", "none")] if site else []
        known += [origin == request.host_url.rstrip("/")] if origin else []
        if not known or not all(known):
            abort(403, "This form was sent from another site. Open the list of emails and try again.")


def _add_security_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_CSP)
    # Not `no-referrer`: with it, browsers send the mail sink's own form with `Origin: null`.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response


def _handle_http_error(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    message = "This email does not exist. It may have been deleted." if code == 404 else error.description
    return render_template("error.html", message=message), code


def _handle_storage_error(error: Exception) -> tuple[str, int]:
    message = (
        f"The emails can't be listed: {error}. New emails are still received. Fix the problem and reload the page."
    )
    return render_template("error.html", message=message), 503


def _neutralise_html(body: str) -> str:
    """Return HTML whose links open new windows, without `<link>` elements.

    Browsers may connect to the hosts of these elements.
    """
    body = re.sub(r"(?i)<link\b[^>]*>", "", body)
    start = re.match(r"(?i)\s*<!doctype[^>]*>", body)
    end = start.end() if start else 0
    return f'{body[:end]}<base target="_blank">{body[end:]}'


def _has_remote_content(email: message_parser.ParsedMessage) -> bool:
    """Return whether the HTML refers to remote content, which the pages do not load."""
    pattern = r"""(?i)(?:src|background)\s*=\s*["']?\s*(?:https?:|//)|url\(["']?https?:"""
    return bool(email.html and re.search(pattern, email.html))


def _format_datetime(at_ns: int) -> str:
    """Format a time for display, in the time zone of this machine."""
    time, today = datetime.fromtimestamp(at_ns / 1e9).astimezone(), datetime.now().astimezone().date()
    if time.date() == today:
        return f"Today {time:%H:%M:%S %Z}"
    if time.date() == today - timedelta(days=1):
        return f"Yesterday {time:%H:%M %Z}"
    return f"{time.day} {time:%b %Y, %H:%M %Z}"


def _format_iso(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9).astimezone().isoformat(timespec="seconds")


def _format_size(n: int) -> str:
    """Format a number of bytes for display."""
    if n < 1000:
        return f"{n} B"
    return f"{n / 1000:.0f} kB" if n < 999_500 else f"{n / 1e6:.1f} MB"
