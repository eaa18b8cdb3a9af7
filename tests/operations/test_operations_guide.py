"""An installation by docs/operations.md with two web processes and workers.

The code blocks are taken from the page; only host names, ports and folders are changed.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import deployment, smtp_relay
from tests.support.accounts import PASSWORD
from tests.support.bounce_messages import POSTFIX
from tests.support.deployment import Site
from tests.support.http_browser import HttpBrowser
from tests.support.live_server import wait_until
from tests.support.operations_docs import block
from tests.support.smtp_relay import Relay

# All tests share one site, so they run in one process, one after the other.
pytestmark = pytest.mark.lifecycle


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with smtp_relay.running() as server:
        yield server


@pytest.fixture(scope="module")
def site(relay: Relay) -> Iterator[Site]:
    missing = deployment.missing_programs()
    if missing and os.environ.get("REQUIRE_SERVERS"):
        pytest.fail(f"{missing} must be installed here")
    if missing:
        pytest.skip(f"{missing} is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="onecode-operations-") as folder,
        deployment.running_site(Path(folder), relay.port) as started_site,
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(started_site.certificate, started_site.folder / "server.key")
        relay.behaviour.starttls, relay.behaviour.auth = context, "235 come in"
        link = started_site.run("once, on one machine").strip().splitlines()[-1]
        for name in units(started_site):
            started_site.start(name)
        (started_site.folder / "link").write_text(link)
        yield started_site


def units(site: Site) -> list[str]:
    return [f"onecode-web@{site.web[0]}", f"onecode-web@{site.web[1]}", "onecode-worker@1", "onecode-worker@2"]


@pytest.fixture
def visitor(site: Site) -> HttpBrowser:
    return HttpBrowser(str(site.certificate))


@pytest.fixture(scope="module")
def staff(site: Site) -> HttpBrowser:
    """The first administrator, signed in by the printed invitation link."""
    staff = HttpBrowser(str(site.certificate))
    link = (site.folder / "link").read_text()
    assert link.startswith(f"{site.url}/invitations/")
    form: dict[str, Any] = {
        "name": "Ada",
        "email": "ada@shop.example",
        "password": PASSWORD,
        "confirm": PASSWORD,
    }
    page = staff.submit(staff.get(link), **form)
    assert page.url == f"{site.url}/"
    return staff


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.flask("api-key", "create", "--name", "till", "--scopes", "read,redeem,manage")


def call(site: Site, key: str, path: str, **more: Any) -> requests.Response:
    """Call the API from outside."""
    headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
    method = "POST" if "json" in more or "data" in more else "GET"
    return requests.request(
        method, f"{site.url}/api/v1{path}", headers=headers, verify=str(site.certificate), timeout=30, **more
    )


def import_customers(site: Site, key: str, *emails: str, audience: str) -> None:
    """Import customers by the API and wait until the import is done."""
    body = "email\n" + "\n".join(emails)
    queued = call(site, key, f"/customers/import?audience={audience}", data=body, headers={"Content-Type": "text/csv"})
    assert queued.status_code == 202, queued.text
    import_path = queued.headers["Location"].removeprefix("/api/v1")
    wait_until(lambda: call(site, key, import_path).json()["status"] == "done")


def create_offer(site: Site, key: str, code: str, audience: str | None = None) -> None:
    response = call(
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
    assert response.status_code == 201, response.text


def test_the_main_workflow_works_through_nginx(
    site: Site, relay: Relay, staff: HttpBrowser, visitor: HttpBrowser, key: str
) -> None:
    """Import, create an offer, launch and redeem with the real forms."""
    name = f"__Host-onecode_{site.https}"
    assert {(cookie.name, cookie.secure) for cookie in staff.http.cookies} == {(name, True), (f"{name}_device", True)}
    assert all("Sign out" in staff.get(f"{site.url}/").text for _ in range(6))
    page = staff.get(f"{site.url}/customers/import")
    file = ("people.csv", "email,name\ngrace@example.com,Grace\nada@example.com,Ada\n", "text/csv")
    staff.submit(page, to="import", file=file)
    wait_until(lambda: "grace@example.com" in staff.get(f"{site.url}/customers").text)
    page = staff.submit(
        staff.get(f"{site.url}/offers/new"),
        name="Summer",
        code="SUMMER25",
        discount_type="percent",
        discount_percent="25",
    )
    page = staff.submit(staff.get(f"{page.url}/mail"), to="/mail", launch="launch")
    staff.submit(page, to="/launch")
    wait_until(lambda: relay.recipients["grace@example.com"])

    email = relay.message_to("grace@example.com")
    link, unsubscribe_url = re.findall(r"https?://\S+", email.text)
    assert link.startswith(f"{site.url}/r/")
    assert email.message["List-Unsubscribe"].startswith(f"<{unsubscribe_url}>")
    assert email.message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    receipt = visitor.submit(visitor.get(link), to="/r/")
    assert "25%" in receipt.text
    body = {"code": "summer25", "customer": {"email": "ada@example.com"}}
    assert call(site, key, "/redemptions", json=body).status_code == 201
    assert call(site, key, "/redemptions", json=body).json()["code"] == "already_redeemed"
    assert site.query("select count(*) from redemption join offer o on o.id = offer_id where o.code = 'SUMMER25'") == [
        (2,)
    ]


def test_signing_in_needs_the_csrf_token(site: Site, staff: HttpBrowser, visitor: HttpBrowser) -> None:
    page = visitor.get(f"{site.url}/sign-in")
    form: dict[str, Any] = {"email": "ada@shop.example", "password": PASSWORD}
    assert staff.http.cookies
    without_token = visitor.http.post(f"{site.url}/sign-in", data=form, headers={"Referer": page.url}, timeout=30)
    assert without_token.status_code == 400
    assert visitor.submit(page, **form).url == f"{site.url}/"


def test_rate_limits_use_the_address_seen_by_nginx(site: Site) -> None:
    client = HttpBrowser(str(site.certificate), address="127.0.0.7")
    client.http.headers["X-Forwarded-For"] = "203.0.113.9"
    page = client.get(f"{site.url}/redeem")
    assert client.submit(page, code="NOSUCH", email="nobody@example.com").status_code == 404
    keys = " ".join(str(row[0]) for row in site.query("select key from rate_hit"))
    assert "127.0.0.7" in keys
    assert "203.0.113.9" not in keys


def test_internal_paths_are_hidden_and_plain_http_is_redirected(site: Site, visitor: HttpBrowser) -> None:
    for path in ("/metrics", "/healthz", "/readyz"):
        assert visitor.get(site.url + path).status_code == 404
    redirect = visitor.http.get(f"http://127.0.0.1:{site.http}/redeem?code=A", allow_redirects=False, timeout=30)
    assert (redirect.status_code, redirect.headers["Location"]) == (301, f"{site.url}/redeem?code=A")


def test_calls_of_programs_by_plain_http_are_refused(site: Site, visitor: HttpBrowser) -> None:
    for path in ("/api/v1/offers", "/metrics"):
        response = visitor.http.get(f"http://127.0.0.1:{site.http}{path}", allow_redirects=False, timeout=30)
        assert (response.status_code, response.text) == (403, "Use https.\n")


def test_every_response_requires_https_for_a_year(site: Site, visitor: HttpBrowser) -> None:
    for path in ("/redeem", "/static/app.js", "/healthz"):
        # A repeated header would be joined with a comma.
        header = visitor.get(site.url + path).headers["Strict-Transport-Security"]
        assert header == "max-age=31536000; includeSubDomains"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_only_tls_versions_and_ciphers_in_the_file_are_accepted(site: Site) -> None:
    def negotiate(version: ssl.TLSVersion, ciphers: str) -> tuple[str, str, int]:
        context = ssl.create_default_context(cafile=str(site.certificate))
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        with (
            socket.create_connection(("localhost", site.https), timeout=30) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as tls,
        ):
            cipher = tls.cipher()
            assert cipher is not None
            return cipher

    assert negotiate(ssl.TLSVersion.TLSv1_3, "ALL")[1] == "TLSv1.3"
    assert negotiate(ssl.TLSVersion.TLSv1_2, "ALL")[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
    for version, ciphers in (
        (ssl.TLSVersion.TLSv1_1, "ALL"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:AES128-SHA"),
    ):
        with pytest.raises(ssl.SSLError):
            negotiate(version, ciphers)


def test_requests_for_other_host_names_are_refused(site: Site, visitor: HttpBrowser) -> None:
    for url, headers in ((f"{site.url}/redeem", {"Host": "evil.example"}), (f"https://127.0.0.1:{site.https}/", {})):
        with pytest.raises(requests.ConnectionError):
            visitor.get(url, headers=headers)
    assert visitor.get(f"{site.url}/redeem").headers["Server"] == "nginx"


def test_only_imports_accept_large_bodies(site: Site, key: str) -> None:
    rows = "email,note\n" + "".join(f"large{n}@example.com,{'x' * 8000}\n" for n in range(600))
    accepted = call(site, key, "/customers/import?audience=Large", data=rows, headers={"Content-Type": "text/csv"})
    assert accepted.status_code == 202
    refused = call(site, key, "/redemptions", data=rows, headers={"Content-Type": "application/json"})
    assert refused.status_code == 413


def test_nginx_logs_request_ids_and_no_personal_links(site: Site, visitor: HttpBrowser) -> None:
    response = visitor.get(f"{site.url}/r/c29tZWJvZHk.token")
    visitor.get(f"{site.url}/api/v1/customers/ada@example.com/offers")
    log = site.log / "onecode.log"
    wait_until(lambda: response.headers["X-Request-Id"] in log.read_text())
    assert "/r/-" in log.read_text()
    assert logs_containing(site, "c29tZWJvZHk", "ada@example") == []


def logs_containing(site: Site, *secrets: str) -> list[str]:
    """The names of the nginx logs that contain one of these strings."""
    names = ("access.log", "error.log", "onecode.log", "onecode-error.log")
    logs = [site.log / name for name in names if (site.log / name).exists()]
    return [log.name for log in logs if any(secret in log.read_text() for secret in secrets)]


def test_a_link_opened_by_plain_http_is_not_logged(site: Site, visitor: HttpBrowser) -> None:
    link = f"http://127.0.0.1:{site.http}/r/cGxhaW4.token"
    redirect = visitor.http.get(link, headers={"Referer": link}, allow_redirects=False, timeout=30)
    assert redirect.headers["Location"] == f"{site.url}/r/cGxhaW4.token"
    assert logs_containing(site, "cGxhaW4") == []


def test_a_link_opened_during_an_outage_is_not_logged(site: Site, visitor: HttpBrowser) -> None:
    for name in units(site)[:2]:
        site.kill(name)
    try:
        statuses = {visitor.get(f"{site.url}/r/YXdheQ.token").status_code for _ in range(4)}
    finally:
        for name in units(site)[:2]:
            site.start(name)
    # nginx skips a backend for five seconds after it failed to respond.
    wait_until(lambda: visitor.get(f"{site.url}/redeem").status_code == 200)
    assert statuses == {502}
    wait_until(lambda: " /r/- 502 " in (site.log / "onecode.log").read_text())
    assert logs_containing(site, "YXdheQ") == []


def test_clients_do_not_notice_a_killed_web_process(site: Site, visitor: HttpBrowser) -> None:
    name = units(site)[0]
    site.kill(name)
    try:
        get_statuses = [visitor.get(f"{site.url}/redeem").status_code for _ in range(20)]
        page = visitor.get(f"{site.url}/redeem")
        post_statuses = [visitor.submit(page, code="NOSUCH", email=f"n{n}@example.com").status_code for n in range(6)]
    finally:
        site.start(name)
    assert set(get_statuses) == {200}
    assert set(post_statuses) == {404}


def test_restarting_web_processes_one_by_one_loses_no_redemption(site: Site, key: str) -> None:
    emails = [f"busy{n}@example.com" for n in range(400)]
    import_customers(site, key, *emails, audience="Busy")
    create_offer(site, key, "BUSY")
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
        futures = [shops.submit(redeem, email) for email in emails]
        for name in units(site)[:2]:
            wait_until(lambda: sum(future.done() for future in futures) > 40)
            site.stop(name)
            site.start(name)
        statuses = Counter(future.result() for future in futures)
    # 200 is the response to a repeated request.
    assert sum(statuses[status] for status in (200, 201)) == 400, (statuses, refused)
    assert site.query("select count(*) from redemption join offer o on o.id = offer_id where o.code = 'BUSY'") == [
        (400,)
    ]
    # Only responses in progress at a restart may be lost.
    assert len(refused) <= 8, refused


def launch(site: Site, key: str, code: str, emails: list[str]) -> int:
    """Create an offer for these customers and launch it; return the campaign id."""
    import_customers(site, key, *emails, audience=code)
    create_offer(site, key, code, audience=code)
    response = call(site, key, f"/offers/{code}/launch", json={})
    assert response.status_code == 202, response.text
    return int(
        str(
            site.query(
                f"select max(id) from campaign where audience_id = (select id from audience where name = '{code}')"
            )[0][0]
        )
    )


def test_the_emails_of_a_killed_worker_are_sent_by_the_other(site: Site, relay: Relay, key: str) -> None:
    emails = [f"killed{n}@example.com" for n in range(1600)]
    relay.behaviour.seconds_per_mail = 0.004
    campaign = launch(site, key, "KILLED", emails)
    wait_until(lambda: len({email.to for email in relay.messages} & set(emails)) > 100)
    owners = "select owner, pid from batch, lateral split_part(owner, ':', 2) pid where status = 'sending'"
    workers = {str(site.started[name].pid): name for name in ("onecode-worker@1", "onecode-worker@2")}
    # A worker that owns a batch; the other may be idle, since each task goes to one worker.
    killed_pid = str(site.query(owners)[0][1])
    site.kill(workers[killed_pid])
    # Expire the lease of 90 seconds.
    dead_owners = [str(owner) for owner, pid in site.query(owners) if pid == killed_pid]
    site.query(
        f"update batch set lease_until = now() where owner = any('{{{','.join(dead_owners)}}}') and status = 'sending'"
    )
    try:
        wait_until(lambda: site.query(f"select status from campaign where id = {campaign}") == [("done",)])
    finally:
        relay.behaviour.seconds_per_mail = 0
        site.start(workers[killed_pid])
    received = Counter({to: n for to, n in relay.recipients.items() if to.startswith("killed")})
    assert dead_owners
    assert set(received) == set(emails)
    # Two connections were killed, each of which may have had an email in flight.
    assert sum(received.values()) - len(emails) <= 2


def test_the_cron_job_processes_bounces(site: Site, relay: Relay, key: str) -> None:
    launch(site, key, "RETURNED", ["gone@example.com"])
    wait_until(lambda: relay.recipients["gone@example.com"])
    email = relay.message_to("gone@example.com")
    text = POSTFIX.format(
        to=email.sender,
        id=email.message["Message-ID"],
        rcpt=email.to,
        status="5.1.1",
        status_reply="550 5.1.1 User unknown",
        action="failed",
    )
    (site.folder / "bounces").write_text(f"From MAILER-DAEMON Sat May  2 08:00:03 2026\n{text}")
    line = block("/etc/cron.d/onecode", {"/var/mail/bounces": str(site.folder / "bounces")}).splitlines()[-1]
    command = line.split(" onecode ", 1)[1].replace("/opt/onecode", str(site.code))
    result = subprocess.run(["sh", "-c", command], env=site.environment(), capture_output=True, text=True, check=True)
    assert "1 address suppressed" in result.stdout
    assert site.query("select reason from suppression where email = 'gone@example.com'") == [("bounced",)]


def back_up(site: Site) -> Path:
    """Make a dump with the commands of the page; return its path."""
    site.run("create a folder for dumps")
    site.run("back up")
    (dump,) = site.backups.glob("*/onecode.dump")
    return dump


def test_a_dump_is_readable_only_by_its_owner(site: Site) -> None:
    folder = back_up(site).parent
    assert (oct(folder.stat().st_mode & 0o777), folder.stat().st_uid) == ("0o700", deployment.POSTGRES.pw_uid)


def test_a_failed_backup_keeps_the_previous_one(site: Site) -> None:
    dump = back_up(site)
    before = dump.read_bytes()
    with pytest.raises(AssertionError, match="does not exist"):
        site.run("back up", {" onecode &&": " no_such_database &&"})
    assert dump.read_bytes() == before


def test_after_a_restore_no_email_is_sent_twice_and_no_id_reused(
    site: Site, relay: Relay, staff: HttpBrowser, visitor: HttpBrowser, key: str
) -> None:
    emails = [f"restored{n}@example.com" for n in range(1200)]
    relay.behaviour.seconds_per_mail = 0.01
    campaign = launch(site, key, "RESTORED", emails)
    recipients = set(emails)
    wait_until(lambda: len({email.to for email in relay.messages} & recipients) > 100)
    at_backup = {email.to for email in relay.messages} & recipients
    back_up(site)
    import_customers(site, key, "late@example.com", audience="RESTORED-LATE")
    wait_until(lambda: len({email.to for email in relay.messages} & recipients) > len(at_backup) + 200)
    late_id = site.query("select id from customer where email = 'late@example.com'")[0][0]
    for name in list(site.started):
        site.stop(name)
    relay.behaviour.seconds_per_mail = 0
    before = relay.recipients
    (site.folder / "accepted.txt").write_text(
        "".join(f"{to}\n" for to in before if to in recipients and to not in at_backup)
    )

    site.run("restore")
    assert site.query("select count(*) from batch_cursor", "onecode_restored") == [(0,)]
    site.run("before starting anything")
    site.run("record what the relay accepted since the backup", {"campaign=1": f"campaign={campaign}"})
    # Expire the leases, as if restoring had taken longer than 90 seconds.
    site.query("update batch set lease_until = now()", "onecode_restored")
    site.run("replace the old database")
    for name in units(site):
        site.start(name)
    # A session that was ended after the backup must not be valid again.
    page = staff.get(f"{site.url}/campaigns/{campaign}")
    assert page.url.startswith(f"{site.url}/sign-in?")
    page = staff.submit(page, email="ada@shop.example", password=PASSWORD)
    assert "Restored from a backup" in page.text
    staff.submit(page, to="/resume")
    status = f"select status from campaign where id = {campaign}"
    wait_until(lambda: site.query(status) == [("done",)])
    uncertain = site.query(f"select count(*) from mail_issue where campaign_id = {campaign} and state = 'uncertain'")
    assert max(n for to, n in relay.recipients.items() if to in recipients) == 1
    # Up to a window of 50 for each of the four connections is uncertain and left to staff.
    assert len(recipients - set(relay.recipients)) <= int(str(uncertain[0][0])) <= 200

    import_customers(site, key, "next@example.com", audience="Next")
    next_id = int(str(site.query("select id from customer where email = 'next@example.com'")[0][0]))
    assert next_id > int(str(late_id)) + 1000


def test_signing_keys_are_rotated_while_both_web_processes_run(site: Site, key: str) -> None:
    import_customers(site, key, "one@example.com", "two@example.com", "three@example.com", audience="Keys")
    create_offer(site, key, "KEYS")

    def code_of(name: str) -> str:
        offers = call(site, key, f"/customers/{name}@example.com/offers").json()["offers"]
        return str(next(offer["personal_code"] for offer in offers if offer["code"] == "KEYS"))

    def redeemable(code: str, name: str) -> set[bool]:
        body: Any = {"code": code, "customer": {"email": f"{name}@example.com"}}
        headers = {"Authorization": f"Bearer {key}"}
        urls = [f"http://127.0.0.1:{port}/api/v1/validations" for port in site.web for _ in range(4)]
        return {requests.post(url, json=body, headers=headers, timeout=30).json().get("valid", False) for url in urls}

    old = code_of("one")
    assert redeemable(old, "one") == {True}
    site.run("rotate a signing key")
    # An old key can be retired only 90 seconds after the new one was created.
    site.query("update signing_key set created_at = created_at - interval '2 minutes'")
    # A new process, such as a worker, uses the new key at once; the web processes cache theirs for a minute.
    ids = "select o.id, c.id from offer o, customer c where o.code = 'KEYS' and c.email = 'one@example.com'"
    offer_id, customer_id = site.query(ids)[0]
    derive = f"personal_codes.derive_personal_code('KEYS', {offer_id}, {customer_id})"
    script = f"from webapp.redemptions import personal_codes; print('new=' + {derive})"
    (new,) = re.findall(r"new=(\S+)", site.flask("shell", typed=f"{script}\n"))
    assert new != old
    assert redeemable(old, "one") == redeemable(new, "one") == {True}
    site.run("revoke the old version after a leak")
    assert redeemable(old, "one") == {False}
    assert redeemable(new, "one") == {True}


def test_a_second_database_role_can_own_and_migrate_the_tables(site: Site) -> None:
    site.run("create a second role for the same tables", typed=f"{site.password}\n{site.password}\n")
    url = site.owner_url(role="onecode_b")
    with (site.folder / "postgresql/data/pg_hba.conf").open("a") as file:
        file.write(block("pg_hba.conf", {"10.0.0.0/24": "127.0.0.1/32", "  onecode  ": "  onecode_b  "}))
    site.query("select pg_reload_conf()", "postgres", "postgres")
    assert "is up to date" in site.flask("migrate", DATABASE_URL=url)
    site.flask("key", "renew", "personal_link", DATABASE_URL=url)
    assert site.query("select count(*) from pg_tables where schemaname = 'public' and tableowner <> 'onecode'") == [
        (0,)
    ]


def test_every_migration_can_be_reverted_and_applied_again_with_data(site: Site, key: str) -> None:
    import_customers(site, key, "stays@example.com", audience="Stays")
    create_offer(site, key, "STAYS")
    body = {"code": "stays", "customer": {"email": "stays@example.com"}}
    assert call(site, key, "/redemptions", json=body).status_code == 201
    site.query("drop database if exists onecode_restored", "postgres", "postgres")
    back_up(site)
    site.run("restore")
    url = site.owner_url("onecode_restored")
    count_statements = [
        f"select count(*) from {table}" for table in ("customer", "offer", "redemption", "campaign", "batch")
    ]

    def count_rows() -> list[object]:
        return [site.query(statement, "onecode_restored")[0][0] for statement in count_statements]

    before, head = count_rows(), site.query("select version_num from alembic_version")
    assert str(head[0][0]) in site.run("the current and the expected migration")
    site.run("downgrade by one migration", DATABASE_URL=url)
    assert site.query("select version_num from alembic_version", "onecode_restored") < head
    site.run("downgrade to a given migration", DATABASE_URL=url)
    assert count_rows() == before
    assert site.query("select version_num from alembic_version", "onecode_restored") == [("0001",)]
    site.flask("migrate", DATABASE_URL=url)
    assert count_rows() == before
    assert site.query("select version_num from alembic_version", "onecode_restored") == head
    site.query("drop database onecode_restored", "postgres", "postgres")
