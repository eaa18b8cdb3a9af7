"""What the program says about itself can be read by people and programs, followed by number, and names no customer."""

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
from flask import Flask, abort
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.logs import captured_logs
from webapp import create_app
from webapp.campaigns.models import Batch, Campaign, encode_gaps
from webapp.campaigns.sending import auto_pause, batches, completion
from webapp.core import logs, task_queue
from webapp.core.extensions import db, huey
from webapp.core.settings import ROOT, Settings, SettingsError, load_settings
from webapp.customers.models import Customer
from webapp.offers.models import Offer

RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def failing(app: Flask, test_settings: Settings) -> FlaskClient:
    """The program with views that fail in the usual ways, behind one proxy of ours."""
    mine = create_app(replace(test_settings, trusted_proxies=1))
    task_queue.init_app(app)

    insert = "insert into customer (email, email_as_given, name) values (:email, :shown, 'Grace Hopper')"

    def fails(how: str, email: str) -> str:
        if how == "bug":
            raise RuntimeError(f"no such thing as {email}")
        if how == "away":
            abort(503, email)
        for _ in range(2):
            db.session.execute(text(insert), {"email": email, "shown": None if how == "null" else email})
        return ""

    mine.add_url_rule("/fails/<how>/<email>", view_func=fails)
    return mine.test_client()


def test_a_line_is_read_by_people(test_settings: Settings) -> None:
    with (
        captured_logs(test_settings, "text") as stream,
        logs.log_context(task="campaigns.pump", campaign_id=3, batch_id=7),
    ):
        logging.getLogger("webapp.some").info("said %s", "so")

    assert re.fullmatch(
        rf"{RFC3339} INFO webapp\.some said so \[campaign_id=3 batch_id=7 task=campaigns\.pump\]\n", stream.getvalue()
    )


def test_a_line_is_read_by_programs(test_settings: Settings) -> None:
    with (
        captured_logs(test_settings) as stream,
        logs.log_context(task="campaigns.pump"),
        logs.log_context(campaign_id=3),
    ):
        logging.getLogger("webapp.some").warning("said\n%s", "so")

    (line,) = lines(stream)
    assert re.fullmatch(RFC3339, str(line.pop("time")))
    assert line == {
        "level": "WARNING",
        "logger": "webapp.some",
        "message": "said\nso",
        "task": "campaigns.pump",
        "campaign_id": 3,
    }


def test_nobodys_words_make_a_line_that_looks_like_ours(test_settings: Settings) -> None:
    with captured_logs(test_settings, "text") as stream:
        logging.getLogger("webapp.some").warning("said\n2026-01-01T00:00:00.000Z ERROR webapp %s", "\x1b[31m\u2028é")

    assert stream.getvalue().endswith(r" said\n2026-01-01T00:00:00.000Z ERROR webapp \x1b[31m\u2028é" + "\n")
    assert stream.getvalue().count("\n") == 1


def test_no_customer_stands_in_what_is_handed_over_for_programs(test_settings: Settings) -> None:
    what = {"who": {"email": "ada@example.com"}, "all": ["ada@example.com", ("ada%40example.com", 3)]}
    with captured_logs(test_settings) as stream:
        logging.getLogger("webapp.some").warning("to %s", "o'ada@example.com", extra={"what": what})

    (line,) = lines(stream)
    assert line["what"] == {"who": {"email": "…"}, "all": ["…", ["…", 3]]}
    assert line["message"] == "to …"


def test_what_it_is_about_ends_with_it(test_settings: Settings) -> None:
    with captured_logs(test_settings) as stream:
        with logs.log_context(campaign_id=3):
            pass
        logging.getLogger("webapp.some").info("said")

    assert "campaign_id" not in lines(stream)[0]


def test_the_level_is_chosen(test_settings: Settings) -> None:
    with captured_logs(test_settings, level="ERROR") as stream:
        logging.getLogger("webapp.some").warning("not this")
        logging.getLogger("webapp.some").error("this")

    assert [line["message"] for line in lines(stream)] == ["this"]


