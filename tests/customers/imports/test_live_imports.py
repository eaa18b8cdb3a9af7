"""Imports with the real web server and worker."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psutil
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support import live_server
from tests.support.imports import ImportFileFixture, file_chunks
from tests.support.sessions import start_session
from webapp.accounts import api_key_actions
from webapp.accounts.models import StaffUser
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import queries as import_queries
from webapp.customers.models import Customer, CustomerImport, ImportChunk

MEGABYTES = 64
# What the first upload costs a new process: chunks of a megabyte and the code that reads them, far less than the file.
ALLOWED_KB = 40_000
CHUNK = b"".join(b"customer%06d@example.com,A Customer With A Long Enough Name\r\n" % n for n in range(16_000))


def generate_large_file() -> Iterator[bytes]:
    yield b"email,name\r\n"
    for _ in range(MEGABYTES):
        yield CHUNK


def peak_memory(pid: int) -> int:
    """Return the peak resident memory of a process in kB."""
    with open(f"/proc/{pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def process_tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a condition of the database, which each check reads in a new transaction."""

    def check() -> bool:
        db.session.rollback()
        return condition()

    live_server.wait_until(check)


def import_size(import_id: int) -> int:
    row = import_queries.find_import(import_id)
    assert row is not None
    return row.size


def sign_in_client(app: Flask, user: StaffUser) -> FlaskClient:
    client = app.test_client()
    start_session(client, user)
    return client


def session_cookie(app: Flask, client: FlaskClient) -> str:
    cookie = client.get_cookie(app.config["SESSION_COOKIE_NAME"])
    assert cookie is not None
    return f"{cookie.key}={cookie.value}"


@pytest.mark.slow
def test_a_large_upload_over_the_api_uses_little_memory(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "text/csv",
        "Content-Length": str(sum(map(len, generate_large_file()))),
    }

    with live_server.web_server(app.config["SETTINGS"]) as web:
        before = max(peak_memory(pid) for pid in process_tree(web.process.pid))
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.request("POST", "/api/v1/customers/import", body=generate_large_file(), headers=headers)
        status = connection.getresponse().status
        after = max(peak_memory(pid) for pid in process_tree(web.process.pid))

    assert status == 202
    assert import_queries.list_imports()[0].size == sum(map(len, generate_large_file()))
    assert after - before < ALLOWED_KB


@pytest.mark.slow
def test_a_large_upload_by_form_uses_little_memory(app: Flask, make_staff_user: Callable[..., StaffUser]) -> None:
    client = sign_in_client(app, make_staff_user("manager"))
    app.config["WTF_CSRF_ENABLED"] = True
    page = client.get("/customers/import").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    head = (
        f'--x\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{token}\r\n'
        '--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nEveryone\r\n'
        '--x\r\nContent-Disposition: form-data; name="file"; filename="large.csv"\r\nContent-Type: text/csv\r\n\r\n'
    ).encode()
    size = len(head) + sum(map(len, generate_large_file())) + len(b"\r\n--x--\r\n")

    def body() -> Iterator[bytes]:
        yield head
        yield from generate_large_file()
        yield b"\r\n--x--\r\n"

    with live_server.web_server(app.config["SETTINGS"], PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        before = max(peak_memory(pid) for pid in process_tree(web.process.pid))
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        headers = {
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": str(size),
            "Cookie": session_cookie(app, client),
        }
        connection.request("POST", "/customers/import", body=body(), headers=headers)
        response = connection.getresponse()
        after = max(peak_memory(pid) for pid in process_tree(web.process.pid))

    assert (response.status, response.headers["Location"]) == (
        302,
        f"/customers/imports/{import_queries.list_imports()[0].id}",
    )
    assert import_queries.list_imports()[0].size == sum(map(len, generate_large_file()))
    assert after - before < ALLOWED_KB


def test_a_lost_connection_fails_the_import(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")

    with live_server.web_server(app.config["SETTINGS"]) as web:
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.putrequest("POST", "/api/v1/customers/import")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Type", "text/csv")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        connection.send(b"email,name\r\n" + CHUNK * 3)
        wait_for(lambda: bool(import_queries.list_imports()) and import_size(import_queries.list_imports()[0].id) > 0)
        connection.close()
        wait_for(lambda: import_queries.list_imports()[0].status == "failed")

    assert import_queries.list_imports()[0].error_code == "upload_broken"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_files_are_downloaded_from_the_real_web_server(
    app: Flask, make_staff_user: Callable[..., StaffUser], import_file: ImportFileFixture
) -> None:
    row = import_file("email,name\nada@example.com,Ada\nbad,Bob\n")
    headers = {"Cookie": session_cookie(app, sign_in_client(app, make_staff_user("manager")))}

    responses = []
    with live_server.web_server(app.config["SETTINGS"], PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        for address in ("/customers.csv", f"/customers/imports/{row.id}/rejected.csv"):
            connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
            connection.request("GET", address, headers=headers)
            response = connection.getresponse()
            responses.append((response.status, response.read().decode()))

    assert [status for status, _ in responses] == [200, 200]
    assert "ada@example.com,Ada" in responses[0][1]
    assert '"bad,Bob"' in responses[1][1]


@pytest.mark.slow
def test_another_worker_resumes_the_merge_of_a_killed_one(app: Flask) -> None:
    rows = 150_000
    lines = [f"customer{n}@example.com,Customer {n}" if n % 100 else f"broken{n},B" for n in range(rows)]
    file = ("email,name\n" + "\n".join(lines)).encode()
    import_id = import_actions.store_import_file(file_chunks(file), "customers.csv", "text/csv", "", by="tests")

    def load_import() -> CustomerImport:
        found = import_queries.find_import(import_id)
        assert found is not None
        return found

    settings = app.config["SETTINGS"]
    with live_server.worker(settings) as first:
        task_queue.enqueue("customers.process_import", import_id)
        wait_for(lambda: max(load_import().merged_to or [0]) > 0)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    killed_at = load_import().merged_to
    # Expire the lease, which would take a minute and a half.
    db.session.execute(update(CustomerImport).values(lease_until=func.now()))
    db.session.commit()
    with live_server.worker(settings) as second:
        task_queue.enqueue("customers.process_import", import_id)
        wait_for(lambda: load_import().status == "done")
        memory = peak_memory(second.process.pid)

    assert killed_at is not None
    assert min(killed_at) < rows
    assert (load_import().rows, load_import().created, load_import().rejected) == (
        rows,
        rows - rows // 100,
        rows // 100,
    )
    assert db.session.scalar(select(func.count()).select_from(Customer)) == rows - rows // 100
    assert memory < 250_000


def test_an_upload_without_a_content_length_is_rejected(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "text/csv"}

    with live_server.web_server(app.config["SETTINGS"]) as web:
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.request(
            "POST", "/api/v1/customers/import", body=iter([b"email\r\nada@example.com\r\n"]), headers=headers
        )
        response = connection.getresponse()
        problem = json.loads(response.read())

    assert (response.status, problem["code"]) == (411, "length_required")
    assert [error["pointer"] for error in problem["errors"]] == ["/file"]
    assert import_queries.list_imports() == []
