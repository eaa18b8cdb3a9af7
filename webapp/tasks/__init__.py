"""Background tasks, which workers run.

Each task calls actions; actions enqueue tasks by name.
"""

from webapp.tasks import accounts, campaigns, customers, monitoring, redemptions

__all__ = ["accounts", "campaigns", "customers", "monitoring", "redemptions"]