@pytest.mark.parametrize(("name", "value"), [("LOG_FORMAT", "xml"), ("LOG_LEVEL", "loud")])
def test_a_wrong_setting_is_one_sentence(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be .* or .*, not '{value}'$"):
        load_settings({"DATABASE_URL": "postgresql:///x", "SECRET_KEY": "x", name: value})


def test_a_failed_request_is_followed_by_its_number(failing: FlaskClient, test_settings: Settings) -> None:
    with captured_logs(test_settings) as stream:
        answer = failing.get("/fails/bug/ada@example.com")

    error, line = lines(stream)
    number = answer.headers["X-Request-Id"]
    assert error["request_id"] == line["request_id"] == number
    assert error["message"] == "unexpected error"
    assert "RuntimeError: no such thing as" in str(error["traceback"])
    assert (line["method"], line["route"], line["status"]) == ("GET", "/fails/<how>/<email>", 500)
    assert isinstance(line["ms"], int)
    assert number in answer.text


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("bug", "no such thing as"),
        ("twice", "duplicate key value violates unique constraint"),
        ("null", "violates not-null constraint"),
        ("away", "/fails/<how>/<email>: 503"),
    ],
)
@pytest.mark.parametrize("email", ["ada@example.com", "ädä@bücher.example", "ada+x=y@example.com"])
def test_no_customer_stands_in_the_log_of_a_failure(
    failing: FlaskClient, test_settings: Settings, how: str, said: str, email: str, form: str
) -> None:
    with captured_logs(test_settings, form) as stream:
        assert failing.get(f"/fails/{how}/{email}").status_code >= 500

    assert said in stream.getvalue()
    for word in (email, email.partition("@")[0], "@example", "@b", "(Grace", "Hopper, "):
        assert word not in stream.getvalue().replace("'Grace Hopper')", "")


def test_what_postgresql_quotes_of_a_file_is_left_out(app: Flask, test_settings: Settings) -> None:
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


def test_what_a_relay_quotes_is_left_out(test_settings: Settings) -> None:
    with captured_logs(test_settings, "text") as stream:
        for quoted in ("<ada@example.com>", '"ada l"@example.com', "RCPT TO:<ada=x@example.com>:", "ada@[127.0.0.1]"):
            logging.getLogger("webapp.some").warning("550 5.1.1 %s no such user", quoted)

    assert stream.getvalue().count("no such user") == 4
    assert "ada" not in stream.getvalue()


@pytest.mark.parametrize("given", ["Abc-123_x", "a" * 64])
def test_a_proxy_of_ours_names_the_request(failing: FlaskClient, given: str) -> None:
    assert failing.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["short", "a" * 65, "with blank and", "ada@example.com", "…………………………", ""])
def test_a_name_that_is_no_plain_word_is_not_taken(failing: FlaskClient, given: str) -> None:
    answer = failing.get("/healthz", headers={"X-Request-Id": given.encode().decode("latin-1")})

    assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])


def test_nobody_else_names_a_request(client: FlaskClient) -> None:
    answer = client.get("/api/v1/offers", headers={"X-Request-Id": "chosen-by-a-stranger"})

    assert answer.headers["X-Request-Id"] != "chosen-by-a-stranger"
    assert answer.get_json()["request_id"] == answer.headers["X-Request-Id"]


