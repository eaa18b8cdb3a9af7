"""docs/operations.md, followed: Debian's PostgreSQL over TCP, two web processes, two workers, a relay, nginx with TLS.

Blocks of code are taken from the pages; only names of hosts, ports and folders are changed.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import deployment, smtp_relay
from tests.support.bounce_messages import POSTFIX
from tests.support.deployment import Site
from tests.support.http_browser import HttpBrowser
from tests.support.operations_docs import block
from tests.support.smtp_relay import Relay

# One site for all tests here: they run in one process, one after the other.
pytestmark = [pytest.mark.lifecycle, pytest.mark.xdist_group("operations")]


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with smtp_relay.running() as found:
        yield found


@pytest.fixture(scope="module")
def site(relay: Relay) -> Iterator[Site]:
    lacking = deployment.missing_programs()
    if lacking and os.environ.get("REQUIRE_SERVERS"):
        pytest.fail(f"{lacking} must be installed here")
    if lacking:
        pytest.skip(f"{lacking} is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="onecode-operations-") as folder,
        deployment.running_site(Path(folder), relay.port) as found,
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(found.certificate, found.folder / "server.key")
        relay.behaviour.starttls, relay.behaviour.auth = context, "235 come in"
        link = found.run("once, on one machine").strip().splitlines()[-1]
        for name in units(found):
            found.start(name)
        (found.folder / "link").write_text(link)
        yield found


def units(site: Site) -> list[str]:
    return [f"onecode-web@{site.web[0]}", f"onecode-web@{site.web[1]}", "onecode-worker@1", "onecode-worker@2"]


@pytest.fixture
def visitor(site: Site) -> HttpBrowser:
    return HttpBrowser(str(site.certificate))


@pytest.fixture(scope="module")
def staff(site: Site) -> HttpBrowser:
    """The first administrator, who has followed the link that the page's commands print."""
    staff = HttpBrowser(str(site.certificate))
    link = (site.folder / "link").read_text()
    assert link.startswith(f"{site.url}/invitations/")
    words: dict[str, Any] = {
        "name": "Ada",
        "email": "ada@shop.example",
        "password": "a long password",
        "confirm": "a long password",
    }
    page = staff.submit(staff.get(link), **words)
    assert page.url == f"{site.url}/"
    return staff


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.flask("api-key", "create", "--name", "till", "--scopes", "read,redeem,manage")


def call(site: Site, key: str, path: str, **more: Any) -> requests.Response:
    """A call of a shop, from the outside."""
    headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
    method = "POST" if "json" in more or "data" in more else "GET"
    return requests.request(
        method, f"{site.url}/api/v1{path}", headers=headers, verify=str(site.certificate), timeout=30, **more
    )


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.1)


def bring(site: Site, key: str, *emails: str, audience: str) -> None:
    """Import customers as a shop does, and wait until they are there."""
    body = "email\n" + "\n".join(emails)
    queued = call(site, key, f"/customers/import?audience={audience}", data=body, headers={"Content-Type": "text/csv"})
    assert queued.status_code == 202, queued.text
    where = queued.headers["Location"].removeprefix("/api/v1")
    until(lambda: call(site, key, where).json()["status"] == "done")


def offer(site: Site, key: str, code: str, audience: str | None = None) -> None:
    made = call(
        site,
        key,
        "/offers",
        json={
            "name": code.title(),
            "code": code,
            "discount": {"type": "percent", "percent": "25"},
            "starts_at": "2020-01-01T00:00:00Z",
            "audience": audience,
        },
    )
    assert made.status_code == 201, made.text


