"""The web server of the mail sink."""

from __future__ import annotations

import threading
import urllib.request

from local.mailsink import create_page_server
from local.mailsink.index import MailIndex
from tests.support.logs import captured_logs
from webapp.core.settings import Settings


def test_requests_are_not_logged(index: MailIndex, test_settings: Settings) -> None:
    server = create_page_server(0, index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with captured_logs(test_settings, "text") as stream:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=60) as response:
                assert b"No emails yet" in response.read()
            # It has handled the request when it has stopped.
            server.shutdown()
            thread.join()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert stream.getvalue() == ""
