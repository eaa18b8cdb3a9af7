"""The sink's pages: every mail is shown, whatever it is; only this machine is answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from local.mailsink.web_app import PAGE_SIZE

Drop = Callable[..., str]
HOST = {"Host": "127.0.0.1:8002"}
OURS = HOST | {"Origin": "http://127.0.0.1:8002"}
BOTH = (
    b"To: =?utf-8?q?J=C3=BCrgen?= <j@example.com>\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nSee http://127.0.0.1:8000/r/abc\r\n"
    b'--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<!DOCTYPE html><html lang="en"><head>'
    b'<link rel="preconnect" href="https://spy.example"></head><body><p>Hi</p></body></html>\r\n--b--\r\n'
)


def nested(levels: int) -> bytes:
    return b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(levels))


def shown(browser: FlaskClient, address: str) -> str:
    answer = browser.get(address)
    assert answer.status_code == 200
    return unescape(answer.text)


def test_an_empty_sink_says_what_to_do(browser: FlaskClient) -> None:
    page = shown(browser, "/")
    assert "No emails yet" in page
    assert "Launch a campaign" in page
    assert "Delete" not in page


def test_the_list_tells_whom_about_what_when_and_how_big(browser: FlaskClient, drop: Drop) -> None:
    drop("x" * 5000, To="=?utf-8?q?J=C3=BCrgen?= <j@example.com>", Subject="Hello")
    page = shown(browser, "/")
    for words in ("Jürgen <j@example.com>", ">Hello<", "14 Nov 2023, 22:13", "5 kB", "1 email stored here"):
        assert words in page


def test_attachments_are_marked_and_named(browser: FlaskClient, drop: Drop) -> None:
    mail = BOTH.replace(
        b"--b--",
        b'--b\r\nContent-Type: image/png\r\nContent-Disposition: ATTACHMENT; filename="a b.png"\r\n\r\nx\r\n--b--',
    )
    name = drop(mail)
    assert "1 attached" in shown(browser, "/")
    assert "a b.png" in shown(browser, f"/{name}")


def test_older_mails_are_a_link_away(browser: FlaskClient, drop: Drop) -> None:
    for n in range(PAGE_SIZE + 1):
        drop("x", Subject=f"mail-{n}-", To="a@example.com")
    page = shown(browser, "/?q=a@example.com")
    assert "mail-0-" not in page
    older = re.search(r'href="([^"]*before=[^"]*)"', page)
    assert older
    assert re.findall(r"mail-\d+-", shown(browser, older[1])) == ["mail-0-"]


def test_a_search_tells_how_many_it_found(browser: FlaskClient, drop: Drop) -> None:
    for n in range(PAGE_SIZE + 2):
        drop("x", Subject="Iced tea", To=f"ann{n % 2}@example.com")
    assert f"{PAGE_SIZE + 2} emails match" in shown(browser, "/?q=iced+tea")
    assert f"{PAGE_SIZE // 2 + 1} emails match" in shown(browser, "/?q=ann1@+tea")
    drop("x", To="bob@example.com")
    assert "1 email matches" in shown(browser, "/?q=bob")


def test_a_search_without_result_says_so(browser: FlaskClient, drop: Drop) -> None:
    drop("x", To="a@example.com")
    assert "No emails match" in shown(browser, "/?q=<nobody>")


def test_a_mail_is_shown_as_html_text_and_headers_and_its_source_saved(browser: FlaskClient, drop: Drop) -> None:
    name = drop(BOTH)
    assert f'src="/{name}/html"' in shown(browser, f"/{name}")
    assert 'class="html phone"' in shown(browser, f"/{name}?view=phone")
    assert '<a href="http://127.0.0.1:8000/r/abc"' in shown(browser, f"/{name}?view=text")
    assert "multipart/alternative" in shown(browser, f"/{name}?view=headers")
    source = browser.get(f"/{name}/source")
    assert source.data == BOTH
    assert source.headers["Content-Disposition"] == f"attachment; filename={name}"


def test_a_mails_html_may_do_nothing_and_calls_on_nobody(browser: FlaskClient, drop: Drop) -> None:
    answer = browser.get(f"/{drop(BOTH)}/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    sandbox = policy.partition("sandbox ")[2].split(";")[0].split()
    assert not {"allow-scripts", "allow-forms", "allow-same-origin"} & set(sandbox)
    assert "spy.example" not in answer.text
    assert answer.text.startswith('<!DOCTYPE html><base target="_blank"><html lang="en">')


BROKEN = {
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
    "nested two thousand deep": nested(2000) + b"\r\nwords",
    "mails in a mail": b"Content-Type: message/rfc822\r\n\r\n" * 50 + b"\r\nwords",
    "a header that never ends": b"Subject: " + b"x" * 200_000,
    "ten thousand headers": b"X-A: b\r\n" * 10_000 + b"\r\nwords",
    "a wrong date": b"Date: yesterday\r\nTo: <<>>,,;:\r\n\r\nx",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_mails_are_listed_and_shown(browser: FlaskClient, drop: Drop, content: bytes) -> None:
    name = drop(content)
    assert name in shown(browser, "/")
    assert shown(browser, "/?q=nobody")
    for view in ("html", "phone", "text", "headers", "nonsense"):
        assert shown(browser, f"/{name}?view={view}")
    assert browser.get(f"/{name}/html").status_code in (200, 404)
    assert browser.get(f"/{name}/source").data == content


def test_the_words_of_broken_mails_are_there(browser: FlaskClient, drop: Drop) -> None:
    assert "words" in shown(browser, f"/{drop(BROKEN['no headers'])}?view=text")
    assert "words" in shown(browser, f"/{drop(BROKEN['nested ten deep'])}?view=text")
    deep = shown(browser, f"/{drop(BROKEN['nested two thousand deep'])}?view=text")
    assert "could not be parsed" in deep
    assert "multipart/mixed" in deep


def test_of_a_huge_text_the_beginning_is_shown(browser: FlaskClient, drop: Drop) -> None:
    name = drop(b"To: a@example.com\r\n\r\n" + b"0123456789abcdef\r\n" * 1_400_000)
    page = browser.get(f"/{name}?view=text")
    assert "Only the beginning of this long text is shown" in page.text
    assert len(page.data) < 1_000_000
    assert "25.2 MB" in shown(browser, "/")


def test_what_mails_say_is_text_on_our_pages(browser: FlaskClient, drop: Drop) -> None:
    name = drop("<b>x</b>", To="<script>1</script>", Subject="<script>2</script>", **{"X-<i>": "<b>"})
    for address in ("/", f"/{name}", f"/{name}?view=headers", "/?q=<script>"):
        page = browser.get(address).text
        assert "<script" not in page
        assert "<b>" not in page


@pytest.mark.parametrize(
    "name", ["none.eml", "..%2Fmails.sqlite3", "../mails.sqlite3", ".hidden.eml", "x.txt", "a%00.eml", "%2Fetc%2Fx.eml"]
)
def test_no_file_but_mails_is_shown(browser: FlaskClient, drop: Drop, folder: Path, name: str) -> None:
    drop("x")
    (folder / ".hidden.eml").write_text("x")
    shown(browser, "/")
    for address in (f"/{name}", f"/{name}/html", f"/{name}/source"):
        assert browser.get(address).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8002", "evil.example:8002", "[", "192.0.2.1"])
def test_a_foreign_name_that_leads_here_is_refused(browser: FlaskClient, drop: Drop, host: str) -> None:
    name = drop("secret", Subject="secret")
    for address in ("/", f"/{name}", f"/{name}/source", f"/{name}/html"):
        answer = browser.get(address, headers={"Host": host})
        assert answer.status_code in (400, 403)
        assert "secret" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8002", "localhost:8002", "localhost", "[::1]:8002"])
def test_the_names_of_this_machine_are_answered(browser: FlaskClient, host: str) -> None:
    assert browser.get("/", headers={"Host": host}).status_code == 200


def test_emptying_deletes_the_files_and_says_that_the_sink_is_empty(
    browser: FlaskClient, drop: Drop, folder: Path
) -> None:
    drop("x")
    drop("y")
    up_to = re.search(r'name="up_to" value="([^"]+)"', shown(browser, "/"))
    assert up_to
    late = drop("z")
    answer = browser.post("/empty", data={"up_to": up_to[1]}, headers=OURS)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
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
def test_a_form_of_another_site_empties_nothing(
    browser: FlaskClient, drop: Drop, folder: Path, headers: dict[str, str]
) -> None:
    name = drop("x")
    assert browser.post("/empty", data={"up_to": "~"}, headers=HOST | headers).status_code == 403
    assert browser.get("/empty").status_code in (404, 405)
    assert (folder / name).exists()


def test_every_page_keeps_to_itself(browser: FlaskClient, drop: Drop) -> None:
    name = drop(BOTH)
    for address in ("/", f"/{name}", f"/{name}/html", f"/{name}/source", "/none.eml"):
        headers = browser.get(address).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_an_index_that_cannot_be_written_is_said_in_one_sentence(
    browser: FlaskClient, drop: Drop, folder: Path
) -> None:
    drop("x")
    folder.with_name("mails.sqlite3").mkdir()
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "New emails are still received" in answer.text
