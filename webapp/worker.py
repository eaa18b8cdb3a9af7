"""The worker: a Huey consumer in one process with threads, each task in a fresh app context."""

from __future__ import annotations

import logging
import os
import time

# Imported so that the consumer knows every task, whether a door rings it or only the clock.
import webapp.campaigns.tasks
import webapp.customers.tasks
import webapp.monitoring.tasks
import webapp.redemptions.tasks  # noqa: F401
from webapp import bell, create_app, release
from webapp.extensions import huey
from webapp.monitoring import heart


def main() -> None:
    """Run until SIGTERM; then finish the step in hand and leave."""
    # Every process reckons in UTC; Huey's crontab follows the process's zone.
    os.environ["TZ"] = "UTC"
    time.tzset()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    app = create_app()
    consumer = huey.create_consumer(
        # Two threads more than connections to the relay: for an import (one at a time) and for the sweep.
        workers=app.config["SETTINGS"].mail_connections + 2,
        worker_type="thread",
        periodic=True,
        graceful_signal="TERM",
    )
    bell.stopping = consumer.stop_flag
    with heart.beating(app, release()):
        consumer.run()


if __name__ == "__main__":
    main()
