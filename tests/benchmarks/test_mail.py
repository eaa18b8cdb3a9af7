"""The mail benchmark: sink, loops, validation of runs, and the page."""

from __future__ import annotations

import email
import email.policy
import json
import re
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from flask import Flask, render_template_string

from benchmarks import command, customers, mail, mail_loops, mail_report, mail_sink, mail_worker
from benchmarks.mail_loops import Customer
from benchmarks.mail_report import (
    EIGHT_CONNECTIONS,
    FLASK_MAIL_LOOP,
    ONE_CONNECTION,
    OURS,
    PLAIN,
    RAW,
    RAW_LOOP,
    SLOW,
    SLOW_EIGHT,
    SLOW_ONE,
    Case,
    MailResults,
    MailSample,
)
from benchmarks.mail_sink import Sink, SinkOptions, SinkTotals
from benchmarks.mail_worker import CampaignMeasurement
from benchmarks.meter import Cost
from webapp.core.settings import ROOT, Settings

N = 30
SITE = "https://offers.example.com"
MAIL = f"""\
From: Shop <offers@example.com>
To: Ann O'Hara <Ann@example.com>
Subject: 25% off
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="b"

--b
Content-Type: text/plain; charset=utf-8

Hello Ann O'Hara, {{not a template}}: {SITE}/r/WzEsNTBd.riwS4lDKEvOUyWTimHo
.a line that begins with a dot
--b
Content-Type: text/html; charset=utf-8

<style>.code {{color: red}}</style><p>Hello Ann O'Hara <a href="{SITE}/u/WzEsNTBd.riwS4lDKEvOUyWTimHo">no more</a>
--b--
""".replace("\n", "\r\n").encode()
ON_THE_WIRE = MAIL.replace(b"\r\n.", b"\r\n..")


@pytest.fixture
def sink() -> Iterator[Sink]:
    with mail_sink.running(SinkOptions()) as sink:
        yield sink


class Client:
    """An SMTP client that sends given bytes, in pieces if requested."""

    def __init__(self, sink: Sink) -> None:
        self.socket = socket.create_connection(("127.0.0.1", sink.port), timeout=20)
        self.replies = self.socket.makefile("rb")
        self.read_codes(1)

    def send(self, data: bytes, piece_size: int = 100_000) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), piece_size):
            self.socket.sendall(data[at : at + piece_size])

    def read_codes(self, n: int) -> list[bytes]:
        return [self.replies.readline()[:3] for _ in range(n)]


def envelope(to: str) -> bytes:
    return f"MAIL FROM:<a@example.com>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode()


def test_the_sink_counts_emails_and_distinct_recipients(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port) as first, smtplib.SMTP("127.0.0.1", sink.port) as other:
        for k in range(N):
            (first if k % 2 else other).sendmail("a@example.com", [f"{k}@example.com"], MAIL)
        first.sendmail("a@example.com", ["0@example.com"], MAIL)
    totals = sink.totals()
    assert (totals.mails, totals.recipients, totals.size) == (N + 1, N, (N + 1) * len(ON_THE_WIRE))
    assert totals.last > totals.first


def test_the_sink_resets_its_counts(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port) as relay:
        relay.sendmail("a@example.com", ["1@example.com"], MAIL)
        sink.reset()
        assert sink.totals().mails == 0
        relay.sendmail("a@example.com", ["2@example.com"], MAIL)
    assert (sink.totals().mails, sink.totals().recipients, sink.totals().first > 0) == (1, 1, True)
    assert sink.last_email() == ON_THE_WIRE


@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
def test_commands_sent_together_or_in_pieces_get_one_reply_each(sink: Sink, piece_size: int) -> None:
    client = Client(sink)
    client.send(envelope("1@example.com") + b"one\r\n..\r\n.\r\n" + envelope("2@example.com") + b".\r\n", piece_size)
    assert client.read_codes(8) == [b"250", b"250", b"354", b"250", b"250", b"250", b"354", b"250"]
    assert sink.totals().recipients == 2


