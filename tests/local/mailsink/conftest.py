"""A folder of mails, its index and its pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from local.mailsink.index import MailIndex
from local.mailsink.web_app import create_sink_app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mails"
    folder.mkdir()
    return folder


@pytest.fixture
def index(folder: Path) -> MailIndex:
    return MailIndex(folder)


@pytest.fixture
def drop(folder: Path) -> Callable[..., str]:
    """Puts a mail into the folder as the SMTP side does, and tells its name; each is newer than the one before."""
    names: list[str] = []

    def put(content: bytes | str, **headers: str) -> str:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        data = content if isinstance(content, bytes) else f"{head}\r\n{content}".encode()
        names.append(f"{1_700_000_000_000_000_000 + len(names)}-1-{len(names)}.eml")
        (folder / names[-1]).write_bytes(data)
        return names[-1]

    return put


@pytest.fixture
def browser(index: MailIndex) -> FlaskClient:
    return create_sink_app(index).test_client()