def test_the_first_hour_of_a_shop_through_nginx(
    site: Site, relay: Relay, staff: HttpBrowser, visitor: HttpBrowser, key: str
) -> None:
    """Invite, sign in, import, offer, launch, mail, redeem: with the real forms, whichever web process answers."""
    cookie = next(iter(staff.http.cookies))
    assert (cookie.name, cookie.secure) == (f"onecode_{site.https}", True)
    assert all("Sign out" in staff.get(f"{site.url}/").text for _ in range(6))
    page = staff.get(f"{site.url}/customers/import")
    file = ("people.csv", "email,name\ngrace@example.com,Grace\nada@example.com,Ada\n", "text/csv")
    staff.submit(page, to="import", file=file)
    until(lambda: "grace@example.com" in staff.get(f"{site.url}/customers").text)
    page = staff.submit(
        staff.get(f"{site.url}/offers/new"),
        name="Summer",
        code="SUMMER25",
        discount_type="percent",
        discount_percent="25",
    )
    page = staff.submit(staff.get(f"{page.url}/mail"), to="/mail", launch="launch")
    staff.submit(page, to="/launch")
    until(lambda: relay.recipients["grace@example.com"])

    mail = relay.message_to("grace@example.com")
    link, goodbye = re.findall(r"https?://\S+", mail.text)
    assert link.startswith(f"{site.url}/r/")
    assert mail.message["List-Unsubscribe"].startswith(f"<{goodbye}>")
    assert mail.message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    receipt = visitor.submit(visitor.get(link), to="/r/")
    assert "25%" in receipt.text
    body = {"code": "summer25", "customer": {"email": "ada@example.com"}}
    assert call(site, key, "/redemptions", json=body).status_code == 201
    assert call(site, key, "/redemptions", json=body).json()["code"] == "already_redeemed"
    assert site.query("select count(*) from redemption join offer o on o.id = offer_id where o.code = 'SUMMER25'") == [
        (2,)
    ]


def test_nobody_signs_in_without_the_token_of_the_form(site: Site, staff: HttpBrowser, visitor: HttpBrowser) -> None:
    page = visitor.get(f"{site.url}/sign-in")
    words: dict[str, Any] = {"email": "ada@shop.example", "password": "a long password"}
    assert staff.http.cookies
    bare = visitor.http.post(f"{site.url}/sign-in", data=words, headers={"Referer": page.url}, timeout=30)
    assert bare.status_code == 400
    assert visitor.submit(page, **words).url == f"{site.url}/"


def test_the_address_that_nginx_saw_counts_and_none_that_a_client_claims(site: Site) -> None:
    somebody = HttpBrowser(str(site.certificate), address="127.0.0.7")
    somebody.http.headers["X-Forwarded-For"] = "203.0.113.9"
    page = somebody.get(f"{site.url}/redeem")
    assert somebody.submit(page, code="NOSUCH", email="nobody@example.com").status_code == 404
    keys = " ".join(str(row[0]) for row in site.query("select key from rate_hit"))
    assert "127.0.0.7" in keys
    assert "203.0.113.9" not in keys


def test_pages_for_machines_inside_and_plain_http_stay_outside(site: Site, visitor: HttpBrowser) -> None:
    for path in ("/metrics", "/healthz", "/readyz"):
        assert visitor.get(site.url + path).status_code == 404
    moved = visitor.http.get(f"http://127.0.0.1:{site.http}/redeem?code=A", allow_redirects=False, timeout=30)
    assert (moved.status_code, moved.headers["Location"]) == (301, f"{site.url}/redeem?code=A")
    assert visitor.get(f"{site.url}/redeem").headers["Strict-Transport-Security"] == "max-age=31536000"


def test_who_asks_for_another_name_does_not_get_through(site: Site, visitor: HttpBrowser) -> None:
    for url, headers in ((f"{site.url}/redeem", {"Host": "evil.example"}), (f"https://127.0.0.1:{site.https}/", {})):
        with pytest.raises(requests.ConnectionError):
            visitor.get(url, headers=headers)
    assert visitor.get(f"{site.url}/redeem").headers["Server"] == "nginx"


def test_a_large_file_is_imported_and_nothing_else_may_be_large(site: Site, key: str) -> None:
    rows = "email,note\n" + "".join(f"large{n}@example.com,{'x' * 8000}\n" for n in range(600))
    taken = call(site, key, "/customers/import?audience=Large", data=rows, headers={"Content-Type": "text/csv"})
    assert taken.status_code == 202
    refused = call(site, key, "/redemptions", data=rows, headers={"Content-Type": "application/json"})
    assert refused.status_code == 413


def test_nginx_logs_the_id_of_a_request_and_no_personal_link(site: Site, visitor: HttpBrowser) -> None:
    answer = visitor.get(f"{site.url}/r/c29tZWJvZHk.token")
    visitor.get(f"{site.url}/api/v1/customers/ada@example.com/offers")
    log = site.log / "onecode.log"
    until(lambda: answer.headers["X-Request-Id"] in log.read_text())
    assert "/r/-" in log.read_text()
    assert logs_with(site, "c29tZWJvZHk", "ada@example") == []


def logs_with(site: Site, *words: str) -> list[str]:
    """Which of the logs of nginx, of Debian's and of the page's, have one of these words."""
    names = ("access.log", "error.log", "onecode.log", "onecode-error.log")
    logs = [site.log / name for name in names if (site.log / name).exists()]
    return [log.name for log in logs if any(word in log.read_text() for word in words)]


