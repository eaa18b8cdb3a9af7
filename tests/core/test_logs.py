"""Logs: text and JSON, request ids, and no personal data."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from flask import Flask, Response, abort
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.logs import captured_logs
from webapp import create_app
from webapp.campaigns.models import Batch, Campaign, encode_gaps
from webapp.campaigns.sending import auto_pause, batches, completion
from webapp.core import logs, task_queue
from webapp.core.extensions import db, huey
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, Settings, load_settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer

RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def parse_lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def failing(app: Flask, test_settings: Settings) -> FlaskClient:
    """A client of an app behind one trusted proxy, with a view that fails."""
    failing_app = create_app(replace(test_settings, trusted_proxies=1))
    task_queue.init_app(app)

    insert = "insert into customer (email, email_as_given, name) values (:email, :shown, 'Grace Hopper')"

    def fail(how: str, email: str) -> str:
        if how == "bug":
            raise RuntimeError(f"no such thing as {email}")
        if how == "unavailable":
            abort(503, email)
        for _ in range(2):
            db.session.execute(text(insert), {"email": email, "shown": None if how == "null" else email})
        return ""

    failing_app.add_url_rule("/fails/<how>/<email>", view_func=fail)
    return failing_app.test_client()


def test_the_text_format_has_time_level_logger_message_and_context(test_settings: Settings) -> None:
    with (
        captured_logs(test_settings, "text") as stream,
        logs.log_context(task="campaigns.pump", campaign_id=3, batch_id=7),
    ):
        logging.getLogger("webapp.some").info("said %s", "so")

    assert re.fullmatch(
        rf"{RFC3339} INFO webapp\.some said so \[campaign_id=3 batch_id=7 task=campaigns\.pump\]\n", stream.getvalue()
    )


def test_the_text_of_an_exception_cannot_forge_a_line(test_settings: Settings) -> None:
    forged = "2026-03-01T09:00:00.000Z ERROR webapp.some"
    with captured_logs(test_settings, "text") as stream:
        try:
            raise ValueError(f"bad value\n{forged}\r{forged}\x1b[2J\u2028{forged}")
        except ValueError:
            logging.getLogger("webapp.some").exception("failed")

    first, *others = stream.getvalue().removesuffix("\n").split("\n")
    assert re.fullmatch(rf"{RFC3339} ERROR webapp\.some failed", first)
    assert len(others) > 3
    assert all(line.startswith("  ") for line in others)
    assert not set("\r\x1b\u2028") & set(stream.getvalue())
    assert f"  {forged}" in stream.getvalue()


def test_the_json_format_has_time_level_logger_message_and_context(test_settings: Settings) -> None:
    with (
        captured_logs(test_settings) as stream,
        logs.log_context(task="campaigns.pump"),
        logs.log_context(campaign_id=3),
    ):
        logging.getLogger("webapp.some").warning("said\n%s", "so")

    (line,) = parse_lines(stream)
    assert re.fullmatch(RFC3339, str(line.pop("time")))
    assert line == {
        "level": "WARNING",
        "logger": "webapp.some",
        "message": "said\nso",
        "task": "campaigns.pump",
        "campaign_id": 3,
    }


def test_control_characters_in_messages_are_escaped(test_settings: Settings) -> None:
    with captured_logs(test_settings, "text") as stream:
        text = "said\n2026-01-01T00:00:00.000Z ERROR webapp %s"
        logging.getLogger("webapp.some").warning(text, "\x1b[31m\x9b31m\x7f\u2028é")

    assert stream.getvalue().endswith(r" said\n2026-01-01T00:00:00.000Z ERROR webapp \x1b[31m\x9b31m\x7f\u2028é" + "\n")
    assert stream.getvalue().count("\n") == 1


def test_emails_in_extra_fields_are_redacted(test_settings: Settings) -> None:
    # A name that no hexadecimal id contains.
    extra = {"who": {"email": "zora@example.com"}, "all": ["zora@example.com", ("zora%40example.com", 3)]}
    with captured_logs(test_settings) as stream:
        logging.getLogger("webapp.some").warning("to %s", "o'zora@example.com", extra={"what": extra})

    (line,) = parse_lines(stream)
    assert line["what"] == {"who": {"email": "…"}, "all": ["…", ["…", 3]]}
    assert line["message"] == "to …"


def test_the_log_context_ends_with_its_block(test_settings: Settings) -> None:
    with captured_logs(test_settings) as stream:
        with logs.log_context(campaign_id=3):
            pass
        logging.getLogger("webapp.some").info("said")

    assert "campaign_id" not in parse_lines(stream)[0]


def test_lines_of_the_web_server_and_of_huey_have_one_format(
    test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, own = logging.getLogger("_granian"), io.StringIO()
    monkeypatch.setattr(server, "handlers", [logging.StreamHandler(own)])
    monkeypatch.setattr(server, "propagate", False)
    with captured_logs(test_settings) as stream:
        server.error("worker-1 got %s", "zora@example.com")
        logging.getLogger("huey.consumer").info("idle")
        logging.getLogger("huey.consumer").warning("slow")

    assert [line["message"] for line in parse_lines(stream)] == ["worker-1 got …", "slow"]
    assert own.getvalue() == ""


def test_the_log_level_is_a_setting(test_settings: Settings) -> None:
    with captured_logs(test_settings, level="ERROR") as stream:
        logging.getLogger("webapp.some").warning("not this")
        logging.getLogger("webapp.some").error("this")

    assert [line["message"] for line in parse_lines(stream)] == ["this"]


@pytest.mark.parametrize(("name", "value"), [("LOG_FORMAT", "xml"), ("LOG_LEVEL", "loud")])
def test_an_invalid_log_setting_is_rejected(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be .* or .*, not '{value}'$"):
        load_settings({"DATABASE_URL": "postgresql:///x", "SECRET_KEY": "x", name: value})


def test_a_failed_request_is_logged_with_its_request_id(failing: FlaskClient, test_settings: Settings) -> None:
    with captured_logs(test_settings) as stream:
        response = failing.get("/fails/bug/zora@example.com")

    error, line = parse_lines(stream)
    request_id = response.headers["X-Request-Id"]
    assert error["request_id"] == line["request_id"] == request_id
    assert error["message"] == "unhandled exception in GET /fails/<how>/<email>"
    assert "RuntimeError: no such thing as" in str(error["traceback"])
    assert (line["method"], line["route"], line["status"]) == ("GET", "/fails/<how>/<email>", 500)
    assert isinstance(line["ms"], int)
    assert request_id in response.text


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bug", "no such thing as"),
        ("twice", "duplicate key value violates unique constraint"),
        ("null", "violates not-null constraint"),
        ("unavailable", "/fails/<how>/<email>: 503"),
    ],
)
@pytest.mark.parametrize("email", ["zora@example.com", "ädä@bücher.example", "zora+x=y@example.com"])
def test_the_log_of_a_failure_has_no_personal_data(
    failing: FlaskClient, test_settings: Settings, how: str, message: str, email: str, form: str
) -> None:
    with captured_logs(test_settings, form) as stream:
        assert failing.get(f"/fails/{how}/{email}").status_code >= 500

    assert message in stream.getvalue()
    for word in (email, email.partition("@")[0], "@example", "@b", "(Grace", "Hopper, "):
        assert word not in stream.getvalue()


def test_file_content_in_database_errors_is_redacted(app: Flask, test_settings: Settings) -> None:
    with captured_logs(test_settings, "text") as stream:
        try:
            with (
                psycopg.connect(test_settings.libpq_url) as connection,
                connection.cursor().copy("copy customer (id, email) from stdin") as copy,
            ):
                copy.write("Grace Hopper\tsomebody\n")
        except psycopg.Error:
            logging.getLogger("webapp.some").exception("an import failed")

    assert "an import failed" in stream.getvalue()
    assert "CONTEXT: …" in stream.getvalue()
    assert "somebody" not in stream.getvalue()


def test_addresses_in_relay_replies_are_redacted(test_settings: Settings) -> None:
    with captured_logs(test_settings, "text") as stream:
        for quoted in (
            "<zora@example.com>",
            '"zora l"@example.com',
            "RCPT TO:<zora=x@example.com>:",
            "zora@[127.0.0.1]",
        ):
            logging.getLogger("webapp.some").warning("550 5.1.1 %s no such user", quoted)

    assert stream.getvalue().count("no such user") == 4
    assert "zora" not in stream.getvalue()


@pytest.mark.parametrize("given", ["Abc-123_x", "a" * 64])
def test_a_trusted_proxy_may_set_the_request_id(failing: FlaskClient, given: str) -> None:
    assert failing.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["short", "a" * 65, "with blank and", "zora@example.com", "…………………………", ""])
def test_an_invalid_request_id_is_replaced(failing: FlaskClient, given: str) -> None:
    response = failing.get("/healthz", headers={"X-Request-Id": given.encode().decode("latin-1")})

    assert re.fullmatch("[0-9a-f]{16}", response.headers["X-Request-Id"])


def test_an_untrusted_client_cannot_set_the_request_id(client: FlaskClient) -> None:
    response = client.get("/api/v1/offers", headers={"X-Request-Id": "chosen-by-a-stranger"})

    assert response.headers["X-Request-Id"] != "chosen-by-a-stranger"
    assert response.get_json()["request_id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(("seconds", "is_logged"), [(0.999, False), (1.0, True)])
def test_a_request_of_a_second_is_slow(
    app: Flask, test_settings: Settings, monkeypatch: pytest.MonkeyPatch, seconds: float, is_logged: bool
) -> None:
    monkeypatch.setattr("webapp.core.logs.time.perf_counter", lambda: 10 + seconds)
    with app.test_request_context("/healthz"), captured_logs(test_settings) as stream:
        logs.log_slow_or_failed_request(Response(), 10.0)
        logs.log_slow_or_failed_request(Response(), None)

    assert [line["ms"] for line in parse_lines(stream)] == ([1000] if is_logged else [])


@pytest.mark.slow
def test_the_plugins_of_alembic_are_not_logged(test_settings: Settings) -> None:
    import_alembic = "import logging; import webapp.core.logs as logs; from webapp.core.settings import load_settings; "
    import_alembic += "logs.configure_logging(load_settings()); import alembic.script"
    environment = live_server.environment(test_settings)
    result = subprocess.run(
        [sys.executable, "-c", import_alembic], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert result.stderr == ""


@pytest.mark.parametrize(("status", "kind"), [(200, "slow"), (499, "slow"), (500, "failed"), (503, "failed")])
def test_a_request_is_logged_as_failed_or_as_slow(
    app: Flask, test_settings: Settings, monkeypatch: pytest.MonkeyPatch, status: int, kind: str
) -> None:
    monkeypatch.setattr(logs, "SLOW_REQUEST_SECONDS", 0.0)
    monkeypatch.setattr("webapp.core.logs.time.perf_counter", lambda: 12.5)
    with app.test_request_context("/healthz"), captured_logs(test_settings) as stream:
        logs.log_slow_or_failed_request(Response(status=status), 10.0)

    (line,) = parse_lines(stream)
    assert line["message"] == f"{kind} request: GET /healthz: {status} after 2500 ms"


def test_only_slow_requests_that_succeed_are_logged(
    failing: FlaskClient, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with captured_logs(test_settings) as stream:
        failing.get("/healthz")
        assert stream.getvalue() == ""
        monkeypatch.setattr(logs, "SLOW_REQUEST_SECONDS", 0.0)
        failing.get("/u/zora@example.com?email=zora@example.com")

    (line,) = parse_lines(stream)
    assert line["route"] == "/u/<token>"
    assert "zora" not in stream.getvalue()


def test_a_failed_task_is_logged_once_with_its_context(test_settings: Settings, app: Flask) -> None:
    def _fail() -> None:
        with logs.log_context(campaign_id=5):
            raise RuntimeError("zora@example.com")

    task = huey.task()(task_queue._wrap_in_app_context("tests.fails", _fail, is_periodic=False))
    with captured_logs(test_settings) as stream:
        huey.execute(task.s())

    (line,) = parse_lines(stream)
    assert (line["message"], line["level"]) == ("task tests.fails failed", "ERROR")
    assert (line["task"], line["campaign_id"]) == ("tests.fails", 5)
    assert "zora" not in stream.getvalue()


def test_the_end_of_a_campaign_is_logged(app: Flask, make_offer: Callable[..., Offer], test_settings: Settings) -> None:
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="sending", total=0)
    db.session.add(campaign)
    db.session.flush()
    db.session.execute(text("update campaign set prepared_at = now()"))
    db.session.commit()

    with captured_logs(test_settings) as stream:
        completion.finish_campaigns()
        completion.finish_campaigns()

    (line,) = parse_lines(stream)
    assert (line["message"], line["campaign_id"]) == (f"campaign {campaign.id} finished", campaign.id)


def test_the_takeover_of_a_batch_is_logged(
    app: Flask, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer], test_settings: Settings
) -> None:
    campaign = Campaign(offer_id=make_offer().id, subject="s", text="t", status="sending", total=1)
    db.session.add(campaign)
    db.session.flush()
    ids = [make_customer().id]
    batch = Batch(campaign_id=campaign.id, seq=0, first_id=ids[0], last_id=ids[0], gaps=encode_gaps(ids))
    batch.window_end, batch.status, batch.epoch = 1, "sending", 1
    db.session.add(batch)
    db.session.flush()
    db.session.execute(text("update batch set lease_until = now() - interval '1 second'"))
    db.session.commit()

    with captured_logs(test_settings) as stream:
        assert batches.claim_batch("me") is not None

    (line,) = parse_lines(stream)
    assert (line["campaign_id"], line["batch_id"]) == (campaign.id, batch.id)
    assert "taking over" in str(line["message"])


def test_each_automatic_pause_is_logged_once(
    app: Flask, make_offer: Callable[..., Offer], test_settings: Settings
) -> None:
    campaigns = [
        Campaign(offer_id=make_offer(f"OFFER{n}").id, subject="s", text="t", status=status)
        for n, status in enumerate(("sending", "done", "sending"))
    ]
    db.session.add_all(campaigns)
    db.session.commit()

    with captured_logs(test_settings) as stream:
        auto_pause.pause_all_automatically("the relay refuses us: 535 no")
        auto_pause.pause_all_automatically("the relay refuses us: 535 no")

    assert {line["campaign_id"] for line in parse_lines(stream)} == {campaigns[0].id, campaigns[2].id}
    assert len(parse_lines(stream)) == 2


def handles_signal(pid: int, number: int) -> bool:
    mask = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return mask is not None and bool(int(mask[1], 16) >> number - 1 & 1)


@pytest.mark.slow
def test_a_worker_logs_its_start_and_stop(app: Flask, test_settings: Settings) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "webapp.worker"],
        cwd=ROOT,
        env=live_server.environment(test_settings, LOG_FORMAT="json"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    first = json.loads(worker.stderr.readline())
    # Wait until the signal handler is installed.
    while not handles_signal(worker.pid, signal.SIGTERM):
        time.sleep(0.05)
    worker.terminate()
    rest = [json.loads(line) for line in worker.communicate(timeout=60)[1].splitlines()]

    assert str(first["message"]).startswith("worker started: version ")
    assert rest[-1]["message"] == "worker stopped"
    assert {line["logger"] for line in [first, *rest]} == {"webapp.worker"}


@pytest.mark.slow
def test_a_web_process_logs_its_start_and_a_command_does_not(app: Flask, test_settings: Settings) -> None:
    def stderr_of(*command: str) -> str:
        # As in processes that `make setup` starts.
        env = live_server.environment(test_settings, FLASK_RUN_FROM_CLI="true")
        command = (sys.executable, *command)
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=60).stderr

    assert "web process started" in stderr_of("-c", "import wsgi")
    assert stderr_of("-m", "flask", "--app", "wsgi", "key", "list") == ""
    # The garbage collector pauses while modules are loaded, and runs afterwards.
    assert "True" in stderr_of("-c", "import gc, sys, wsgi; print(gc.isenabled(), file=sys.stderr)")


def test_an_error_around_a_task_is_logged(app: Flask, test_settings: Settings) -> None:
    other_app = create_app(test_settings)

    @other_app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise RuntimeError("around it")

    def succeed() -> None:
        pass

    try:
        with captured_logs(test_settings) as stream:
            huey.execute(huey.task()(task_queue._wrap_in_app_context("tests.works", succeed, is_periodic=False)).s())
    finally:
        task_queue.init_app(app)

    (line,) = parse_lines(stream)
    assert "around it" in str(line)
