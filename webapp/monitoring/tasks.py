"""What a worker does for those who watch."""

from __future__ import annotations

from huey import crontab

from webapp import bell
from webapp.monitoring import actions

sweep = bell.every(crontab(minute="*"), actions.drop_silent)
