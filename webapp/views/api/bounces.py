"""JSON calls about mails that came back."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from flask import Response, g, jsonify, request
from flask_openapi import APIBlueprint
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest

from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces import mailbox
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.core.errors import DomainError
from webapp.customers.imports.upload import CHUNK_SIZE
from webapp.views.api.blueprint import accept_media_types, require_scope
from webapp.views.api.schemas.bounces import BouncesIn, BouncesOut
from webapp.views.problem_details import validation_problem_response

blueprint = APIBlueprint("bounces", __name__)

JSON_TYPE = "application/json"
MESSAGE_TYPE, REPORT_TYPE = "message/rfc822", "multipart/report"
MESSAGE_SIZE_MAX = 64 * 1024 * 1024


@blueprint.post("/bounces", responses={200: BouncesOut})
@require_scope("manage")
@accept_media_types(JSON_TYPE, MESSAGE_TYPE, REPORT_TYPE, json_model=BouncesIn)
def bounces() -> Response:
    """Hard bounces and complaints: those addresses are not mailed any more, from the next window on.

    As JSON, up to 1000 at a time: each says by `return_path`, `message_id` or `email` whose mail it is about; a mark
    of ours goes before the address. A `status` that is no fault of the address (RFC 3463; the table is in
    docs/consent.md) changes nothing. An address of nobody known goes on the list, too: who is imported later is not
    mailed. Or the mail itself that came back, as `message/rfc822` or `multipart/report`: of that only what carries a
    mark of ours counts. Sending the same twice changes nothing. `results` says for each in turn what came of it:
    suppressed (now on the list), known (on the list already), soft (no fault of the address), ignored (an answer of a
    machine, or about a former address), unproven (nobody knows whose mail it is), unknown_customer (a mark of ours,
    but the customer is erased), own_address (the shop's), email_invalid, broken.
    """
    by = f"key {g.api_key.name}"
    if request.mimetype != JSON_TYPE:
        outcomes = [bounce_actions.process_bounce_report(bounce_reports.parse_report(_read_message()))]
        bounce_actions.audit_bounces(outcomes, by)
    else:
        try:
            body = BouncesIn.model_validate(_parse_json())
        except ValidationError as error:
            return validation_problem_response(error)
        outcomes = bounce_actions.process_bounce_notices([each.to_notice() for each in body.bounces], by)
    return jsonify({"received": len(outcomes), "suppressed": outcomes.count("suppressed"), "results": outcomes})


def _parse_json() -> Any:
    try:
        return request.get_json()
    except (BadRequest, RecursionError) as error:
        raise DomainError("broken_json", "The body is not JSON that can be read.", 400) from error


def _read_message() -> bytes:
    """The beginning of the mail that is the body. Of a report without its first lines, the header says what it is."""
    request.max_content_length = MESSAGE_SIZE_MAX
    raw = mailbox.read_truncated(takewhile(bool, iter(lambda: request.stream.read(CHUNK_SIZE), None)))
    if request.mimetype == REPORT_TYPE and not re.match(rb"[\w-]+:", raw):
        return f"Content-Type: {request.content_type}\n\n".encode() + raw
    return raw
