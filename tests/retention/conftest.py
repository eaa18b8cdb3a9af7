"""Fixtures of the tests of retention periods."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.retention import SetPeriods
from webapp.core.settings import Settings


@pytest.fixture
def set_periods(with_settings: Callable[..., Settings]) -> SetPeriods:
    """Sets retention periods in days: `set_periods(audit=90)`."""
    names = {
        "customers": "customer_days",
        "redemptions": "redemption_days",
        "deliveries": "delivery_days",
        "audit": "audit_days",
    }
    return lambda **days: with_settings(**{f"retention_{names[kind]}": number for kind, number in days.items()})
