"""Imports with the real web server and the real worker: what no test client can show."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psutil
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support import live_server
from tests.support.imports import Import, file_chunks
from webapp.accounts import api_key_actions
from webapp.accounts.models import StaffUser
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import queries as import_queries
from webapp.customers.models import Customer, CustomerImport, ImportChunk

MEGABYTES = 64
# What a first upload costs a fresh process: pieces of a megabyte and what reads them. Far below the file itself.
ALLOWED_KB = 40_000
CHUNK = b"".join(b"customer%06d@example.com,A Customer With A Long Enough Name\r\n" % n for n in range(16_000))


def a_large_file() -> Iterator[bytes]:
    yield b"email,name\r\n"
    for _ in range(MEGABYTES):
        yield CHUNK


def peak(pid: int) -> int:
    """The most memory, in kB, that a process has ever held."""
    with open(f"/proc/{pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def of(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
        db.session.rollback()


def size_of(import_id: int) -> int:
    row = import_queries.find_import(import_id)
    assert row is not None
    return row.size


def signed_in(app: Flask, user: StaffUser) -> FlaskClient:
    client = app.test_client()
    with client.session_transaction() as session:
        session["_user_id"], session["_fresh"] = user.get_id(), True
    return client


def cookie_of(app: Flask, client: FlaskClient) -> str:
    cookie = client.get_cookie(app.config["SESSION_COOKIE_NAME"])
    assert cookie is not None
    return f"{cookie.key}={cookie.value}"


def test_a_large_upload_by_machine_does_not_fill_the_memory_of_the_web_server(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "text/csv",
        "Content-Length": str(sum(map(len, a_large_file()))),
    }

    with live_server.web_server(app.config["SETTINGS"]) as web:
        before = max(peak(pid) for pid in of(web.process.pid))
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.request("POST", "/api/v1/customers/import", body=a_large_file(), headers=headers)
        status = connection.getresponse().status
        after = max(peak(pid) for pid in of(web.process.pid))

    assert status == 202
    assert import_queries.list_imports()[0].size == sum(map(len, a_large_file()))
    assert after - before < ALLOWED_KB


def test_a_large_upload_by_form_does_not_fill_the_memory_of_the_web_server(
    app: Flask, staff_user: Callable[..., StaffUser]
) -> None:
    client = signed_in(app, staff_user("manager"))
    app.config["WTF_CSRF_ENABLED"] = True
    page = client.get("/customers/import").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    head = (
        f'--x\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{token}\r\n'
        '--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nEveryone\r\n'
        '--x\r\nContent-Disposition: form-data; name="file"; filename="large.csv"\r\nContent-Type: text/csv\r\n\r\n'
    ).encode()
    size = len(head) + sum(map(len, a_large_file())) + len(b"\r\n--x--\r\n")

    def body() -> Iterator[bytes]:
        yield head
        yield from a_large_file()
        yield b"\r\n--x--\r\n"

    with live_server.web_server(app.config["SETTINGS"], PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        before = max(peak(pid) for pid in of(web.process.pid))
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        headers = {
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": str(size),
            "Cookie": cookie_of(app, client),
        }
        connection.request("POST", "/customers/import", body=body(), headers=headers)
        answer = connection.getresponse()
        after = max(peak(pid) for pid in of(web.process.pid))

    assert (answer.status, answer.headers["Location"]) == (
        302,
        f"/customers/imports/{import_queries.list_imports()[0].id}",
    )
    assert import_queries.list_imports()[0].size == sum(map(len, a_large_file()))
    assert after - before < ALLOWED_KB


def test_a_connection_that_breaks_leaves_an_import_that_says_so(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")

    with live_server.web_server(app.config["SETTINGS"]) as web:
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.putrequest("POST", "/api/v1/customers/import")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Type", "text/csv")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        connection.send(b"email,name\r\n" + CHUNK * 3)
        wait_for(lambda: bool(import_queries.list_imports()) and size_of(import_queries.list_imports()[0].id) > 0)
        connection.close()
        wait_for(lambda: import_queries.list_imports()[0].status == "failed")

    assert import_queries.list_imports()[0].error_code == "upload_broken"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_files_are_downloaded_from_the_real_web_server(
    app: Flask, staff_user: Callable[..., StaffUser], imported: Import
) -> None:
    row = imported("email,name\nada@example.com,Ada\nbad,Bob\n")
    headers = {"Cookie": cookie_of(app, signed_in(app, staff_user("manager")))}

    answers = []
    with live_server.web_server(app.config["SETTINGS"], PUBLIC_URL=app.config["SETTINGS"].public_url) as web:
        for address in ("/customers.csv", f"/customers/imports/{row.id}/rejected.csv"):
            connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
            connection.request("GET", address, headers=headers)
            answer = connection.getresponse()
            answers.append((answer.status, answer.read().decode()))

    assert [status for status, _ in answers] == [200, 200]
    assert "ada@example.com,Ada" in answers[0][1]
    assert '"bad,Bob"' in answers[1][1]


def test_a_worker_killed_in_the_middle_of_the_merge_is_picked_up_by_another(app: Flask) -> None:
    rows = 150_000
    lines = [f"customer{n}@example.com,Customer {n}" if n % 100 else f"broken{n},B" for n in range(rows)]
    file = ("email,name\n" + "\n".join(lines)).encode()
    import_id = import_actions.store_import_file(file_chunks(file), "customers.csv", "text/csv", "", by="tests")

    def row() -> CustomerImport:
        found = import_queries.find_import(import_id)
        assert found is not None
        return found

    settings = app.config["SETTINGS"]
    with live_server.worker(settings) as first:
        task_queue.enqueue("customers.process_import", import_id)
        wait_for(lambda: max(row().merged_to or [0]) > 0)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    killed_at = row().merged_to
    # What the clock does in a minute and a half.
    db.session.execute(update(CustomerImport).values(lease_until=func.now()))
    db.session.commit()
    with live_server.worker(settings) as second:
        task_queue.enqueue("customers.process_import", import_id)
        wait_for(lambda: row().status == "done")
        memory = peak(second.process.pid)

    assert killed_at is not None
    assert min(killed_at) < rows
    assert (row().rows, row().created, row().rejected) == (rows, rows - rows // 100, rows // 100)
    assert db.session.scalar(select(func.count()).select_from(Customer)) == rows - rows // 100
    assert memory < 250_000


def test_a_file_in_chunks_is_refused_for_nobody_could_tell_whether_it_came_whole(app: Flask) -> None:
    key = api_key_actions.create_api_key("tests", ["manage"], by="tests")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "text/csv"}

    with live_server.web_server(app.config["SETTINGS"]) as web:
        connection = http.client.HTTPConnection(urlsplit(web.url).netloc, timeout=60)
        connection.request(
            "POST", "/api/v1/customers/import", body=iter([b"email\r\nada@example.com\r\n"]), headers=headers
        )
        answer = connection.getresponse()
        problem = json.loads(answer.read())

    assert (answer.status, problem["code"]) == (411, "length_required")
    assert import_queries.list_imports() == []