def test_a_link_that_is_opened_by_plain_http_is_in_no_log(site: Site, visitor: HttpBrowser) -> None:
    link = f"http://127.0.0.1:{site.http}/r/cGxhaW4.token"
    moved = visitor.http.get(link, headers={"Referer": link}, allow_redirects=False, timeout=30)
    assert moved.headers["Location"] == f"{site.url}/r/cGxhaW4.token"
    assert logs_with(site, "cGxhaW4") == []


def test_a_link_that_finds_a_web_process_away_is_in_no_log(site: Site, visitor: HttpBrowser) -> None:
    for name in units(site)[:2]:
        site.kill(name)
    try:
        answers = {visitor.get(f"{site.url}/r/YXdheQ.token").status_code for _ in range(4)}
    finally:
        for name in units(site)[:2]:
            site.start(name)
    # nginx leaves out for five seconds whoever did not answer.
    until(lambda: visitor.get(f"{site.url}/redeem").status_code == 200)
    assert answers == {502}
    until(lambda: " /r/- 502 " in (site.log / "onecode.log").read_text())
    assert logs_with(site, "YXdheQ") == []


def test_a_web_process_that_is_killed_is_noticed_by_nobody(site: Site, visitor: HttpBrowser) -> None:
    name = units(site)[0]
    site.kill(name)
    try:
        answers = [visitor.get(f"{site.url}/redeem").status_code for _ in range(20)]
        page = visitor.get(f"{site.url}/redeem")
        sent = [visitor.submit(page, code="NOSUCH", email=f"n{n}@example.com").status_code for n in range(6)]
    finally:
        site.start(name)
    assert set(answers) == {200}
    assert set(sent) == {404}


def test_restarting_web_processes_one_by_one_loses_no_redemption(site: Site, key: str) -> None:
    emails = [f"busy{n}@example.com" for n in range(400)]
    bring(site, key, *emails, audience="Busy")
    offer(site, key, "BUSY")
    refused: list[int] = []

    def redeem(email: str) -> int:
        body = {"code": "busy", "customer": {"email": email}}
        status = 0
        for _ in range(20):
            status = call(
                site, key, "/redemptions", json=body, headers={"Idempotency-Key": f"key-of-{email}"}
            ).status_code
            if status < 500:
                return status
            refused.append(status)
            time.sleep(0.1)
        return status

    with ThreadPoolExecutor(4) as shops:
        answers = [shops.submit(redeem, email) for email in emails]
        for name in units(site)[:2]:
            until(lambda: sum(one.done() for one in answers) > 40)
            site.stop(name)
            site.start(name)
        found = Counter(one.result() for one in answers)
    # 200 is a repeat that hears the first answer.
    assert sum(found[status] for status in (200, 201)) == 400, (found, refused)
    assert site.query("select count(*) from redemption join offer o on o.id = offer_id where o.code = 'BUSY'") == [
        (400,)
    ]
    # What was lost of answers are those of the very moment.
    assert len(refused) <= 8, refused


def launch(site: Site, key: str, code: str, emails: list[str]) -> int:
    """Mail an offer to these; the campaign."""
    bring(site, key, *emails, audience=code)
    offer(site, key, code, audience=code)
    answer = call(site, key, f"/offers/{code}/launch", json={})
    assert answer.status_code == 202, answer.text
    return int(
        str(
            site.query(
                f"select max(id) from campaign where audience_id = (select id from audience where name = '{code}')"
            )[0][0]
        )
    )


def test_a_killed_worker_s_mails_are_sent_by_the_other(site: Site, relay: Relay, key: str) -> None:
    emails = [f"killed{n}@example.com" for n in range(1600)]
    relay.behaviour.seconds_per_mail = 0.004
    campaign = launch(site, key, "KILLED", emails)
    until(lambda: len({received.to for received in relay.messages} & set(emails)) > 100)
    owners = "select owner, pid from batch, lateral split_part(owner, ':', 2) pid where status = 'sending'"
    workers = {str(site.started[name].pid): name for name in ("onecode-worker@1", "onecode-worker@2")}
    # One that has work: a bell is heard by whoever is first, so the other may have none.
    victim = str(site.query(owners)[0][1])
    site.kill(workers[victim])
    # As if the minute and a half had passed for which a batch belongs to whoever took it.
    dead = [str(owner) for owner, pid in site.query(owners) if pid == victim]
    site.query(f"update batch set lease_until = now() where owner = any('{{{','.join(dead)}}}') and status = 'sending'")
    try:
        until(lambda: site.query(f"select status from campaign where id = {campaign}") == [("done",)], 80)
    finally:
        relay.behaviour.seconds_per_mail = 0
        site.start(workers[victim])
    got = Counter({to: n for to, n in relay.recipients.items() if to.startswith("killed")})
    assert dead
    assert set(got) == set(emails)
    # Two connections were killed, and with each a mail may have been on its way.
    assert sum(got.values()) - len(emails) <= 2


