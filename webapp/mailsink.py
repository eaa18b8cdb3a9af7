"""The mail sink of the embedded set-up: an SMTP server that keeps every message in a folder, and a page to read them.

It stands outside the rooms: no database, no session, on loopback only.
"""

from __future__ import annotations

import email
import email.policy
import itertools
import os
import time
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.controller import Controller
from flask import Flask, Response, abort, render_template, request
from werkzeug.serving import make_server

from webapp.settings import ROOT, Settings

PER_PAGE = 100
# Where the head of a message ends at the latest, in bytes.
HEAD = 8192


@dataclass(frozen=True)
class Kept:
    """A kept message, as the list shows it."""

    name: str
    message: EmailMessage

    @property
    def to(self) -> str:
        return str(self.message["To"] or "")

    @property
    def subject(self) -> str:
        return str(self.message["Subject"] or "")

    @property
    def date(self) -> str:
        return str(self.message["Date"] or "")


class Keep:
    """aiosmtpd's handler: a message is on disk, whole, before the answer 250."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = itertools.count()

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802
        name = f"{time.time_ns()}-{os.getpid()}-{next(self.count)}.eml"
        part = self.folder / f".{name}"
        part.write_bytes(envelope.original_content)  # type: ignore[attr-defined]
        part.rename(self.folder / name)
        return "250 kept"


def folder_of(settings: Settings) -> Path:
    return settings.instance_path / "mails"


def serve(settings: Settings) -> None:
    """Take mail and show it until the process is ended."""
    folder = folder_of(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    controller = Controller(Keep(folder), hostname="127.0.0.1", port=settings.mail_port, enable_SMTPUTF8=True)
    controller.start()
    try:
        make_server("127.0.0.1", settings.sink_page_port, page(folder), threaded=True).serve_forever()
    finally:
        controller.stop()


def page(folder: Path) -> Flask:
    """The page that shows the folder: newest first, searched by recipient or subject."""
    app = Flask("mailsink", template_folder=str(ROOT / "templates" / "mailsink"), static_folder=str(ROOT / "static"))

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.setdefault(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'",
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    def index() -> str:
        sought = request.args.get("q", "").strip().lower()
        names = sorted((p.name for p in folder.glob("*.eml")), reverse=True)
        found = (Kept(name, _head(folder / name)) for name in names if _mentions(folder / name, sought))
        return render_template(
            "index.html",
            messages=list(itertools.islice(found, PER_PAGE)),
            total=len(names),
            q=sought,
            per_page=PER_PAGE,
        )

    @app.get("/<name>")
    def show(name: str) -> str:
        message = _kept(folder, name)
        text = message.get_body(("plain",))
        return render_template(
            "message.html",
            name=name,
            message=message,
            text=text.get_content() if text else "",
            has_html=message.get_body(("html",)) is not None,
        )

    @app.get("/<name>/html")
    def html(name: str) -> Response:
        part = _kept(folder, name).get_body(("html",))
        if part is None:
            abort(404)
        # Somebody's HTML: no script runs, nothing is fetched; links open at the top.
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
            "sandbox allow-popups allow-top-navigation-by-user-activation"
        )
        body = part.get_content().replace("<head>", '<head><base target="_top">', 1)
        return Response(body, mimetype="text/html", headers={"Content-Security-Policy": policy})

    return app


def _kept(folder: Path, name: str) -> EmailMessage:
    if not name.endswith(".eml") or name.startswith(".") or not (folder / name).is_file():
        abort(404)
    return _read(folder / name)


def _mentions(path: Path, sought: str) -> bool:
    """Whether the head of a message has these words, as they stand in the file: parsing all would take minutes."""
    return not sought or sought.encode() in _head_bytes(path).lower()


def _head(path: Path) -> EmailMessage:
    return email.message_from_bytes(_head_bytes(path), policy=email.policy.default)


def _head_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD).partition(b"\r\n\r\n")[0]


def _read(path: Path) -> EmailMessage:
    return email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
