"""A folder of emails, its index and its pages."""

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
def write_email(folder: Path) -> Callable[..., str]:
    """Write an email into the folder; return its file name, the newest last."""
    names: list[str] = []

    def write(content: bytes | str, **headers: str) -> str:
        header_lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        data = content if isinstance(content, bytes) else f"{header_lines}\r\n{content}".encode()
        names.append(f"{1_700_000_000_000_000_000 + len(names)}-1-{len(names)}.eml")
        (folder / names[-1]).write_bytes(data)
        return names[-1]

    return write


@pytest.fixture
def client(index: MailIndex) -> FlaskClient:
    return create_sink_app(index).test_client()