def test_what_comes_back_is_read_by_the_line_of_cron(site: Site, relay: Relay, key: str) -> None:
    launch(site, key, "RETURNED", ["gone@example.com"])
    until(lambda: relay.recipients["gone@example.com"])
    mail = relay.message_to("gone@example.com")
    text = POSTFIX.format(
        to=mail.sender,
        id=mail.message["Message-ID"],
        rcpt=mail.to,
        status="5.1.1",
        status_reply="550 5.1.1 User unknown",
        action="failed",
    )
    (site.folder / "bounces").write_text(f"From MAILER-DAEMON Sat May  2 08:00:03 2026\n{text}")
    line = block("/etc/cron.d/onecode", {"/var/mail/bounces": str(site.folder / "bounces")}).splitlines()[-1]
    command = line.split(" onecode ", 1)[1].replace("/opt/onecode", str(site.code))
    done = subprocess.run(["sh", "-c", command], env=site.environment(), capture_output=True, text=True, check=True)
    assert "1 address suppressed" in done.stdout
    assert site.query("select reason from suppression where email = 'gone@example.com'") == [("bounced",)]


def back_up(site: Site) -> Path:
    """The dump that the page's commands make."""
    site.run("a folder for dumps")
    site.run("back up")
    (dump,) = site.backups.glob("*/onecode.dump")
    return dump


def test_a_dump_can_be_read_by_its_owner_alone(site: Site) -> None:
    folder = back_up(site).parent
    assert (oct(folder.stat().st_mode & 0o777), folder.stat().st_uid) == ("0o700", deployment.POSTGRES.pw_uid)


def test_a_backup_that_fails_leaves_the_last_one_whole(site: Site) -> None:
    dump = back_up(site)
    before = dump.read_bytes()
    with pytest.raises(AssertionError, match="does not exist"):
        site.run("back up", {" onecode &&": " no_such_database &&"})
    assert dump.read_bytes() == before


def test_after_a_restore_nobody_gets_a_mail_twice_and_no_number_is_given_twice(
    site: Site, relay: Relay, staff: HttpBrowser, visitor: HttpBrowser, key: str
) -> None:
    emails = [f"restored{n}@example.com" for n in range(1200)]
    relay.behaviour.seconds_per_mail = 0.01
    campaign = launch(site, key, "RESTORED", emails)
    ours = set(emails)
    until(lambda: len({received.to for received in relay.messages} & ours) > 100)
    at_backup = {received.to for received in relay.messages} & ours
    back_up(site)
    bring(site, key, "late@example.com", audience="RESTORED-LATE")
    until(lambda: len({received.to for received in relay.messages} & ours) > len(at_backup) + 200)
    late = site.query("select id from customer where email = 'late@example.com'")[0][0]
    for name in list(site.started):
        site.stop(name)
    relay.behaviour.seconds_per_mail = 0
    before = relay.recipients
    (site.folder / "taken.txt").write_text("".join(f"{to}\n" for to in before if to in ours and to not in at_backup))

    site.run("restore")
    assert site.query("select count(*) from batch_cursor", "onecode_restored") == [(0,)]
    site.run("before anything is started")
    site.run("what the relay has taken since the backup, for one mailing", {"campaign=1": f"campaign={campaign}"})
    # As if restoring had taken longer than a minute and a half.
    site.query("update batch set lease_until = now()", "onecode_restored")
    site.run("put it in the place of the old one")
    for name in units(site):
        site.start(name)
    assert "Sign out" in staff.get(f"{site.url}/").text
    page = staff.get(f"{site.url}/campaigns/{campaign}")
    assert "Restored from a backup" in page.text
    staff.submit(page, to="/resume")
    done = f"select status from campaign where id = {campaign}"
    until(lambda: site.query(done) == [("done",)])
    uncertain = site.query(f"select count(*) from mail_issue where campaign_id = {campaign} and state = 'uncertain'")
    assert max(n for to, n in relay.recipients.items() if to in ours) == 1
    # Up to a window of fifty for each of the four connections; staff decide about those.
    assert len(ours - set(relay.recipients)) <= int(str(uncertain[0][0])) <= 200

    bring(site, key, "next@example.com", audience="Next")
    number = int(str(site.query("select id from customer where email = 'next@example.com'")[0][0]))
    assert number > int(str(late)) + 1000


