"""`/.well-known/security.txt` (RFC 9116)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient

from webapp.core.settings import Settings

PATH = "/.well-known/security.txt"


@pytest.mark.parametrize(
    ("public_url", "canonical"),
    [
        ("https://offers.shop.example", f"https://offers.shop.example{PATH}"),
        ("https://shop.example:8443/offers", f"https://shop.example:8443{PATH}"),
    ],
)
def test_the_file_has_the_contact_and_expires_within_a_year(
    client: FlaskClient, with_settings: Callable[..., Settings], public_url: str, canonical: str
) -> None:
    with_settings(security_contact="mailto:security@shop.example", public_url=public_url)

    response = client.get(PATH)

    assert (response.status_code, response.content_type) == (200, "text/plain; charset=utf-8")
    fields = dict(line.split(": ", 1) for line in response.text.splitlines())
    expires_in = datetime.fromisoformat(fields.pop("Expires")) - datetime.now(UTC)
    assert timedelta(days=30) < expires_in < timedelta(days=365)
    assert fields == {
        "Contact": "mailto:security@shop.example",
        "Preferred-Languages": "en",
        "Canonical": canonical,
    }


def test_there_is_no_file_without_a_contact(client: FlaskClient) -> None:
    assert client.get(PATH).status_code == 404
