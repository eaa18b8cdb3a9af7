"""Staff forms for the filters of the audit log."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l
from wtforms import SelectChoice, SelectField, StringField

from webapp.accounts.access_counts import REFUSAL_LABELS, VIEW_LABELS
from webapp.accounts.audit_queries import AccessFilter, AuditFilter
from webapp.views.staff.forms.period import PeriodForm


def _strip(text: str | None) -> str:
    return (text or "").replace("\0", "").strip()


class AuditSearchForm(PeriodForm):
    """The search and filters of the audit log."""

    q = StringField(_l("Subject, user or address"), filters=[_strip])
    group = SelectField(_l("Actions"), default="", validate_choice=False)
    actor = StringField(_l("User or API key"), filters=[_strip])

    def set_group_choices(self, labels: dict[str, str]) -> None:
        """Set the groups of actions to choose from: all, or one of these."""
        groups = sorted(labels, key=lambda group: labels[group])
        self.group.choices = [
            SelectChoice("", _l("All actions")),
            *(SelectChoice(group, labels[group]) for group in groups),
        ]

    def to_filter(self, zone: str) -> AuditFilter | None:
        """Return the filter, or None if a date or the group is invalid.

        :param zone: the time zone of the days.
        """
        group = self.group.data or ""
        if not self.validate() or group not in {choice.value for choice in self.group.choices or []}:
            return None
        return AuditFilter(group, self.actor.data or "", self.q.data or "", *self.time_range(zone))


class AccessSearchForm(PeriodForm):
    """The search and filters of the counts of accesses."""

    q = StringField(_l("User, API key, address or subject"), filters=[_strip])
    kind = SelectField(
        _l("Kind"),
        choices=[
            SelectChoice("", _l("All kinds")),
            *(SelectChoice(kind, label) for kind, label in {**REFUSAL_LABELS, **VIEW_LABELS}.items()),
        ],
        default="",
        validate_choice=False,
    )

    def to_filter(self, zone: str) -> AccessFilter | None:
        """Return the filter, or None if a date or the kind is invalid.

        :param zone: the time zone of the days.
        """
        kind = self.kind.data or ""
        if not self.validate() or (kind and kind not in {**REFUSAL_LABELS, **VIEW_LABELS}):
            return None
        return AccessFilter(kind, self.q.data or "", *self.time_range(zone))
