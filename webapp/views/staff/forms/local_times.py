"""Fields for local times, which staff forms share."""

from __future__ import annotations

from datetime import date, time
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel.speaklater import LazyString
from wtforms import Form, SelectChoice, TimeField
from wtforms.validators import Optional

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.local_time import LocalDateTime

# "Fold" as in PEP 495: which of two equal local times is meant when the clocks go back.
FOLD_CHOICES = [
    SelectChoice("0", _l("The first time, before the clocks go back")),
    SelectChoice("1", _l("The second time, after the clocks go back")),
]


class TimeOfDayField(TimeField):
    """A time of day that shows seconds only when it has any."""

    def __init__(self, label: LazyString | str, **options: Any) -> None:
        super().__init__(label, format=["%H:%M", "%H:%M:%S"], validators=[Optional()], **options)

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        if self.data is None:
            return ""
        return f"{self.data:%H:%M:%S}" if self.data.second else f"{self.data:%H:%M}"


def parse_local_datetime(form: Form, name: str) -> LocalDateTime | None:
    """Parse the fields `name`, `name_time` and `name_fold` of a form.

    Return None without a day.

    :raises InvalidInput: with an error for the invalid field.
    """
    day: date | None = form[name].data
    time_of_day: time | None = form[f"{name}_time"].data
    if _has_input(form[name]) and day is None:
        raise InvalidInput(FieldError(name, "day_invalid", _("Choose a date from the calendar.")))
    if _has_input(form[f"{name}_time"]) and time_of_day is None:
        raise InvalidInput(FieldError(f"{name}_time", "time_invalid", _("Enter a time such as 18:00.")))
    if day is None:
        if time_of_day is not None:
            raise InvalidInput(FieldError(name, "day_missing", _("Choose a day, too.")))
        return None
    fold = form[f"{name}_fold"].data
    return LocalDateTime(day, time_of_day, int(fold) if fold in ("0", "1") else None)


def needs_fold_choice(form: Form, field: str) -> bool:
    """Return whether a form has to ask which of two equal times is meant.

    There are two when the clocks go back.
    """
    is_ambiguous = "time_ambiguous" in getattr(form[field], "error_keys", ())
    return is_ambiguous or bool(form[f"{field}_fold"].data)


def _has_input(field: Any) -> bool:
    """Return whether a submitted field is not blank."""
    return any(str(value).strip() for value in field.raw_data or [])
