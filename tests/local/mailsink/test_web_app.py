"""The sink's pages show every email, even malformed ones, only to this machine."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from local.mailsink.web_app import PAGE_SIZE
from tests.support.factories import WriteEmail

HOST = {"Host": "127.0.0.1:8002"}
OWN_ORIGIN = HOST | {"Origin": "http://127.0.0.1:8002"}
TEXT_AND_HTML = (
    b"To: =?utf-8?q?J=C3=BCrgen?= <j@example.com>\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nSee http://127.0.0.1:8000/r/abc\r\n"
    b'--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<!DOCTYPE html><html lang="en"><head>'
    b'<link rel="preconnect" href="https://spy.example"></head><body><p>Hi</p></body></html>\r\n--b--\r\n'
)


def nested(levels: int) -> bytes:
    return b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(levels))


def get_page(client: FlaskClient, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200
    return unescape(response.text)


def test_an_empty_sink_explains_the_next_step(client: FlaskClient) -> None:
    page = get_page(client, "/")
    assert "No emails yet" in page
    assert "Launch a campaign" in page
    assert "Delete" not in page


def test_the_list_shows_recipient_subject_time_and_size(client: FlaskClient, write_email: WriteEmail) -> None:
    write_email("x" * 5000, To="=?utf-8?q?J=C3=BCrgen?= <j@example.com>", Subject="Hello")
    page = get_page(client, "/")
    for part in ("<bdi>Jürgen</bdi> <j@example.com>", ">Hello<", "14 Nov 2023, 22:13", "5 kB", "1 email stored here"):
        assert part in page


def test_a_right_to_left_name_is_isolated_from_its_address(client: FlaskClient, write_email: WriteEmail) -> None:
    name = write_email("x", From="a@example.com", To="=?utf-8?b?2YXYrdmF2K8=?= <j@example.com>")
    for path in ("/", f"/{name}"):
        assert '<bdi dir="ltr"><bdi>محمد</bdi> <j@example.com></bdi>' in get_page(client, path)
    assert '<bdi dir="ltr">a@example.com</bdi>' in get_page(client, f"/{name}")


def test_attachments_are_counted_and_named(client: FlaskClient, write_email: WriteEmail) -> None:
    with_attachment = TEXT_AND_HTML.replace(
        b"--b--",
        b'--b\r\nContent-Type: image/png\r\nContent-Disposition: ATTACHMENT; filename="a b.png"\r\n\r\nx\r\n--b--',
    )
    name = write_email(with_attachment)
    assert "1 attached" in get_page(client, "/")
    assert "a b.png" in get_page(client, f"/{name}")


def test_older_emails_are_on_the_next_page(client: FlaskClient, write_email: WriteEmail) -> None:
    for n in range(PAGE_SIZE + 1):
        write_email("x", Subject=f"mail-{n}-", To="a@example.com")
    page = get_page(client, "/?q=a@example.com")
    assert "mail-0-" not in page
    older = re.search(r'href="([^"]*before=[^"]*)"', page)
    assert older
    assert re.findall(r"mail-\d+-", get_page(client, older[1])) == ["mail-0-"]


def test_a_search_shows_the_number_of_results(client: FlaskClient, write_email: WriteEmail) -> None:
    for n in range(PAGE_SIZE + 2):
        write_email("x", Subject="Iced tea", To=f"ann{n % 2}@example.com")
    assert f"{PAGE_SIZE + 2} emails match" in get_page(client, "/?q=iced+tea")
    assert f"{PAGE_SIZE // 2 + 1} emails match" in get_page(client, "/?q=ann1@+tea")
    write_email("x", To="bob@example.com")
    assert "1 email matches" in get_page(client, "/?q=bob")


def test_a_search_without_results_says_so(client: FlaskClient, write_email: WriteEmail) -> None:
    write_email("x", To="a@example.com")
    assert "No emails match" in get_page(client, "/?q=<nobody>")


def test_an_email_is_shown_as_html_text_and_headers_and_can_be_saved(
    client: FlaskClient, write_email: WriteEmail
) -> None:
    name = write_email(TEXT_AND_HTML)
    assert f'src="/{name}/html"' in get_page(client, f"/{name}")
    assert 'class="html phone"' in get_page(client, f"/{name}?view=phone")
    assert '<a href="http://127.0.0.1:8000/r/abc"' in get_page(client, f"/{name}?view=text")
    assert "multipart/alternative" in get_page(client, f"/{name}?view=headers")
    source = client.get(f"/{name}/source")
    assert source.data == TEXT_AND_HTML
    assert source.headers["Content-Disposition"] == f"attachment; filename={name}"


def test_the_html_of_an_email_is_sandboxed_and_loads_nothing(client: FlaskClient, write_email: WriteEmail) -> None:
    response = client.get(f"/{write_email(TEXT_AND_HTML)}/html")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    sandbox = policy.partition("sandbox ")[2].split(";")[0].split()
    assert not {"allow-scripts", "allow-forms", "allow-same-origin"} & set(sandbox)
    assert "spy.example" not in response.text
    assert response.text.startswith('<!DOCTYPE html><base target="_blank"><html lang="en">')


MALFORMED = {
    "nothing": b"",
    "no headers": b"just some words\r\nin two lines",
    "no body": b"To: a@example.com\r\nSubject: x\r\n",
    "a blank line first": b"\r\nSubject: not a header\r\n\r\nwords",
    "zeros": b"To: a\x00@example.com\r\nSubject: a\x00b\r\n\r\nx\x00y",
    "zeros alone": b"\x00" * 1000,
    "bytes of no charset": b"To: \xff\xfe\r\nSubject: \xff =?utf-8?q?=FF?=\r\n\r\n\xff\xfe",
    "an unknown charset": b"Subject: =?klingon?b?aGk=?=\r\nContent-Type: text/plain; charset=klingon\r\n\r\nx",
    "a charset that is none": b'Content-Type: text/html; charset="zip\x00"\r\n\r\n<p>x',
    "half characters": b"Content-Type: text/plain; charset=unicode_escape\r\n\r\n\\ud800",
    "half characters in a header": b"Subject: =?unicode_escape?q?=5Cud800?=\r\n\r\nx",
    "half an encoded word": b"Subject: =?utf-8?b?a?= =?utf-8?x?a?= =?\r\n\r\nx",
    "broken base64": b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!a",
    "an unknown encoding": b"Content-Type: text/html\r\nContent-Transfer-Encoding: x-own\r\n\r\n<p>",
    "a type that is none": b"Content-Type: ;;;/\r\n\r\nx",
    "a boundary that never comes": b'Content-Type: multipart/mixed; boundary="b"\r\n\r\nx',
    "no boundary": b"Content-Type: multipart/mixed\r\n\r\nx",
    "nested ten deep": nested(10) + b"\r\nwords",
    "nested twelve hundred deep": nested(1200) + b"\r\nwords",
    "mails in a mail": b"Content-Type: message/rfc822\r\n\r\n" * 50 + b"\r\nwords",
    "a header that never ends": b"Subject: " + b"x" * 200_000,
    "ten thousand headers": b"X-A: b\r\n" * 10_000 + b"\r\nwords",
    "a wrong date": b"Date: yesterday\r\nTo: <<>>,,;:\r\n\r\nx",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_emails_are_listed_and_shown(client: FlaskClient, write_email: WriteEmail, content: bytes) -> None:
    name = write_email(content)
    assert name in get_page(client, "/")
    assert get_page(client, "/?q=nobody")
    for view in ("html", "phone", "text", "headers", "nonsense"):
        assert get_page(client, f"/{name}?view={view}")
    assert client.get(f"/{name}/html").status_code in (200, 404)
    assert client.get(f"/{name}/source").data == content


def test_the_text_of_malformed_emails_is_shown(client: FlaskClient, write_email: WriteEmail) -> None:
    assert "words" in get_page(client, f"/{write_email(MALFORMED['no headers'])}?view=text")
    assert "words" in get_page(client, f"/{write_email(MALFORMED['nested ten deep'])}?view=text")
    deep = get_page(client, f"/{write_email(MALFORMED['nested twelve hundred deep'])}?view=text")
    assert "could not be parsed" in deep
    assert "multipart/mixed" in deep


def test_a_very_long_text_is_shown_truncated(client: FlaskClient, write_email: WriteEmail) -> None:
    name = write_email(b"To: a@example.com\r\n\r\n" + b"0123456789abcdef\r\n" * 1_400_000)
    page = client.get(f"/{name}?view=text")
    assert "Only the beginning of this long text is shown" in page.text
    assert len(page.data) < 1_000_000
    assert "25.2 MB" in get_page(client, "/")


def test_the_pages_escape_the_content_of_emails(client: FlaskClient, write_email: WriteEmail) -> None:
    name = write_email("<b>x</b>", To="<script>1</script>", Subject="<script>2</script>", **{"X-<i>": "<b>"})
    for path in ("/", f"/{name}", f"/{name}?view=headers", "/?q=<script>"):
        page = client.get(path).text
        assert "<script" not in page
        assert "<b>" not in page


@pytest.mark.parametrize(
    "name", ["none.eml", "..%2Fmails.sqlite3", "../mails.sqlite3", ".hidden.eml", "x.txt", "a%00.eml", "%2Fetc%2Fx.eml"]
)
def test_only_files_of_emails_are_shown(client: FlaskClient, write_email: WriteEmail, folder: Path, name: str) -> None:
    write_email("x")
    (folder / ".hidden.eml").write_text("x")
    get_page(client, "/")
    for path in (f"/{name}", f"/{name}/html", f"/{name}/source"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8002", "evil.example:8002", "[", "192.0.2.1"])
def test_other_host_names_are_refused(client: FlaskClient, write_email: WriteEmail, host: str) -> None:
    name = write_email("secret", Subject="secret")
    for path in ("/", f"/{name}", f"/{name}/source", f"/{name}/html"):
        response = client.get(path, headers={"Host": host})
        assert response.status_code in (400, 403)
        assert "secret" not in response.text


@pytest.mark.parametrize("host", ["127.0.0.1:8002", "localhost:8002", "localhost", "[::1]:8002"])
def test_local_host_names_are_accepted(client: FlaskClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_emptying_deletes_the_shown_emails(client: FlaskClient, write_email: WriteEmail, folder: Path) -> None:
    write_email("x")
    write_email("y")
    up_to = re.search(r'name="up_to" value="([^"]+)"', get_page(client, "/"))
    assert up_to
    late = write_email("z")
    response = client.post("/empty", data={"up_to": up_to[1]}, headers=OWN_ORIGIN)
    assert (response.status_code, response.headers["Location"]) == (303, "/")
    assert [file.name for file in folder.iterdir()] == [late]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8003"},
        {"Origin": "http://127.0.0.1:8002", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:8003", "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_cross_site_requests_cannot_empty_the_sink(
    client: FlaskClient, write_email: WriteEmail, folder: Path, headers: dict[str, str]
) -> None:
    name = write_email("x")
    assert client.post("/empty", data={"up_to": "~"}, headers=HOST | headers).status_code == 403
    assert client.get("/empty").status_code in (404, 405)
    assert (folder / name).exists()


def test_every_page_has_restrictive_headers(client: FlaskClient, write_email: WriteEmail) -> None:
    name = write_email(TEXT_AND_HTML)
    for path in ("/", f"/{name}", f"/{name}/html", f"/{name}/source", "/none.eml"):
        headers = client.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_an_unwritable_index_is_reported_in_one_sentence(
    client: FlaskClient, write_email: WriteEmail, folder: Path
) -> None:
    write_email("x")
    folder.with_name("mails.sqlite3").mkdir()
    response = client.get("/")
    assert response.status_code == 503
    assert "New emails are still received" in response.text


def test_times_name_their_zone(
    client: FlaskClient, folder: Path, write_email: WriteEmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        write_email("Hello", Subject="Old")
        (folder / f"{time.time_ns()}-1-9.eml").write_bytes(b"Subject: New\r\n\r\nHello")
        page = get_page(client, "/")
    finally:
        monkeypatch.undo()
        time.tzset()

    shown = re.findall(r"<time [^>]*>([^<]*)</time>", page)
    assert re.fullmatch(r"Today \d\d:\d\d:\d\d CES?T", shown[0])
    assert shown[1] == "14 Nov 2023, 23:13 CET"