def test_a_quick_request_that_worked_is_no_news_and_a_slow_one_is(
    failing: FlaskClient, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with captured_logs(test_settings) as stream:
        failing.get("/healthz")
        assert stream.getvalue() == ""
        monkeypatch.setattr(logs, "SLOW_REQUEST_SECONDS", 0.0)
        failing.get("/u/ada@example.com?email=ada@example.com")

    (line,) = lines(stream)
    assert line["route"] == "/u/<token>"
    assert "ada" not in stream.getvalue()


def test_a_task_that_fails_says_so_once_and_which_it_was(test_settings: Settings, app: Flask) -> None:
    def _fails() -> None:
        with logs.log_context(campaign_id=5):
            raise RuntimeError("ada@example.com")

    task = huey.task()(task_queue._wrap_in_app_context("tests.fails", _fails, is_periodic=False))
    with captured_logs(test_settings) as stream:
        huey.execute(task.s())

    (line,) = lines(stream)
    assert (line["message"], line["level"]) == ("task tests.fails failed", "ERROR")
    assert (line["task"], line["campaign_id"]) == ("tests.fails", 5)
    assert "ada" not in stream.getvalue()


def test_a_campaign_that_is_through_says_so(app: Flask, offer: Callable[..., Offer], test_settings: Settings) -> None:
    campaign = Campaign(offer_id=offer().id, subject="s", text="t", status="sending", total=0)
    db.session.add(campaign)
    db.session.flush()
    db.session.execute(text("update campaign set prepared_at = now()"))
    db.session.commit()

    with captured_logs(test_settings) as stream:
        completion.finish_campaigns()
        completion.finish_campaigns()

    (line,) = lines(stream)
    assert (line["message"], line["campaign_id"]) == (f"campaign {campaign.id} done", campaign.id)


def test_whoever_takes_over_a_batch_says_so(
    app: Flask, offer: Callable[..., Offer], customer: Callable[..., Customer], test_settings: Settings
) -> None:
    campaign = Campaign(offer_id=offer().id, subject="s", text="t", status="sending", total=1)
    db.session.add(campaign)
    db.session.flush()
    ids = [customer().id]
    batch = Batch(campaign_id=campaign.id, seq=0, first_id=ids[0], last_id=ids[0], gaps=encode_gaps(ids))
    batch.window_end, batch.status, batch.epoch = 1, "sending", 1
    db.session.add(batch)
    db.session.flush()
    db.session.execute(text("update batch set lease_until = now() - interval '1 second'"))
    db.session.commit()

    with captured_logs(test_settings) as stream:
        assert batches.claim_batch("me") is not None

    (line,) = lines(stream)
    assert (line["campaign_id"], line["batch_id"]) == (campaign.id, batch.id)
    assert "taking over" in str(line["message"])


def test_each_campaign_that_the_relay_s_refusal_pauses_has_its_line_once(
    app: Flask, offer: Callable[..., Offer], test_settings: Settings
) -> None:
    rows = [
        Campaign(offer_id=offer(f"OFFER{n}").id, subject="s", text="t", status=status)
        for n, status in enumerate(("sending", "done", "sending"))
    ]
    db.session.add_all(rows)
    db.session.commit()

    with captured_logs(test_settings) as stream:
        auto_pause.pause_all_automatically("the relay refuses us: 535 no")
        auto_pause.pause_all_automatically("the relay refuses us: 535 no")

    assert {line["campaign_id"] for line in lines(stream)} == {rows[0].id, rows[2].id}
    assert len(lines(stream)) == 2


def heeds(pid: int, number: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return caught is not None and bool(int(caught[1], 16) >> number - 1 & 1)


def test_a_worker_says_when_it_starts_and_when_it_has_ended(app: Flask, test_settings: Settings) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "webapp.worker"],
        cwd=ROOT,
        env=live_server.environment(test_settings, LOG_FORMAT="json"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    first = json.loads(worker.stderr.readline())
    # Only then does it heed the signal.
    while not heeds(worker.pid, signal.SIGTERM):
        time.sleep(0.05)
    worker.terminate()
    rest = [json.loads(line) for line in worker.communicate(timeout=60)[1].splitlines()]

    assert str(first["message"]).startswith("worker started: version ")
    assert rest[-1]["message"] == "worker stopped"
    assert {line["logger"] for line in [first, *rest]} == {"webapp.worker"}


def test_a_web_process_says_that_it_starts_and_a_command_does_not(app: Flask, test_settings: Settings) -> None:
    def said(*command: str) -> str:
        # As it is for what `make setup` has started.
        env = live_server.environment(test_settings, FLASK_RUN_FROM_CLI="true")
        command = (sys.executable, *command)
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=60).stderr

    assert "web process started" in said("-c", "import wsgi")
    assert said("-m", "flask", "--app", "wsgi", "key", "list") == ""


def test_what_breaks_around_a_task_is_told_too(app: Flask, test_settings: Settings) -> None:
    other = create_app(test_settings)

    @other.teardown_appcontext
    def breaks(error: BaseException | None) -> None:
        raise RuntimeError("around it")

    def works() -> None:
        pass

    try:
        with captured_logs(test_settings) as stream:
            huey.execute(huey.task()(task_queue._wrap_in_app_context("tests.works", works, is_periodic=False)).s())
    finally:
        task_queue.init_app(app)

    (line,) = lines(stream)
    assert "around it" in str(line)
