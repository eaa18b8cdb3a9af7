"""What a worker does for those who watch."""

from __future__ import annotations

from huey import crontab

from webapp.core import task_queue
from webapp.monitoring import actions as monitoring_actions

sweep = task_queue.every(crontab(minute="*"), monitoring_actions.drop_silent)