def test_keys_are_renewed_and_retired_while_both_web_processes_run(site: Site, key: str) -> None:
    bring(site, key, "one@example.com", "two@example.com", "three@example.com", audience="Keys")
    offer(site, key, "KEYS")

    def code_of(who: str) -> str:
        offers = call(site, key, f"/customers/{who}@example.com/offers").json()["offers"]
        return str(next(one["personal_code"] for one in offers if one["code"] == "KEYS"))

    def redeemable(code: str, who: str) -> set[bool]:
        body: Any = {"code": code, "customer": {"email": f"{who}@example.com"}}
        headers = {"Authorization": f"Bearer {key}"}
        urls = [f"http://127.0.0.1:{port}/api/v1/validations" for port in site.web for _ in range(4)]
        return {requests.post(url, json=body, headers=headers, timeout=30).json().get("valid", False) for url in urls}

    old = code_of("one")
    assert redeemable(old, "one") == {True}
    site.run("renew a signing key")
    # As if the minute and a half had passed until when an old key can't be retired.
    site.query("update signing_key set created_at = created_at - interval '2 minutes'")
    # A process that knows of the new key at once, as a worker may; the web processes remember theirs for a minute.
    ids = "select o.id, c.id from offer o, customer c where o.code = 'KEYS' and c.email = 'one@example.com'"
    offer_id, customer_id = site.query(ids)[0]
    derive = f"personal_codes.derive_personal_code('KEYS', {offer_id}, {customer_id})"
    write = f"from webapp.redemptions import personal_codes; print('new=' + {derive})"
    (new,) = re.findall(r"new=(\S+)", site.flask("shell", typed=f"{write}\n"))
    assert new != old
    assert redeemable(old, "one") == redeemable(new, "one") == {True}
    site.run("retire the old one, after a leak")
    assert redeemable(old, "one") == {False}
    assert redeemable(new, "one") == {True}


def test_a_second_role_does_all_that_the_first_one_does(site: Site) -> None:
    site.run("a second role for the same tables", typed=f"{site.password}\n{site.password}\n")
    url = site.owner_url(role="onecode_b")
    with (site.folder / "postgresql/data/pg_hba.conf").open("a") as file:
        file.write(block("pg_hba.conf", {"10.0.0.0/24": "127.0.0.1/32", "  onecode  ": "  onecode_b  "}))
    site.query("select pg_reload_conf()", "postgres", "postgres")
    assert "is up to date" in site.flask("migrate", DATABASE_URL=url)
    site.flask("key", "renew", "personal_link", DATABASE_URL=url)
    assert site.query("select count(*) from pg_tables where schemaname = 'public' and tableowner <> 'onecode'") == [
        (0,)
    ]


def test_every_migration_goes_down_and_up_again_with_data(site: Site, key: str) -> None:
    bring(site, key, "stays@example.com", audience="Stays")
    offer(site, key, "STAYS")
    body = {"code": "stays", "customer": {"email": "stays@example.com"}}
    assert call(site, key, "/redemptions", json=body).status_code == 201
    site.query("drop database if exists onecode_restored", "postgres", "postgres")
    back_up(site)
    site.run("restore")
    url = site.owner_url("onecode_restored")
    everything = [f"select count(*) from {table}" for table in ("customer", "offer", "redemption", "campaign", "batch")]

    def counted() -> list[object]:
        return [site.query(statement, "onecode_restored")[0][0] for statement in everything]

    before, head = counted(), site.query("select version_num from alembic_version")
    assert str(head[0][0]) in site.run("where the tables are, and where this version wants them")
    site.run("take the tables down by one migration", DATABASE_URL=url)
    assert site.query("select version_num from alembic_version", "onecode_restored") < head
    site.run("take the tables down to one migration", DATABASE_URL=url)
    assert counted() == before
    assert site.query("select version_num from alembic_version", "onecode_restored") == [("0001",)]
    site.flask("migrate", DATABASE_URL=url)
    assert counted() == before
    assert site.query("select version_num from alembic_version", "onecode_restored") == head
    site.query("drop database onecode_restored", "postgres", "postgres")
