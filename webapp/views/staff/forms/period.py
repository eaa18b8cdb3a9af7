"""The period of a list, as a filter in the query string."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask_babel import lazy_gettext as _l
from wtforms import DateField, Form
from wtforms.validators import Optional

# Earlier and later days filter the same rows. Midnight of the last day of `datetime` does not exist in every time zone.
_FIRST_DAY, _LAST_DAY = date(1970, 1, 1), date(2200, 1, 1)


class PeriodForm(Form):
    """The first and the last day of a period."""

    first = DateField(_l("From"), validators=[Optional()])
    last = DateField(_l("To"), validators=[Optional()])

    def time_range(self, zone: str) -> tuple[datetime | None, datetime | None]:
        """Return the start of the first day and the end of the last one in a time zone.

        Each is None when its field is empty.
        """
        time_zone = ZoneInfo(zone)
        first, last = self.first.data or None, self.last.data or None
        return (
            _midnight_utc(first, time_zone) if first else None,
            _midnight_utc(_limit(last) + timedelta(days=1), time_zone) if last else None,
        )


def _limit(day: date) -> date:
    return min(max(day, _FIRST_DAY), _LAST_DAY)


def _midnight_utc(day: date, time_zone: ZoneInfo) -> datetime:
    return datetime.combine(_limit(day), time(0), time_zone).astimezone(UTC)
