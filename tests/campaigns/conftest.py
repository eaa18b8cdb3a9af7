from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.campaigns import relay as relays
from webapp.core.settings import Settings


@pytest.fixture
def relay(with_settings: Callable[..., Settings]) -> Iterator[relays.Relay]:
    """A running relay, which the app is told to use."""
    with relays.running() as server:
        with_settings(mail_port=server.port)
        yield server
