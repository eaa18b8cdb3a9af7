"""The mail sink of the embedded set-up: it takes every mail, keeps it in a folder, sends it to nobody, and shows it.

It stands outside the rooms: no PostgreSQL, no session, on loopback only. `keep` takes mails, `index` finds them again,
`reading` takes them apart, `page` shows them. Only the files count: the index is made of them, and may go at any time.
"""

from __future__ import annotations

from pathlib import Path

from aiosmtpd.controller import Controller
from werkzeug.serving import make_server

from local.mailsink.index import MailIndex
from local.mailsink.smtp_handler import SinkHandler
from local.mailsink.web_app import create_sink_app
from webapp.core.settings import Settings

__all__ = ["Keep", "folder_of", "page", "serve"]


def mail_folder(settings: Settings) -> Path:
    """Where the mails of this instance are kept, a file each."""
    return settings.instance_path / "mails"


def serve_mail_sink(settings: Settings) -> None:
    """Take mail and show it until the process is ended.

    :raises OSError: when a port is taken or the folder can't be made.
    """
    folder = mail_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = MailIndex(folder)
    controller = Controller(SinkHandler(folder), hostname="127.0.0.1", port=settings.mail_port, enable_SMTPUTF8=True)
    controller.start()
    try:
        index.start_background_refresh()
        make_server("127.0.0.1", settings.sink_page_port, create_sink_app(index), threaded=True).serve_forever()
    finally:
        controller.stop()
