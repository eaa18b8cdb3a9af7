"""The benchmark of mailing: the sink counts what came, loops leave nobody out, the page says what was measured."""

from __future__ import annotations

import email
import email.policy
import json
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
    EIGHT,
    LIMIT,
    LOOP,
    ONE,
    OURS,
    PLAIN,
    RAW,
    SLOW,
    SLOW_EIGHT,
    SLOW_ONE,
    Case,
    Results,
    Sample,
)
from benchmarks.mail_sink import Manner, Seen, Sink
from benchmarks.mail_worker import Mailed
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
    with mail_sink.running(Manner()) as sink:
        yield sink


class Client:
    """Says what it is told to, byte by byte if need be."""

    def __init__(self, sink: Sink) -> None:
        self.socket = socket.create_connection(("127.0.0.1", sink.port), timeout=20)
        self.answers = self.socket.makefile("rb")
        self.hear(1)

    def say(self, words: bytes, at_once: int = 100_000) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(words), at_once):
            self.socket.sendall(words[at : at + at_once])

    def hear(self, n: int) -> list[bytes]:
        return [self.answers.readline()[:3] for _ in range(n)]


def envelope(to: str) -> bytes:
    return f"MAIL FROM:<a@example.com>\r\nRCPT TO:<{to}>\r\nDATA\r\n".encode()


def test_the_sink_counts_every_mail_and_every_recipient_once(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port) as one, smtplib.SMTP("127.0.0.1", sink.port) as other:
        for k in range(N):
            (one if k % 2 else other).sendmail("a@example.com", [f"{k}@example.com"], MAIL)
        one.sendmail("a@example.com", ["0@example.com"], MAIL)
    seen = sink.seen()
    assert (seen.mails, seen.recipients, seen.size) == (N + 1, N, (N + 1) * len(ON_THE_WIRE))
    assert seen.last > seen.first


def test_the_sink_begins_anew_when_asked_to(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port) as relay:
        relay.sendmail("a@example.com", ["1@example.com"], MAIL)
        sink.forget()
        assert sink.seen().mails == 0
        relay.sendmail("a@example.com", ["2@example.com"], MAIL)
    assert (sink.seen().mails, sink.seen().recipients, sink.seen().first > 0) == (1, 1, True)
    assert sink.last() == ON_THE_WIRE


@pytest.mark.parametrize("at_once", [1, 7, 100_000])
def test_commands_that_come_together_or_in_pieces_get_an_answer_each(sink: Sink, at_once: int) -> None:
    client = Client(sink)
    client.say(envelope("1@example.com") + b"one\r\n..\r\n.\r\n" + envelope("2@example.com") + b".\r\n", at_once)
    assert client.hear(8) == [b"250", b"250", b"354", b"250", b"250", b"250", b"354", b"250"]
    assert sink.seen().recipients == 2


@pytest.mark.parametrize("manner", [Manner(after=0.3), Manner(round_trip=0.05)])
def test_a_slow_sink_answers_in_the_order_of_the_commands(manner: Manner) -> None:
    with mail_sink.running(manner) as sink:
        client = Client(sink)
        client.say(envelope("1@example.com"))
        assert client.hear(3) == [b"250", b"250", b"354"]
        client.say(b"one\r\n.\r\n")
        while not sink.seen().mails:
            pass
        client.say(b"DATA\r\ntwo\r\n.\r\nQUIT\r\n")
        assert client.hear(5) == [b"250", b"354", b"250", b"221", b""]
        assert sink.seen().mails == 2


@pytest.mark.parametrize("offered", [True, False])
def test_pipelining_is_offered_unless_it_is_not_to_be(offered: bool) -> None:
    with mail_sink.running(Manner(pipelining=offered)) as sink, smtplib.SMTP("127.0.0.1", sink.port) as relay:
        relay.ehlo()
        assert relay.has_extn("pipelining") == offered


