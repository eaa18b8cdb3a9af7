"""The mail sink: an SMTP server that stores emails and shows them on a page.

It delivers no email.

It needs no PostgreSQL and no session, and listens on loopback only. `smtp_handler` receives emails, `index` finds them,
`message_parser` parses them and `web_app` shows them. The files are authoritative: the index is derived from them.
"""

from __future__ import annotations

from pathlib import Path

from aiosmtpd.controller import Controller
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from local.mailsink.index import MailIndex
from local.mailsink.smtp_handler import SinkHandler
from local.mailsink.web_app import create_sink_app
from webapp.core.settings import Settings

__all__ = ["mail_folder", "serve_mail_sink"]


def mail_folder(settings: Settings) -> Path:
    """Return the folder of this instance's emails, one file each."""
    return settings.instance_path / "mails"


def serve_mail_sink(settings: Settings) -> None:
    """Receive emails and serve the page that shows them, until the process is stopped.

    :raises OSError: when a port is in use or the folder can't be created.
    """
    folder = mail_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = MailIndex(folder)
    controller = Controller(SinkHandler(folder), hostname="127.0.0.1", port=settings.mail_port, enable_SMTPUTF8=True)
    controller.start()
    try:
        index.start_background_refresh()
        create_page_server(settings.sink_page_port, index).serve_forever()
    finally:
        controller.stop()


class _QuietRequestHandler(WSGIRequestHandler):
    """Handles requests without an access log; errors are still logged."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def create_page_server(port: int, index: MailIndex) -> BaseWSGIServer:
    """Create the server of the page with the emails of an index; 0 chooses a free port."""
    return make_server("127.0.0.1", port, create_sink_app(index), threaded=True, request_handler=_QuietRequestHandler)
