"""The API conforms to its OpenAPI document; schemathesis generates the requests.

The requests are the same every time; with `CONTRACT_EXAMPLES=500` that many new ones are drawn for each operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from tests.support.smtp_relay import Relay
from webapp.accounts import api_key_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
from webapp.customers.models import Customer
from webapp.offers.models import Offer

LONG = os.environ.get("CONTRACT_EXAMPLES")


@pytest.fixture
def contract(app: Flask, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]) -> Any:
    """The OpenAPI schema, with an offer, a customer and a key with every scope."""
    make_offer()
    make_customer(source_id="C-1")
    key = api_key_actions.create_api_key("tests", ["read", "redeem", "manage"], by="tests")
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    schema.config.update(headers={"Authorization": f"Bearer {key}"})
    # The document describes types and lengths. Other rules, such as the alphabet of a code, may still reject a value.
    schema.config.checks.update(excluded_check_names=["positive_data_acceptance"])
    return schema


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, pytest.param(GenerationMode.NEGATIVE, marks=pytest.mark.slow)]
)
def test_every_response_conforms_to_the_document(contract: Any, mode: GenerationMode) -> None:
    failures = []
    for result in contract.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=int(LONG or 8),
            derandomize=LONG is None,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Case[Any]) -> None:
            # The request has a valid key, so that the operation itself is tested.
            assert case.call_and_validate().status_code != 401

        try:
            send()
        except Unsatisfiable as error:
            # No invalid request exists for an operation that accepts any text.
            if mode is GenerationMode.POSITIVE:
                failures.append(f"{operation.label}: {error!r}")
        except Exception as error:
            failures.append(f"{operation.label}: {error!r}")

    assert not failures, "\n\n".join(failures)


ORDER = {"id": "A-1", "amount": 4999, "currency": "EUR"}
NEW_OFFER = {
    "name": "Winter",
    "code": "WINTER25",
    "discount": {"type": "amount", "amount": 500, "currency": "EUR"},
    "starts_at": "2026-06-01T00:00:00Z",
    "max_redemptions": 5,
}
ADA = {"email": "ada@example.com"}
REQUEST = {"code": "summer25", "customer": ADA}
SUMMER = {"path_parameters": {"code": "SUMMER25"}}


class DocumentedCalls:
    """Calls operations, checks each response against the document, and records the operations."""

    def __init__(self, contract: Any) -> None:
        self._contract = contract
        self.operations: set[tuple[str, str]] = set()

    def __call__(self, method: str, path: str, status: int, body: object = None, **values: Any) -> Any:
        """Call an operation; return the body of its response, None if that is not JSON."""
        self.operations.add((method, path))
        if body is not None:
            values = {"media_type": "application/json", "body": body} | values
        case = self._contract[f"/api/v1{path}"][method].Case(**values)
        response = case.call_and_validate(headers=dict(self._contract.config.headers))
        assert response.status_code == status, (method, path, response.text)
        return (
            response.json() if response.content and response.headers["content-type"] == ["application/json"] else None
        )


def call_offers(call: DocumentedCalls) -> None:
    call("POST", "/offers", 201, NEW_OFFER)
    call("PATCH", "/offers/{code}", 200, {"name": "Cold"}, path_parameters={"code": "WINTER25"})
    call("GET", "/offers", 200)
    call("GET", "/offers/{code}", 200, path_parameters={"code": "summer-25"})


def call_redemptions(call: DocumentedCalls) -> None:
    call("POST", "/validations", 200, REQUEST | {"order": ORDER})
    call("GET", "/customers/{email}/offers", 200, path_parameters=ADA)
    redemption = call("POST", "/redemptions", 201, REQUEST | {"order": ORDER, "metadata": {"till": 1}})
    call("POST", "/redemptions", 200, REQUEST | {"order": ORDER})
    call("POST", "/redemptions", 409, REQUEST)
    call("POST", "/validations", 200, REQUEST)
    call("POST", "/explanations", 200, REQUEST)
    call("GET", "/customers/{email}/offers", 200, path_parameters=ADA, query={"used": True})
    call("GET", "/redemptions", 200, query={"offer": "SUMMER25", "limit": 1})
    path = {"path_parameters": {"id": redemption["id"]}}
    call("GET", "/redemptions/{id}", 200, **path)
    call("POST", "/redemptions/{id}/rollback", 200, {"reason": "order cancelled"}, **path)
    call("POST", "/redemptions/{id}/rollback", 409, {"reason": "order cancelled"}, **path)
    call("GET", "/redemptions/{id}", 200, **path)


def call_customers(call: DocumentedCalls) -> None:
    ada = {"email": "ada@example.org", "name": "Ada", "audiences": ["Regulars"]}
    call("PUT", "/customers/{source_id}", 200, ada, path_parameters={"source_id": "C-1"})
    call("PUT", "/customers/{source_id}", 201, {"email": "bob@example.com"}, path_parameters={"source_id": "C-2"})
    call("GET", "/customers/{source_id}", 200, path_parameters={"source_id": "C-1"})
    file = b"email\ncleo@example.com\n"
    import_id = call("POST", "/customers/import", 202, file, media_type="text/csv")["id"]
    call("GET", "/imports/{id}", 200, path_parameters={"id": import_id})
    call("POST", "/bounces", 200, {"bounces": [{"kind": "bounce", "email": "dan@example.com", "status": "5.1.1"}]})


def call_campaigns(call: DocumentedCalls) -> None:
    campaign = {"path_parameters": {"id": call("POST", "/offers/{code}/launch", 202, **SUMMER)["id"]}}
    preparation.prepare_campaign(campaign["path_parameters"]["id"])
    call("GET", "/campaigns", 200)
    call("GET", "/campaigns/{id}", 200, **campaign)
    recipient = campaign["path_parameters"] | {"email": "bob@example.com"}
    call("GET", "/campaigns/{id}/recipients/{email}", 200, path_parameters=recipient)
    call("POST", "/campaigns/{id}/pause", 200, **campaign)
    call("POST", "/campaigns/{id}/resume", 200, **campaign)
    sender.send_pending_emails()
    call("POST", "/campaigns/{id}/decisions", 200, {"state": "failed", "decision": "send_again"}, **campaign)
    sender.send_pending_emails()
    reminder = call("POST", "/offers/{code}/reminders", 202, {}, **SUMMER)["id"]
    call("POST", "/campaigns/{id}/cancel", 200, path_parameters={"id": reminder})


def call_codes(call: DocumentedCalls) -> None:
    """Replace the code of an offer that has been launched."""
    call("POST", "/offers/{code}/codes", 200, {"code": "SUN25"}, **SUMMER)
    alias = {"path_parameters": {"code": "SUN25", "alias": "SUMMER25"}}
    call("POST", "/offers/{code}/codes/{alias}/close", 200, **alias)
    call("POST", "/offers/{code}/codes/{alias}/reopen", 200, **alias)


def test_every_operation_has_a_success_that_conforms_to_the_document(contract: Any, relay: Relay) -> None:
    call = DocumentedCalls(contract)
    relay.behaviour.rcpt["bob@example.com"] = "550 no such user"
    for call_group in (call_offers, call_redemptions, call_customers, call_campaigns, call_codes):
        call_group(call)
    call("GET", "/personal-data/{source_id}", 200, path_parameters={"source_id": "C-2"})
    call("POST", "/personal-data", 200, {"email": "ada@example.org"})
    call("DELETE", "/customers/{source_id}", 204, path_parameters={"source_id": "C-2"})
    call("POST", "/erasures", 204, {"email": "ada@example.org"})
    assert call.operations == {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in contract.raw_schema["paths"].items()
        for method in methods
    }
