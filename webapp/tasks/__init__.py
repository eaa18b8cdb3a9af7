"""Background tasks, which workers run.

Each task calls actions; actions enqueue tasks by name.
"""

from webapp.tasks import campaigns, customers, monitoring, redemptions, retention

__all__ = ["campaigns", "customers", "monitoring", "redemptions", "retention"]