@pytest.mark.parametrize("options", [SinkOptions(acceptance_delay=0.3), SinkOptions(round_trip=0.05)])
def test_a_slow_sink_replies_in_the_order_of_the_commands(options: SinkOptions) -> None:
    with mail_sink.running(options) as sink:
        client = Client(sink)
        client.send(envelope("1@example.com"))
        assert client.read_codes(3) == [b"250", b"250", b"354"]
        client.send(b"one\r\n.\r\n")
        while not sink.totals().mails:
            pass
        client.send(b"DATA\r\ntwo\r\n.\r\nQUIT\r\n")
        assert client.read_codes(5) == [b"250", b"354", b"250", b"221", b""]
        assert sink.totals().mails == 2


@pytest.mark.parametrize("offered", [True, False])
def test_pipelining_is_offered_unless_disabled(offered: bool) -> None:
    with mail_sink.running(SinkOptions(pipelining=offered)) as sink, smtplib.SMTP("127.0.0.1", sink.port) as relay:
        relay.ehlo()
        assert relay.has_extn("pipelining") == offered


@pytest.mark.parametrize("implementation", mail_loops.IMPLEMENTATIONS)
def test_every_loop_delivers_to_every_customer(
    implementation: str, sink: Sink, connection: psycopg.Connection, test_settings: Settings, tmp_path: Path
) -> None:
    customers.fill(connection, N)
    mail_loops.save_email(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(implementation, sink.port, N, tmp_path, test_settings.libpq_url)
    totals = sink.totals()
    assert (totals.mails, totals.recipients) == (N, N)


def test_the_raw_loop_sends_the_saved_email(sink: Sink, tmp_path: Path) -> None:
    mail_loops.save_email(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(mail_loops.RAW, sink.port, 2, tmp_path, "")
    assert sink.last_email() == ON_THE_WIRE


def test_the_flask_mail_loop_renders_each_email(
    sink: Sink, connection: psycopg.Connection, test_settings: Settings, tmp_path: Path
) -> None:
    customers.fill(connection, N)
    mail_loops.save_email(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(mail_loops.FLASK_MAIL, sink.port, N, tmp_path, test_settings.libpq_url)
    message = email.message_from_bytes(sink.last_email(), policy=email.policy.default)
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        assert part is not None
        assert f"Hello Customer {N}" in part.get_content()
        assert f"{N:08}" in part.get_content()


def test_the_template_renders_the_original_email(app: Flask) -> None:
    content = (
        f'Hello Ann, {{{{ see }}}} {{# this #}}: {SITE}/r/abc.defghijkl-mnop <a href="{SITE}">us</a> ann@example.com'
    )
    template = mail_loops.template(content, "Ann", "ann@example.com", SITE)
    rendered = render_template_string(template, customer=Customer(7, "ann@example.com", "Ann"))
    assert rendered == content.replace("jkl-mnop", "00000007")
    assert "Bob" in render_template_string(template, customer=Customer(8, "bob@example.com", "Bob"))


def make_measurement(mails: int, recipients: int, **rows: int) -> CampaignMeasurement:
    return CampaignMeasurement(SinkTotals(mails, recipients, 0, 1, 2, 0), 1, 1, 1, Cost(), rows, 0)


def test_a_run_is_valid_only_with_one_email_each_and_batch_rows() -> None:
    mail_worker._check_measurement(make_measurement(501, 501, batch=2, audit_entry=1), 501)
    for invalid in (
        make_measurement(500, 500, batch=2),
        make_measurement(502, 501, batch=2),
        make_measurement(501, 500, batch=2),
        make_measurement(501, 501, batch=1),
        make_measurement(501, 501, batch=2, mail_issue=1),
        make_measurement(501, 501, batch=2, batch_cursor=1),
    ):
        with pytest.raises(RuntimeError):
            mail_worker._check_measurement(invalid, 501)


@pytest.fixture
def results() -> MailResults:
    """Three rounds, the second on a machine that was half as fast."""
    results = MailResults(rows={"audit_entry": 1, "batch": 2}, mails=1000)
    rates = {
        ONE_CONNECTION: 900,
        RAW_LOOP: 2000,
        FLASK_MAIL_LOOP: 300,
        EIGHT_CONNECTIONS: 1500,
        Case(PLAIN, OURS): 700,
        SLOW_ONE: 80,
        SLOW_EIGHT: 600,
    }
    for case, rate in rates.items():
        sample = MailSample(1000, rate, 1e-3, 1e-4, 1e-4, 9000, rate_from_launch=rate / 2, wal=50, peak=100_000_000)
        results.samples[case] = [sample, replace(sample, rate=rate / 2), replace(sample, wal=70)]
    results.samples[Case(SLOW, RAW)] = [MailSample(500, 100, 1e-3, 0, 1e-4, 9000)]
    results.quarter_runs = [replace(sample, peak=80_000_000) for sample in results.samples[ONE_CONNECTION]]
    return results


def test_ratios_are_computed_within_a_round(results: MailResults) -> None:
    figures = mail_report.figures(results)
    assert (figures["raw_ratio"], figures["flask_mail_ratio"], figures["connections_ratio"]) == (0.45, 3.0, 7.5)
    assert (figures["wal_per_mail"], figures["memory_ratio"], figures["rows"]) == (50, 1.25, 3)


def test_the_page_marks_missed_targets(results: MailResults) -> None:
    page = mail_report.page(results)
    assert "| emails/s relative to a raw smtplib loop, one connection | ≥ 0.40 | 0.45 (0.45–0.45) | met |" in page
    assert "| ≤ 1.1 | 1.25 (1.25–1.25) | **missed** |" in page
    assert "| rows that 1,000 emails leave | 2 batch and the campaign's own | 1 audit_entry, 2 batch | met |" in page
    results.rows["mail_issue"] = 1
    assert "1 mail_issue | **missed** |" in mail_report.page(results)


def test_runs_without_pipelining_are_compared_with_the_raw_loop(results: MailResults) -> None:
    assert "| fast, without PIPELINING | Onecode | 1 | 1,000 | 700 (350–700) | 350 | 0.35 |" in mail_report.page(
        results
    )


def test_single_runs_are_compared_with_the_median_of_the_rounds(results: MailResults) -> None:
    page = mail_report.page(results)
    assert "| replies after 10 ms | Onecode | 8 | 1,000 | 600 (300–600) | 300 | 6.00 |" in page
    assert "| replies after 10 ms | raw smtplib | 1 | 500 | 100 | – | 1.00 |" in page


def test_the_last_line_contains_the_figures(results: MailResults, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(mail.PLANS, lambda _: results, mail_report, ["--quick"])
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert {"raw_ratio", "flask_mail_ratio", "connections_ratio", "wal_per_mail", "memory_ratio", "rows"} <= {*figures}
    assert re.search(r"^Run on .+ on \d+ processors\. Load average: \d+\.\d in the minute before the run, ", lines[-3])


def test_the_plan_is_chosen_by_the_environment() -> None:
    assert mail.PLANS.parse_plan([], {}).ours == 20_000
    assert mail.PLANS.parse_plan([], {"SIZE": "full"}).ours > 20_000
    assert mail.PLANS.parse_plan(["--quick"], {}).rounds == 1


@pytest.mark.parametrize("number", range(3))
def test_every_round_has_all_cases(number: int) -> None:
    cases = mail.cases(mail.QUICK, number)
    assert sorted(map(str, cases)) == sorted(map(str, mail.cases(mail.QUICK, 0)))
    assert {ONE_CONNECTION, RAW_LOOP, FLASK_MAIL_LOOP, EIGHT_CONNECTIONS, SLOW_ONE, SLOW_EIGHT} <= {
        case for case, _ in cases
    }


def test_a_small_run_sends_a_launched_campaign() -> None:
    # In a separate process: it starts a server and a second app, and a process has one task queue.
    process = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout.splitlines()[-1])
    assert figures["batches"] == 2
    assert figures["rate_from_launch"] < figures["rate"]
    assert min(figures.values()) > 0


SMALL = f"""
import json, logging
from benchmarks import mail
logging.disable(logging.WARNING)
with mail.prepared(mail.MailPlan(ours=600)) as bench:
    ours = bench.sample(mail.mail_report.ONE_CONNECTION, 600)
    loop = bench.sample(mail.mail_report.FLASK_MAIL_LOOP, {N})
print(json.dumps(dict(batches=bench.rows["batch"], rate=ours.rate, rate_from_launch=ours.rate_from_launch,
    wal=ours.wal, peak=ours.peak, size=ours.size, cpu=ours.cpu, loop=loop.rate)))
"""
