"""A provider that the app is configured to use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from tests.support import oidc_provider
from tests.support.oidc_provider import OidcProvider


@pytest.fixture
def provider(app: Flask, with_settings: Callable[..., object]) -> Iterator[OidcProvider]:
    """A running provider."""
    with oidc_provider.running() as provider:
        with_settings(oidc=provider.settings)
        yield provider
    app.extensions.pop("oidc", None)