@pytest.mark.parametrize("way", mail_loops.WAYS)
def test_every_loop_delivers_to_everybody(
    way: str, sink: Sink, connection: psycopg.Connection, test_settings: Settings, tmp_path: Path
) -> None:
    customers.fill(connection, N)
    mail_loops.put_into(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(way, sink.port, N, tmp_path, test_settings.libpq_url)
    seen = sink.seen()
    assert (seen.mails, seen.recipients) == (N, N)


def test_what_the_raw_loop_sends_is_our_mail(sink: Sink, tmp_path: Path) -> None:
    mail_loops.put_into(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(mail_loops.RAW, sink.port, 2, tmp_path, "")
    assert sink.last() == ON_THE_WIRE


def test_what_the_flask_mail_loop_sends_is_written_for_each(
    sink: Sink, connection: psycopg.Connection, test_settings: Settings, tmp_path: Path
) -> None:
    customers.fill(connection, N)
    mail_loops.put_into(tmp_path, ON_THE_WIRE, SITE)
    mail_loops.run(mail_loops.FLASK_MAIL, sink.port, N, tmp_path, test_settings.libpq_url)
    message = email.message_from_bytes(sink.last(), policy=email.policy.default)
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        assert part is not None
        assert f"Hello Customer {N}" in part.get_content()
        assert f"{N:08}" in part.get_content()


def test_a_mail_becomes_a_template_that_says_the_same_to_its_recipient(app: Flask) -> None:
    words = (
        f'Hello Ann, {{{{ see }}}} {{# this #}}: {SITE}/r/abc.defghijkl-mnop <a href="{SITE}">us</a> ann@example.com'
    )
    template = mail_loops.template(words, "Ann", "ann@example.com", SITE)
    again = render_template_string(template, customer=Customer(7, "ann@example.com", "Ann"))
    assert again == words.replace("jkl-mnop", "00000007")
    assert "Bob" in render_template_string(template, customer=Customer(8, "bob@example.com", "Bob"))


def mailed(mails: int, recipients: int, **rows: int) -> Mailed:
    return Mailed(Seen(mails, recipients, 0, 1, 2, 0), 1, 1, 1, Cost(), rows, 0)


def test_a_run_of_ours_counts_only_if_everybody_got_one_mail_and_rows_are_batches() -> None:
    mail_worker._expect(mailed(501, 501, batch=2, audit_entry=1), 501)
    for wrong in (
        mailed(500, 500, batch=2),
        mailed(502, 501, batch=2),
        mailed(501, 500, batch=2),
        mailed(501, 501, batch=1),
        mailed(501, 501, batch=2, mail_issue=1),
        mailed(501, 501, batch=2, batch_cursor=1),
    ):
        with pytest.raises(RuntimeError):
            mail_worker._expect(wrong, 501)


@pytest.fixture
def results() -> Results:
    """Three rounds, of which the second was on a machine twice as slow."""
    found = Results(rows={"audit_entry": 1, "batch": 2}, mails=1000)
    rates = {ONE: 900, LIMIT: 2000, LOOP: 300, EIGHT: 1500, Case(PLAIN, OURS): 700, SLOW_ONE: 80, SLOW_EIGHT: 600}
    for case, rate in rates.items():
        one = Sample(1000, rate, 1e-3, 1e-4, 1e-4, 9000, whole=rate / 2, wal=50, peak=100_000_000)
        found.samples[case] = [one, replace(one, rate=rate / 2), replace(one, wal=70)]
    found.samples[Case(SLOW, RAW)] = [Sample(500, 100, 1e-3, 0, 1e-4, 9000)]
    found.few = [replace(one, peak=80_000_000) for one in found.samples[ONE]]
    return found


def test_ratios_are_within_a_round_so_that_a_slow_one_changes_nothing(results: Results) -> None:
    figures = mail_report.figures(results)
    assert (figures["raw_ratio"], figures["flask_mail_ratio"], figures["connections_ratio"]) == (0.45, 3.0, 7.5)
    assert (figures["wal_per_mail"], figures["memory_ratio"], figures["rows"]) == (50, 1.25, 3)


def test_the_page_says_what_was_missed(results: Results) -> None:
    page = mail_report.page(results)
    assert "| mails/s to a raw smtplib loop, one connection | ≥ 0.40 | 0.45 (0.45–0.45) | met |" in page
    assert "| ≤ 1.1 | 1.25 (1.25–1.25) | **missed** |" in page
    assert "| rows that 1,000 mails leave | 2 batch and the campaign's own | 1 audit_entry, 2 batch | met |" in page
    results.rows["mail_issue"] = 1
    assert "1 mail_issue | **missed** |" in mail_report.page(results)


def test_what_was_not_offered_pipelining_is_compared_with_the_same_loop(results: Results) -> None:
    assert "| fast, without PIPELINING | Onecode | 1 | 1,000 | 700 (350–700) | 350 | 0.35 |" in mail_report.page(
        results
    )


def test_what_was_run_once_is_compared_with_the_median_of_the_rounds(results: Results) -> None:
    page = mail_report.page(results)
    assert "| answers after 10 ms | Onecode | 8 | 1,000 | 600 (300–600) | 300 | 6.00 |" in page
    assert "| answers after 10 ms | raw smtplib | 1 | 500 | 100 | – | 1.00 |" in page


def test_the_last_line_is_the_figures(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(mail.PLANS, lambda _: results, mail_report, ["--quick"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"raw_ratio", "flask_mail_ratio", "connections_ratio", "wal_per_mail", "memory_ratio", "rows"} <= {*figures}


def test_how_much_is_measured_comes_from_the_environment() -> None:
    assert mail.PLANS.asked_for([], {}).ours == 20_000
    assert mail.PLANS.asked_for([], {"SIZE": "full"}).ours > 20_000
    assert mail.PLANS.asked_for(["--quick"], {}).rounds == 1


@pytest.mark.parametrize("number", range(3))
def test_every_round_has_all_cases(number: int) -> None:
    cases = mail.cases(mail.QUICK, number)
    assert sorted(map(str, cases)) == sorted(map(str, mail.cases(mail.QUICK, 0)))
    assert {ONE, LIMIT, LOOP, EIGHT, SLOW_ONE, SLOW_EIGHT} <= {case for case, _ in cases}


def test_a_small_run_takes_a_launched_campaign_all_the_way() -> None:
    # In a process of its own: it brings a server and a second app, and tasks know only one.
    done = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["batches"] == 2
    assert found["whole"] < found["rate"]
    assert min(found.values()) > 0


SMALL = f"""
import json, logging
from benchmarks import mail
logging.disable(logging.WARNING)
with mail.prepared(mail.Plan(ours=600)) as bench:
    ours = bench.sample(mail.mail_report.ONE, 600)
    loop = bench.sample(mail.mail_report.LOOP, {N})
print(json.dumps(dict(batches=bench.rows["batch"], rate=ours.rate, whole=ours.whole, wal=ours.wal, peak=ours.peak,
    size=ours.size, cpu=ours.cpu, loop=loop.rate)))
"""
