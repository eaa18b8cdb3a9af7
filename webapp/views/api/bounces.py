"""API views for bounces and complaints."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from flask import Response, jsonify, request
from flask_babel import gettext as _
from flask_openapi import APIBlueprint
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest

from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces import mailbox
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.core.errors import DomainError
from webapp.customers.imports.upload import CHUNK_SIZE
from webapp.views.api.blueprint import accept_media_types, get_actor, require_scope
from webapp.views.api.schemas.bounces import BouncesIn, BouncesOut
from webapp.views.problem_details import validation_problem_response

blueprint = APIBlueprint("bounces", __name__)

JSON_TYPE = "application/json"
MESSAGE_TYPE, REPORT_TYPE = "message/rfc822", "multipart/report"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@blueprint.post("/bounces", responses={200: BouncesOut})
@require_scope("manage")
@accept_media_types(JSON_TYPE, MESSAGE_TYPE, REPORT_TYPE, json_model=BouncesIn)
def bounces() -> Response:
    """Report hard bounces and complaints.

    The addresses are added to the suppression list.

    As JSON, up to 1000 at a time: each identifies the email or the address by `return_path`, `message_id` or `email`; a
    token of this installation takes precedence over the address. A `status` that is not a failure of the address (RFC
    3463; the table is in docs/consent.md) changes nothing. The address of an unknown customer is suppressed too, so
    that a later import does not send emails to it. The body can also be the bounce message itself, as `message/rfc822`
    or `multipart/report`: it counts only if it contains a token of this installation. Sending the same report twice
    changes nothing. `results` contains the outcome of each report, in order: suppressed (added to the suppression
    list), known (already on the list), soft (not a failure of the address), ignored (an automatic reply, or about a
    former address), unproven (no valid token), unknown_customer (a valid token of a customer who has been erased),
    own_address (an address of the shop), email_invalid, broken.
    """
    by = get_actor()
    if request.mimetype != JSON_TYPE:
        outcomes = [bounce_actions.process_bounce_report(bounce_reports.parse_report(_read_message()))]
        bounce_actions.audit_bounces(outcomes, by)
    else:
        try:
            body = BouncesIn.model_validate(_parse_json())
        except ValidationError as error:
            return validation_problem_response(error)
        outcomes = bounce_actions.process_bounce_notices([bounce.to_notice() for bounce in body.bounces], by)
    return jsonify({"received": len(outcomes), "suppressed": outcomes.count("suppressed"), "results": outcomes})


def _parse_json() -> Any:
    try:
        return request.get_json()
    except (BadRequest, RecursionError) as error:
        raise DomainError("broken_json", _("The body is not valid JSON."), 400) from error


def _read_message() -> bytes:
    """Read the beginning of the message in the request body.

    A report may come without its header lines; its content type is then that of the request.
    """
    request.max_content_length = MAX_MESSAGE_BYTES
    raw = mailbox.read_truncated(takewhile(bool, iter(lambda: request.stream.read(CHUNK_SIZE), None)))
    if request.mimetype == REPORT_TYPE and not re.match(rb"[\w-]+:", raw):
        return f"Content-Type: {request.content_type}\n\n".encode() + raw
    return raw
