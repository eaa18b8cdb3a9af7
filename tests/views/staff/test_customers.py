"""Staff pages for customers, audiences, imports and exports."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text, update
from werkzeug.test import TestResponse

from tests.support.factories import MakeCustomer
from tests.support.imports import ImportFileFixture
from tests.support.sessions import start_session
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports.csv_rows import CUSTOMER_COLUMN_ALIASES, parse_header
from webapp.customers.imports.line_reader import LineReader
from webapp.customers.models import ImportChunk, RejectedRow
from webapp.customers.validation import CustomerValues
from webapp.offers.models import Offer
from webapp.redemptions import group_commit
from webapp.redemptions.rules import RedemptionRequest

HTMX = {"HX-Request": "true"}


def upload(client: FlaskClient, file: bytes, name: str = "customers.csv", **fields: str) -> TestResponse:
    data = {**fields, "file": (io.BytesIO(file), name)}
    return client.post("/customers/import", data=data, content_type="multipart/form-data")


# --- the list ------------------------------------------------------------------------------------


def test_an_empty_list_explains_the_first_step(staff: FlaskClient) -> None:
    page = staff.get("/customers").text

    assert "No customers yet" in page
    assert 'href="/customers/import"' in page


def test_the_list_can_be_searched_and_escapes_names(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", name="<b>Ada</b>")
    make_customer("grace@example.com", name="Grace")

    page = staff.get("/customers?q=ada").text

    assert "&lt;b&gt;Ada&lt;/b&gt;" in page
    assert "grace@example.com" not in page


def test_the_list_can_be_filtered_by_audience(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    vip = audience_actions.create_audience("VIP", by="tests")
    customer_actions.create_customer(CustomerValues("vip@example.com"), [vip.id], by="tests")
    make_customer("other@example.com")

    page = staff.get(f"/customers?audience={vip.id}").text

    assert "vip@example.com" in page
    assert "other@example.com" not in page
    assert f'href="/customers.csv?audience={vip.id}"' in page
    assert 'href="/customers.csv"' in staff.get("/customers").text


def test_the_list_shows_who_is_suppressed(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", suppressed="complained")
    make_customer("bob@example.com")

    page = staff.get("/customers").text

    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in page.partition("<tbody>")[2].split("</tr>")[:2]]
    assert [(row[0], "Complained" in row, "Allowed" in row) for row in rows] == [
        ("bob@example.com", False, True),
        ("ada@example.com", True, False),
    ]


@pytest.mark.parametrize("query", ["audience=x", "audience=99999999999999999999", "before=x", "q=%00", "after=-1"])
def test_invalid_list_parameters_are_ignored(staff: FlaskClient, query: str) -> None:
    assert staff.get(f"/customers?{query}").status_code == 200


def test_pages_are_linked_both_ways(
    staff: FlaskClient, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.views.staff.customers.PAGE_SIZE", 2)
    for n in range(5):
        make_customer(f"c{n}@example.com")
        make_customer(f"other{n}@example.com")

    def follow(url: str, rel: str) -> tuple[list[list[str]], str]:
        pages, last_url = [], url
        while url:
            page, last_url = staff.get(url).text, url
            pages.append(re.findall(r">(\w+)@example.com</bdi>", page))
            url = html.unescape(page.partition(f'rel="{rel}" href="')[2].partition('"')[0])
        return pages, last_url

    forward, last_url = follow("/customers?q=c", "next")
    back, first_url = follow(last_url, "prev")

    assert forward == [["c4", "c3"], ["c2", "c1"], ["c0"]]
    assert back == forward[::-1]
    assert 'rel="prev"' not in staff.get("/customers?q=c").text + staff.get(first_url).text


def test_estimated_numbers_are_shown_as_such(
    staff: FlaskClient, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vip = audience_actions.create_audience("VIP", by="tests")
    for n in range(3):
        customer_actions.create_customer(CustomerValues(f"c{n}@example.com"), [vip.id], by="tests")
    db.session.execute(text("analyze customer, audience_member"))
    db.session.commit()

    assert "About" not in staff.get("/customers").text + staff.get("/customers/audiences").text
    monkeypatch.setattr(customer_queries, "EXACT_COUNT_LIMIT", 3)
    assert "About 3 customers" in staff.get("/customers").text
    assert "About 3" in staff.get("/customers/audiences").text


# --- one customer --------------------------------------------------------------------------------


def test_a_customers_page_shows_redemptions_and_available_offers(
    staff: FlaskClient, make_customer: MakeCustomer, make_offer: Callable[..., Offer]
) -> None:
    ada = make_customer("ada@example.com", suppressed="unsubscribed")
    make_offer("SUMMER25", name="Summer")
    make_offer("WINTER10", name="Winter")
    group_commit.redeem(RedemptionRequest(channel="staff", code="SUMMER25", email="ada@example.com"))

    page = staff.get(f"/customers/{ada.id}").text

    assert (
        page.index(">Redemptions</h2>")
        < page.index("SUMMER25")
        < page.index("Available offers")
        < page.index("WINTER10")
    )
    assert "Unsubscribed" in page


def test_a_customers_page_shows_the_offers_that_end_soonest(
    staff: FlaskClient, make_customer: MakeCustomer, make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.views.staff.customers.MAX_USABLE_OFFERS_SHOWN", 1)
    now = datetime.now(UTC)
    for days, code in ((9, "LATE"), (2, "SOON"), (8, "LATER")):
        make_offer(code, ends_at=now + timedelta(days=days))

    page = staff.get(f"/customers/{make_customer('ada@example.com').id}").text

    assert [code in page for code in ("SOON", "LATE", "LATER")] == [True, False, False]
    assert "2 more offers are available" in page


@pytest.mark.parametrize("path", ["/customers/1", "/customers/99999999999999999999", "/customers/1/edit"])
def test_an_unknown_customer_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


def test_a_customer_is_created(staff: FlaskClient) -> None:
    vip = audience_actions.create_audience("VIP", by="tests")

    response = staff.post("/customers/new", data={"email": "Ada@example.com", "name": "Ada", "audiences": [vip.id]})

    ada = customer_queries.find_customer_by_email("ada@example.com")
    assert ada is not None
    assert response.headers["Location"] == f"/customers/{ada.id}"
    assert customer_queries.list_customer_audiences(ada.id)[0].name == "VIP"


def test_invalid_input_is_reported_and_kept(staff: FlaskClient) -> None:
    response = staff.post("/customers/new", data={"email": "nobody", "name": "Ada <i>", "source_id": "C1"})

    assert response.status_code == 422
    assert 'value="nobody"' in response.text
    assert 'value="Ada &lt;i&gt;"' in response.text
    assert "This email address is not valid." in response.text


def test_a_customer_is_updated(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", source_id="C1", locale="en")
    page = staff.get(f"/customers/{ada.id}/edit").text
    assert all(f'value="{value}"' in page for value in ("ada@example.com", "Ada Lovelace", "C1", "en"))

    staff.post(f"/customers/{ada.id}/edit", data={"email": "countess@example.com", "name": "Ada", "source_id": "C1"})

    db.session.expire_all()
    assert (ada.email, ada.source_id, ada.locale) == ("countess@example.com", "C1", None)


def test_saving_the_unchanged_form_changes_nothing(staff: FlaskClient) -> None:
    vip, _ = audience_actions.create_audience("VIP", by="tests"), audience_actions.create_audience("News", by="tests")
    values = CustomerValues("Ada@Example.com", "Ada", "en-GB", "C1")
    ada = customer_actions.create_customer(values, [vip.id], by="tests")
    page = staff.get(f"/customers/{ada.id}/edit").text
    inputs = [dict(re.findall(r'(\w+)="([^"]*)"', tag)) | {"tag": tag} for tag in re.findall(r"<input[^>]*>", page)]
    form = {item["name"]: item.get("value", "") for item in inputs if item.get("type") != "checkbox" and "name" in item}
    checked = [item["value"] for item in inputs if re.search(r"\bchecked\b", item["tag"])]

    response = staff.post(f"/customers/{ada.id}/edit", data={**form, "audiences": checked})

    assert response.status_code == 302
    assert checked == [str(vip.id)]
    assert "customer.changed" not in db.session.scalars(select(AuditEntry.action)).all()


def test_viewers_can_read_but_not_create_import_or_export(
    sign_in: Callable[..., FlaskClient], make_customer: MakeCustomer
) -> None:
    ada = make_customer("ada@example.com")
    viewer = sign_in("viewer")

    assert viewer.get(f"/customers/{ada.id}").status_code == 200
    for path in ("/customers/new", f"/customers/{ada.id}/edit", "/customers/import", "/customers.csv"):
        assert viewer.get(path).status_code == 403
    assert upload(viewer, b"email\na@example.com\n").status_code == 403


# --- audiences -----------------------------------------------------------------------------------


def test_audiences_are_created_and_renamed(staff: FlaskClient) -> None:
    staff.post("/customers/audiences", data={"name": "VIP"})
    vip = customer_queries.find_audience_by_name("VIP")
    assert vip is not None
    assert 'value="VIP"' in staff.get(f"/customers/audiences/{vip.id}").text

    staff.post(f"/customers/audiences/{vip.id}", data={"name": "Regulars"})

    assert "Regulars" in staff.get("/customers/audiences").text


def test_an_existing_audience_name_is_rejected(staff: FlaskClient) -> None:
    audience_actions.create_audience("VIP", by="tests")

    response = staff.post("/customers/audiences", data={"name": "VIP"})

    assert response.status_code == 422
    assert "An audience with this name already exists." in response.text


# --- uploads -------------------------------------------------------------------------------------


def test_an_upload_is_queued_and_redirects_to_its_import(staff: FlaskClient) -> None:
    response = upload(staff, b"email,name\nada@example.com,Ada\n", audience="VIP")

    row = import_queries.list_imports()[0]
    assert response.status_code == 302
    assert response.headers["Location"] == f"/customers/imports/{row.id}"
    assert (row.status, row.filename, row.by) == ("queued", "customers.csv", "manager@example.com")
    [audience] = customer_queries.list_audiences()
    assert (audience.id, audience.name) == (row.audience_id, "VIP")
    assert "Audience: VIP." in staff.get(f"/customers/imports/{row.id}").text


def test_the_form_for_an_audience_names_it(staff: FlaskClient) -> None:
    assert 'value="New &amp; old"' in staff.get("/customers/import?audience=New+%26+old").text


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        (b"", "", "Choose a file."),
        (b"", "empty.csv", "The file is empty."),
        (b"\xff\xd8\xff\xe0 picture", "me.jpg", "This is not a text file."),
        (b"ada@example.com,Ada\n", "a.csv", "The first row must contain the column names"),
        (b"name\nAda\n", "a.csv", "There is no column named email."),
    ],
)
def test_an_invalid_file_is_reported_and_the_rest_kept(
    staff: FlaskClient, file: bytes, name: str, message: str
) -> None:
    response = upload(staff, file, name, audience="My audience")

    assert response.status_code == 422
    assert message in response.text
    assert 'value="My audience"' in response.text
    assert import_queries.list_imports() == []


def test_a_file_that_is_too_large_is_rejected(staff: FlaskClient, with_settings: Callable[..., Settings]) -> None:
    with_settings(max_upload_bytes=1024 * 1024)

    response = upload(staff, b"email\n" + b"ada@example.com\n" * 100_000)

    assert response.status_code == 413
    assert "larger than 1 MB" in response.text
    assert import_queries.list_imports() == []


def test_any_file_name_is_accepted(staff: FlaskClient) -> None:
    responses = [upload(staff, b"email\nada@example.com\n", name) for name in ("a\0b.csv", "x" * 3000 + ".csv")]

    assert [response.status_code for response in responses] == [302, 302]
    assert [row.filename for row in import_queries.list_imports()] == ["x" * 200, "ab.csv"]
    assert set(db.session.scalars(select(AuditEntry.subject))) == {"x" * 200, "ab.csv"}


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("people.html", b"email\nada@example.com\n", "Choose a file whose name ends in one of these: .csv, .tsv, .txt"),
        ("people", b"email\nada@example.com\n", "Choose a file whose name ends in one of these"),
        ("people.xlsx", b"PK\x03\x04" + bytes(200), "This is an Excel workbook."),
        ("people.csv", b"PK\x03\x04" + bytes(200), "This is an Excel workbook."),
    ],
)
@pytest.mark.parametrize("path", ["/customers/import", "/customers/do-not-mail/import"])
def test_a_file_of_another_type_is_rejected(
    staff: FlaskClient, path: str, name: str, file: bytes, message: str
) -> None:
    response = staff.post(path, data={"file": (io.BytesIO(file), name)})

    assert response.status_code == 422
    assert message in response.text
    assert import_queries.list_imports() == []


@pytest.mark.parametrize("name", ["A.CSV", "a.tsv", "a.txt", "a.ndjson", "a.jsonl", "A.JSONL"])
def test_text_files_are_accepted(staff: FlaskClient, name: str) -> None:
    is_json = name.lower().endswith(("ndjson", "jsonl"))
    file = b'{"email": "ada@example.com"}' if is_json else b"email\nada@example.com\n"

    assert upload(staff, file, name).status_code == 302


def test_a_large_file_is_stored_unchanged_in_chunks(staff: FlaskClient) -> None:
    lines = b"".join(b"customer%d@example.com,%s\n" % (n, b"x" * (n % 190)) for n in range(30_000))
    file = b"email,name\n" + lines

    upload(staff, file)

    chunks = list(db.session.scalars(select(ImportChunk.data).order_by(ImportChunk.seq)))
    assert len(chunks) > 2
    assert b"".join(chunks) == file


def test_an_interrupted_upload_is_rejected(staff: FlaskClient) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nemail\r\nada@example.com\r\n'
        b"bob@example"
    )

    response = staff.post("/customers/import", data=body, content_type="multipart/form-data; boundary=x")

    assert response.status_code == 400
    assert "upload was interrupted" in response.text
    assert [row.status for row in import_queries.list_imports() if row.status != "failed"] == []


@pytest.mark.parametrize("content_type", ["multipart/form-data", "text/csv", "application/x-www-form-urlencoded"])
def test_a_request_without_a_file_is_rejected(staff: FlaskClient, content_type: str) -> None:
    assert staff.post("/customers/import", data=b"audience=x", content_type=content_type).status_code == 400


def test_an_upload_needs_the_csrf_token(csrf_client: FlaskClient, make_staff_user: Callable[..., StaffUser]) -> None:
    start_session(csrf_client, make_staff_user("manager"))
    page = csrf_client.get("/customers/import").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    file = b"email\nada@example.com\n"

    refused = [
        upload(csrf_client, file),
        upload(csrf_client, file, csrf_token="wrong"),
        csrf_client.post(
            "/customers/import",
            data=b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
            + file
            + b'\r\n--x\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n'
            + token.encode()
            + b"\r\n--x--\r\n",
            content_type="multipart/form-data; boundary=x",
        ),
    ]
    accepted = upload(csrf_client, file, csrf_token=token)

    # The last one had the right token, but after the file.
    assert [response.status_code for response in refused] == [400, 400, 400]
    assert accepted.status_code == 302


def test_every_column_name_on_the_import_page_is_accepted(staff: FlaskClient) -> None:
    page = html.unescape(staff.get("/customers/import").text)
    columns = re.findall(r"<code>(\w+)</code>\s*</td>\s*<td>\s*[^<]*Also accepted: ([^<]*)\.\s*</td>", page)
    accepted = {column: [column, *names.split(", ")] for column, names in columns}

    assert list(accepted) == ["email", "name", "first_name", "last_name", "source_id", "locale", "audience"]
    assert {"E-Mail-Adresse", "Vorname", "Nachname", "Kundennummer", "Sprache"} <= set(chain(*accepted.values()))
    for column, names in accepted.items():
        for name in names:
            header = name if column == "email" else f"email,{name}"
            layout = parse_header(LineReader([f"{header}\n".encode()]), CUSTOMER_COLUMN_ALIASES)
            assert set(layout.columns) == {"email", column}


def test_the_sample_file_can_be_imported(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file(staff.get("/customers/import/sample.csv").data)

    assert (row.created, row.rejected) == (2, 0)


# --- import pages --------------------------------------------------------------------------------


def test_the_numbers_of_the_list_of_imports_add_up(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    import_file("email,name\nada@example.com,Ada\nbob@example.com,Bob\n")
    row = import_file(
        "email,name\nada@example.com,Ada\nbob@example.com,Bo\ncid@example.com,\ncid@example.com,Cid\nno address,\n"
    )
    page = staff.get("/customers/imports").text

    table_row = page.partition(f'href="/customers/imports/{row.id}"')[2].partition("</tr>")[0]
    rows, *parts = map(int, re.findall(r'<td class="num[^"]*">(\d+)</td>', table_row))
    assert (rows, parts) == (5, [1, 1, 1, 1, 1])
    headings = re.findall(r"<th[^>]*>(\w+)</th>", page)
    assert headings[-6:] == ["Rows", "Created", "Updated", "Unchanged", "Duplicates", "Rejected"]


def test_an_import_whose_rows_were_all_rejected_is_no_success(
    staff: FlaskClient, import_file: ImportFileFixture
) -> None:
    row = import_file("email\nno address\nnor this\n")
    page, listed = staff.get(f"/customers/imports/{row.id}").text, staff.get("/customers/imports").text

    assert "No row was imported: all rows were rejected." in page
    table_row = listed.partition(f'href="/customers/imports/{row.id}"')[2].partition("</tr>")[0]
    assert "Rejected" in table_row
    assert "Done" not in table_row
    assert "Done" not in page
    assert "Customers imported" not in page
    assert "Show customers" not in page
    assert "Import another file" in page


def test_an_import_with_some_rejected_rows_is_done(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email\nno address\nada@example.com\n")
    page = staff.get(f"/customers/imports/{row.id}").text

    assert "all rows were rejected" not in page
    assert "Done" in page
    assert "Show customers" in page
    assert "Import another file" not in page


def test_the_page_of_an_import_leads_to_its_audience(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    done = import_file("email\nada@example.com\n", audience="VIP")
    rejected = import_file("email\nbad\n", audience="VIP")

    pages = [staff.get(f"/customers/imports/{row.id}").text for row in (done, rejected)]

    assert f'href="/customers?audience={done.audience_id}"' in pages[0]
    assert 'href="/customers/import?audience=VIP"' in pages[1]


def test_the_page_of_a_running_import_shows_its_step(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email\nno address\nada@example.com\nbob@example.com\n")
    row.status, row.finished_at, row.created = "running", None, 1
    db.session.commit()
    merging = staff.get(f"/customers/imports/{row.id}").text
    row.merged_to, row.size, row.read = None, 4096, 1024
    db.session.commit()
    reading = staff.get(f"/customers/imports/{row.id}").text

    assert "Step 2 of 2: customers imported" in merging
    assert 'max="2" value="1"' in merging
    assert "Step 1 of 2: reading the file (kB)" in reading
    assert 'max="4" value="1"' in reading
    # Rejected rows are listed when all are known.
    assert "no address" not in merging + reading


def test_the_page_of_a_failed_import_says_why(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email\n" + "\n" * 70_000)

    assert "The file has a header but no rows." in staff.get(f"/customers/imports/{row.id}").text


def test_the_page_of_an_import_shows_its_speed(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email\nada@example.com\nbob@example.com\n")
    assert row.started_at is not None
    row.finished_at = row.started_at + timedelta(seconds=1)
    db.session.commit()

    assert "2 rows per second." in staff.get(f"/customers/imports/{row.id}").text


def test_the_page_of_an_unfinished_import_polls(staff: FlaskClient, receive_file: Callable[..., int]) -> None:
    import_id = receive_file("email\nada@example.com\n")

    fragment = staff.get(f"/customers/imports/{import_id}", headers=HTMX).text

    assert fragment.strip().startswith('<div id="import-card"')
    assert "hx-trigger" in fragment


def test_the_page_of_a_finished_import_lists_rejected_rows(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email,name\nada@example.com,Ada\nbad,<script>\nADA@example.com,Ada\n")

    fragment = staff.get(f"/customers/imports/{row.id}", headers=HTMX).text

    assert "hx-trigger" not in fragment
    assert 'max="1" value="1"' in fragment
    assert "bad,&lt;script&gt;" in fragment
    assert "Check it for typing errors" in fragment
    assert "arnings" not in fragment


def test_the_page_of_an_import_with_warnings_explains_them(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file("email,locale\nada@example.com,klingon\n")

    fragment = staff.get(f"/customers/imports/{row.id}", headers=HTMX).text

    assert "Rejected rows and warnings" in fragment
    assert "Rows with warnings were imported." in fragment


def test_rejected_rows_are_shown_in_pages(
    staff: FlaskClient, import_file: ImportFileFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.views.staff.imports.PAGE_SIZE", 2)
    row = import_file("email\nbad1\nbad2\nbad3\n")

    first = staff.get(f"/customers/imports/{row.id}").text
    next_page = first.split('rel="next" href="', 1)[1].split('"', 1)[0]
    second = staff.get(next_page).text

    assert "bad3" not in first
    assert "First page" not in first
    assert "bad3" in second
    assert "First page" in second
    assert 'rel="prev"' not in second


def test_the_list_of_imports_links_to_its_first_page(
    staff: FlaskClient, import_file: ImportFileFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.views.staff.imports.PAGE_SIZE", 2)
    ids = [import_file("email\nada@example.com\n").id for _index in range(3)]

    first_page = staff.get("/customers/imports").text
    last_page = staff.get(first_page.partition('rel="next" href="')[2].partition('"')[0]).text

    listed = [re.findall(r'href="/customers/imports/(\d+)"', page) for page in (first_page, last_page)]
    assert listed == [[str(ids[2]), str(ids[1])], [str(ids[0])]]
    assert 'rel="next"' not in last_page
    assert re.search(r'href="/customers/imports">\s*<svg.*</svg>\s*First page', last_page, re.DOTALL)
    assert 'rel="prev"' not in last_page


def test_rejected_rows_are_downloaded_with_their_reasons(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    row = import_file('email,name\n"=bad","x\ny"\n')

    response = staff.get(f"/customers/imports/{row.id}/rejected.csv")
    rows = list(csv.reader(io.StringIO(response.text)))

    assert response.headers["Content-Disposition"] == f'attachment; filename="import-{row.id}-rejected.csv"'
    assert rows[0] == ["line", "code", "detail", "row"]
    assert rows[1][:2] == ["2", "email_invalid"]
    assert rows[1][3] == '"=bad","x\ny"'


@pytest.mark.parametrize("sign", list("=+-@\t\r"))
def test_downloaded_rejected_rows_contain_no_formula(
    staff: FlaskClient, import_file: ImportFileFixture, sign: str
) -> None:
    row = import_file("email\nbad\n")
    db.session.execute(update(RejectedRow).values(row=f"{sign}1"))
    db.session.commit()

    file = staff.get(f"/customers/imports/{row.id}/rejected.csv").text

    assert next(csv.DictReader(io.StringIO(file, newline="")))["row"] == f"'{sign}1"


def test_viewers_cannot_download_rejected_rows(
    sign_in: Callable[..., FlaskClient], import_file: ImportFileFixture
) -> None:
    row = import_file("email\nbad\n")
    viewer = sign_in("viewer")

    assert viewer.get(f"/customers/imports/{row.id}/rejected.csv").status_code == 403
    assert "rejected.csv" not in viewer.get(f"/customers/imports/{row.id}").text


def test_imports_are_listed(staff: FlaskClient, import_file: ImportFileFixture) -> None:
    assert "No imports yet" in staff.get("/customers/imports").text

    import_file("email\nada@example.com\n")

    assert "customers.csv" in staff.get("/customers/imports").text


@pytest.mark.parametrize("path", ["/customers/imports/7", "/customers/imports/7/rejected.csv"])
def test_an_unknown_import_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


# --- exports -------------------------------------------------------------------------------------


def test_an_export_can_be_imported_and_contains_no_formula(
    staff: FlaskClient, make_customer: MakeCustomer, import_file: ImportFileFixture
) -> None:
    make_customer("ada@example.com", name='=HYPERLINK("http://evil")', source_id="@C1", locale="en")
    make_customer("grace@example.com", name='-Grace, "G"', source_id="+2")
    make_customer("joan@example.com", name="＝1+1", source_id="＠C3")

    file = staff.get("/customers.csv").data

    cells = list(csv.reader(io.StringIO(file.decode())))
    assert not any(cell.startswith(tuple("=@+-＝＠＋－")) for row in cells for cell in row)
    assert import_file(file).unchanged == 3


def test_an_export_of_an_audience_lists_its_members_and_is_audited(
    staff: FlaskClient, make_customer: MakeCustomer
) -> None:
    vip, news = (audience_actions.create_audience(name, by="tests") for name in ("VIP", "News"))
    customer_actions.create_customer(CustomerValues("vip@example.com"), [vip.id], by="tests")
    customer_actions.create_customer(CustomerValues("other@example.com"), [news.id], by="tests")
    make_customer("another@example.com")

    file = staff.get(f"/customers.csv?audience={vip.id}").text

    assert re.findall(r"\w+@example.com", file) == ["vip@example.com"]
    assert db.session.query(AuditEntry).filter_by(action="customers.exported", subject="VIP").count() == 1


@pytest.mark.parametrize("audience", ["x", "0", "99999999999999999999"])
def test_an_export_of_an_unknown_audience_is_not_an_export_of_all(staff: FlaskClient, audience: str) -> None:
    assert staff.get(f"/customers.csv?audience={audience}").status_code == 404
