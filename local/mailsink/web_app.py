"""The sink's pages: the list, a mail in every form, emptying. Plain HTML; nothing needs a script.

Mails hold personal links that work. So only a browser on this machine that asks for this machine is answered: a name
of somebody else's that leads here (DNS rebinding) is not, and a form of another site empties nothing.
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
MESSAGE_VIEWS = {"html": "HTML", "phone": "On a phone", "text": "Text", "headers": "Headers"}

PAGE_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# Somebody's HTML, in an origin of its own: no script, no form, nothing fetched; links open pages that are free of this.
SANDBOX_FLAGS = "allow-popups allow-popups-to-escape-sandbox"
MESSAGE_HTML_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    f"frame-ancestors 'self'; sandbox {SANDBOX_FLAGS}"
)


def create_sink_app(index: MailIndex) -> Flask:
    """The application that shows the mails of an index."""
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
        sought, before = request.args.get("q", "").strip(), request.args.get("before", "")
        found = index.list_messages(sought, before, PAGE_SIZE + 1)
        return render_template(
            "index.html",
            mails=found[:PAGE_SIZE],
            following=found[PAGE_SIZE - 1].sort_key if len(found) > PAGE_SIZE else None,
            total=index.count_messages(),
            hits=index.count_messages(sought) if sought else None,
            q=sought,
            before=before,
            folder=index.folder,
            zone=datetime.now().astimezone().tzname(),
        )

    @app.post("/empty")
    def empty() -> BaseResponse:
        # What came after the page was drawn has not been seen, and stays.
        index.delete_up_to(request.form.get("up_to", ""))
        return redirect(url_for("show_list"), 303)

    @app.get("/<name>")
    def show(name: str) -> str:
        mail = _require_message(index, name)
        wanted = request.args.get("view", "html")
        view = wanted if wanted in MESSAGE_VIEWS else "html"
        if mail.html is None and view in ("html", "phone"):
            view = "text"
        return render_template(
            "message.html", name=name, mail=mail, view=view, views=MESSAGE_VIEWS, policy_hides=_has_remote_content(mail)
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
    """The name of a mail's file; a name that leads elsewhere is not found."""
    if not name.endswith(".eml") or name.startswith(".") or not name.isprintable() or "/" in name:
        abort(404)
    return name


def _check_host_and_origin() -> None:
    """Answer only who asks for this machine by its own name, and take forms from our own pages alone.

    Browsers name the page that a form stands on in `Origin` (or else in `Sec-Fetch-Site`); one that does neither is
    refused, since nothing tells whose form it was.
    """
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in LOOPBACK_HOSTS:
        abort(403, "Mails are shown to this machine alone. Open this page by the address 127.0.0.1 or localhost.")
    if request.method == "POST":
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        known = [site in ("same-origin", "none")] if site else []
        known += [origin == request.host_url.rstrip("/")] if origin else []
        if not known or not all(known):
            abort(403, "This form was sent from another site. Open the list of mails and try again.")


def _add_security_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_CSP)
    # Not `no-referrer`: then browsers send our own form with `Origin: null`.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response


def _handle_http_error(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    words = "There is no such mail. It may have been deleted." if code == 404 else error.description
    return render_template("error.html", words=words), code


def _handle_storage_error(error: Exception) -> tuple[str, int]:
    words = f"The mails can’t be read or listed now: {error}. Mails are taken all the same. Mend that, then reload."
    return render_template("error.html", words=words), 503


def _neutralise_html(body: str) -> str:
    """A mail's HTML with its links in new windows, without `<link>`s: a browser may call on hosts that they name."""
    body = re.sub(r"(?i)<link\b[^>]*>", "", body)
    start = re.match(r"(?i)\s*<!doctype[^>]*>", body)
    end = start.end() if start else 0
    return f'{body[:end]}<base target="_blank">{body[end:]}'


def _has_remote_content(mail: message_parser.ParsedMessage) -> bool:
    """Whether the HTML wants something fetched from elsewhere, which is not done."""
    return bool(
        mail.html and re.search(r"""(?i)(?:src|background)\s*=\s*["']?\s*(?:https?:|//)|url\(["']?https?:""", mail.html)
    )


def _format_datetime(at: int) -> str:
    """A time in ns as people of this machine's time zone say it."""
    moment, today = datetime.fromtimestamp(at / 1e9).astimezone(), datetime.now().astimezone().date()
    if moment.date() == today:
        return f"Today {moment:%H:%M:%S}"
    if moment.date() == today - timedelta(days=1):
        return f"Yesterday {moment:%H:%M}"
    return f"{moment.day} {moment:%b %Y, %H:%M}"


def _format_iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1e9).astimezone().isoformat(timespec="seconds")


def _format_size(n: int) -> str:
    """Bytes as people say them."""
    if n < 1000:
        return f"{n} B"
    return f"{n / 1000:.0f} kB" if n < 999_500 else f"{n / 1e6:.1f} MB"
