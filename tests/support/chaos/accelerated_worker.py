"""The worker with all intervals divided by the same factor.

A lease takes 6 seconds, and the sweep runs every 4. The proportions stay the same and each process uses its own clock,
so these workers interact in a minute as those of the program do in a quarter of an hour.
"""

from __future__ import annotations

from huey.consumer import Scheduler

from webapp.campaigns import timing
from webapp.core.extensions import huey

FACTOR = 15


def shorten_intervals() -> None:
    """Shorten the intervals of campaigns, the scheduler and the queue."""
    for name, value in list(vars(timing).items()):
        if name.isupper():
            setattr(
                timing, name, tuple(each / FACTOR for each in value) if isinstance(value, tuple) else value / FACTOR
            )
    # The sweep's crontab matches every minute, so the sweep runs each time the scheduler checks.
    Scheduler.periodic_task_seconds = 60 / FACTOR
    huey.storage.read_timeout /= FACTOR


if __name__ == "__main__":
    shorten_intervals()
    # Imported only now, so that values computed from the intervals at import are short as well.
    from webapp import worker

    worker.main()
