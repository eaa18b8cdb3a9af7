"""What a worker does for redemptions."""

from __future__ import annotations

from huey import crontab

from webapp import bell
from webapp.redemptions import actions

count_hours = bell.every(crontab(minute="*"), actions.count_hours)
