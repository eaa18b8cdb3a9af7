"""The worker: a Huey consumer in one process with threads.

Each task runs in its own app context.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from webapp import create_app, get_app_version
from webapp.core import logs, pooler_check, task_queue
from webapp.core.extensions import huey
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import load_settings
from webapp.monitoring import heartbeat

# The logger name is fixed, because __name__ is "__main__" here.
log = logging.getLogger("webapp.worker")


def main() -> None:
    """Run until SIGTERM, then finish the current step of each task and exit."""
    # Huey's crontab follows the time zone of the process.
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        settings = load_settings()
        pooler_check.check_pooling_if_available(settings)
    except SettingsError as error:
        sys.exit(f"onecode: {error}")
    logs.configure_logging(settings)
    app = create_app(settings)
    consumer = huey.create_consumer(
        # Two more threads than SMTP connections: one for an import (one at a time), one for all other tasks.
        workers=settings.mail_connections + 2,
        worker_type="thread",
        periodic=True,
        graceful_signal="TERM",
    )
    task_queue.stop_requested = consumer.stop_flag
    with heartbeat.send_heartbeats(app, get_app_version()):
        log.info("worker started: version %s, %s threads", get_app_version(), consumer.workers)
        consumer.run()
    log.info("worker stopped")


if __name__ == "__main__":
    main()
