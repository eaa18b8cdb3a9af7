"""Check the status of a campaign before an action; the statuses as sentences."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l

from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError
from webapp.core.extensions import db

STATUS_SENTENCES = {
    "draft": _l("This campaign has not been launched yet."),
    "scheduled": _l("This campaign is scheduled."),
    "preparing": _l("This campaign is already in progress."),
    "sending": _l("This campaign is already in progress."),
    "paused": _l("This campaign is paused."),
    "cancelled": _l("This campaign has been cancelled."),
    "done": _l("This campaign has already finished."),
}


def require_status(campaign: Campaign, statuses: tuple[str, ...], refusal: str) -> None:
    """Require that a campaign has one of several statuses.

    :param refusal: a translated sentence that follows that of the status, such as "It can't be paused."
    :raises DomainError: `conflict`, with the current status and the refusal; the transaction is then rolled back.
    """
    if campaign.status not in statuses:
        message = " ".join((str(STATUS_SENTENCES[campaign.status]), refusal))
        db.session.rollback()
        raise DomainError("conflict", message)
