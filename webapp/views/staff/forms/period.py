"""The period of a list, as a filter in the query string."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask_babel import lazy_gettext as _l
from wtforms import DateField, Form
from wtforms.validators import Optional


class PeriodForm(Form):
    """The first and the last day of a period."""

    first = DateField(_l("From"), validators=[Optional()])
    last = DateField(_l("To"), validators=[Optional()])

    def time_range(self, zone: str) -> tuple[datetime | None, datetime | None]:
        """Return the start of the first day and the end of the last one in a time zone.

        Each is None when its field is empty.
        """
        time_zone = ZoneInfo(zone)
        since, until = (self.first.data or None), (self.last.data or None)
        return (
            _midnight_utc(since, time_zone) if since else None,
            _midnight_utc(until + timedelta(days=1), time_zone) if until and until < date.max else None,
        )


def _midnight_utc(day: date, time_zone: ZoneInfo) -> datetime | None:
    if not 1970 <= day.year < 2200:
        return None
    return datetime.combine(day, time(0), time_zone).astimezone(UTC)
