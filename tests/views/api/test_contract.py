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

from webapp.accounts import api_key_actions
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
    # The document describes types and lengths. Other rules, such as the alphabet of a code, may still refuse a value.
    schema.config.checks.update(excluded_check_names=["positive_data_acceptance"])
    return schema


@pytest.mark.parametrize("mode", list(GenerationMode))
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
        except Unsatisfiable:
            # No invalid request exists for an operation that accepts any text.
            continue
        except Exception as error:
            failures.append(f"{operation.label}: {error!r}")

    assert not failures, "\n\n".join(failures)


ORDER = {"id": "A-1", "amount": 4999, "currency": "EUR"}
NEW = {
    "name": "Winter",
    "code": "WINTER25",
    "discount": {"type": "amount", "amount": 500, "currency": "EUR"},
    "starts_at": "2026-06-01T00:00:00Z",
    "max_redemptions": 5,
}
ADA = {"code": "summer25", "customer": {"email": "ada@example.com"}}


def test_every_success_conforms_to_the_document(contract: Any) -> None:
    """Call the operations in turn; check each status and body against the document."""

    def call(method: str, path: str, status: int, body: object = None, **values: Any) -> Any:
        operation = contract[f"/api/v1{path}"][method]
        given = {"body": body, "media_type": "application/json"} if body is not None else {}
        response = operation.Case(**given, **values).call_and_validate(headers=dict(contract.config.headers))
        assert response.status_code == status
        return response.json()

    call("POST", "/offers", 201, NEW)
    call("PATCH", "/offers/{code}", 200, {"name": "Cold"}, path_parameters={"code": "WINTER25"})
    call("GET", "/offers", 200)
    call("GET", "/offers/{code}", 200, path_parameters={"code": "summer-25"})
    call("POST", "/validations", 200, ADA | {"order": ORDER})
    call("GET", "/customers/{email}/offers", 200, path_parameters={"email": "ada@example.com"})
    redemption = call("POST", "/redemptions", 201, ADA | {"order": ORDER, "metadata": {"till": 1}})
    call("POST", "/redemptions", 200, ADA | {"order": ORDER})
    call("POST", "/redemptions", 409, ADA)
    call("POST", "/validations", 200, ADA)
    call("GET", "/customers/{email}/offers", 200, path_parameters={"email": "ada@example.com"}, query={"used": True})
    call("GET", "/redemptions", 200, query={"offer": "SUMMER25", "limit": 1})
    call("GET", "/redemptions/{id}", 200, path_parameters={"id": redemption["id"]})
    undo = {"path_parameters": {"id": redemption["id"]}, "body": {"reason": "order cancelled"}}
    call("POST", "/redemptions/{id}/rollback", 200, **undo)
    call("POST", "/redemptions/{id}/rollback", 409, **undo)
    call("GET", "/redemptions/{id}", 200, path_parameters={"id": redemption["id"]})
    ada = {"email": "ada@example.org", "name": "Ada", "audiences": ["Regulars"]}
    call("PUT", "/customers/{source_id}", 200, ada, path_parameters={"source_id": "C-1"})
    call("PUT", "/customers/{source_id}", 201, {"email": "bob@example.com"}, path_parameters={"source_id": "C-2"})
    call("GET", "/customers/{source_id}", 200, path_parameters={"source_id": "C-1"})
    campaign = call("POST", "/offers/{code}/launch", 202, path_parameters={"code": "SUMMER25"})["id"]
    call("GET", "/campaigns/{id}", 200, path_parameters={"id": campaign})
