"""Parse which deliveries of a campaign staff list, resend or dismiss."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flask import request
from flask_babel import gettext as _

from webapp.campaigns.deliveries import status as delivery_status
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.core.errors import DomainError
from webapp.views import rendering

_REPLY_CODE_PATTERN = re.compile("[2-5][0-9]{2}")


def parse_selection(values: Mapping[str, str]) -> DeliverySelection:
    """Parse the selected deliveries from a query string or form.

    Invalid values are ignored.
    """
    state = values.get("state", "")
    code = values.get("code", "")
    try:
        customer_id = rendering.parse_row_id(values.get("customer", ""))
    except ValueError:
        customer_id = None
    return DeliverySelection(
        state if state in (*delivery_status.RECORDED_STATES, *delivery_status.DERIVED_STATES) else "",
        customer_id=customer_id,
        code=int(code) if _REPLY_CODE_PATTERN.fullmatch(code) else None,
        cause=values["cause"].replace("\0", "") if "cause" in values else None,
    )


def parse_submitted_selection() -> DeliverySelection:
    """Parse the selected deliveries of the submitted form.

    :raises DomainError: `conflict` when a value is invalid: without it, other emails would be selected.
    """
    selection = parse_selection(request.form)
    is_invalid = (
        ("customer" in request.form and selection.customer_id is None)
        or (bool(request.form.get("code")) and selection.code is None)
        or not selection.state
    )
    if is_invalid:
        raise DomainError(
            "conflict", _("No email was changed: the selection is invalid. Reload the page and try again.")
        )
    return selection
