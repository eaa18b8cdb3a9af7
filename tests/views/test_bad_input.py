"""Invalid input on all interfaces: refused, no server error, nothing written.

Further refusals of single forms and operations are tested beside their views.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from markupsafe import escape
from sqlalchemy import text
from wtforms import Form

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.core.extensions import db
from webapp.core.formatting import format_rfc3339
from webapp.customers.models import Customer
from webapp.views.api.schemas.offers import NewOffer

CODES = {
    "10 kB": "SUMMER25" * 1280,
    "NUL": "SUMMER\x0025",
    "bell": "SUMMER25\x07",
    "escape": "\x1b[2JSUMMER25",
    "delete": "SUMMER25\x7f",
    "Turkish capital İ": "WİNTER25",
    "emoji": "SUMMER25🎉",
    "right to left": "\u202eSUMMER25",
    "Hebrew": "קיץ25",
    "Arabic digits": "SUMMER٢٥",
    "zero width": "SUMMER\u200b25",
    "combining": "SU\u0301MMER25",
    "only dashes": "---",
    "quotes": "SUMMER25'\"--",
    "markup": "<b>SUMMER25</b>",
}
EMAILS = {
    "quoted": '"ada lovelace"@example.com',
    "a quote": 'ada"@example.com',
    "300 characters": f"{'a' * 288}@example.com",
    "long local part": f"{'a' * 65}@example.com",
    "long label": f"ada@{'a' * 64}.com",
    "space inside": "ada lovelace@example.com",
    "several @": "ada@home@example.com",
    "no @": "ada.example.com",
    "no local part": "@example.com",
    "no domain": "ada@",
    "no dot": "ada@localhost",
    "address": "ada@[127.0.0.1]",
    "dots": "ada..l@example.com",
    "NUL": "ada\0@example.com",
    "line": "ada\r\nBcc: all@example.com",
    "bad A-label": "ada@xn--a.example",
    "emoji": "ada@🎉.example",
    "right to left": "ada\u202e@example.com",
    "list": "ada@example.com,bob@example.com",
    "markup": "<script>@example.com",
}


@pytest.fixture(autouse=True)
def offers_and_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """Offers and a customer that a valid request could use."""
    make_offer(), make_offer("WINTER25", discount_type="amount", amount=500, currency="EUR")
    make_customer(source_id="C-1")


@pytest.fixture(autouse=True)
def cleo(make_customer: MakeCustomer) -> Customer:
    """A customer whose domain is not ASCII."""
    return make_customer("cleo@bücher.example")


@pytest.fixture(autouse=True)
def nothing_is_written(offers_and_customer: None, cleo: Customer) -> Iterator[None]:
    before = count_rows()
    yield
    assert count_rows() == before


COUNTED = ("redemption", "rollback", "offer", "customer", "campaign", "audience")
COUNTS = (
    "select (select count(frozen_at) from offer) as frozen, "
    + ", ".join(f"(select count(*) from {name}) as {name}" for name in COUNTED)
)  # fmt: skip


def count_rows() -> dict[str, int]:
    """Count the rows of every table that a request could write, and the frozen offers."""
    db.session.rollback()
    return dict(db.session.execute(text(COUNTS)).one()._mapping)


def cases(values: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("value", values.values(), ids=values.keys())


def redeem(api: Any, body: object, **headers: str) -> Any:
    return api.post("/api/v1/redemptions", data=json.dumps(body), content_type="application/json", headers=headers)


def pointers(response: Any) -> list[str]:
    assert response.mimetype == "application/problem+json", response.text
    assert response.status_code == 422, response.text
    assert response.json["code"] == "invalid_payload"
    assert all(error["detail"] and error["code"] for error in response.json["errors"])
    return [error["pointer"] for error in response.json["errors"]]


BODY: dict[str, Any] = {
    "code": "SUMMER25",
    "customer": {"email": "ada@example.com"},
    "order": {"id": "A-1", "amount": 5255, "currency": "EUR"},
    "metadata": {"till": 7},
}


def body_with(path: str, value: object) -> dict[str, Any]:
    """A copy of the body with another value at a path."""
    body = deepcopy(BODY)
    *parents, last = path.strip("/").split("/")
    parent = body
    for name in parents:
        parent = parent[name]
    parent[last] = value
    return body


# --- codes ----------------------------------------------------------------------------------------


@cases(CODES | {"lone surrogate": "\ud800", "number": 25, "truth": True, "null": None, "list": ["SUMMER25"]})
@pytest.mark.parametrize("path", ["redemptions", "validations"])
def test_an_invalid_code_is_rejected_with_a_pointer(api: Any, path: str, value: object) -> None:
    body = {"code": value, "customer": {"email": "ada@example.com"}}

    assert pointers(api.post(f"/api/v1/{path}", json=body)) == ["/code"]


def _code_error(code: str) -> str:
    return "This code is too long." if len(code) > 80 else "only have letters from A to Z"


@cases(CODES)
def test_an_invalid_code_is_reported_at_its_field(client: FlaskClient, value: str) -> None:
    response = client.post("/redeem", data={"code": value, "email": "ada@example.com"})

    assert response.status_code == 422
    assert _code_error(value) in response.text
    assert 'value="ada@example.com"' in response.text
    assert str(escape(value)) in response.text


@cases(CODES)
def test_an_invalid_code_is_reported_to_staff_at_its_field(staff: FlaskClient, value: str) -> None:
    response = staff.post("/redemptions/new", data={"code": value, "email": "ada@example.com"})

    assert response.status_code == 422
    assert _code_error(value) in response.text
    assert 'value="ada@example.com"' in response.text
    assert str(escape(value)) in response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/v1/offers/{}", 404), ("/redeem?code={}", 200), ("/r/{}", 404), ("/api/v1/redemptions/{}", 404)],
)
@cases(CODES | {"broken UTF-8": b"\xff\xfe", "surrogate": b"\xed\xa0\x80"})
def test_a_url_with_an_invalid_code_is_no_server_error(api: Any, path: str, status: int, value: Any) -> None:
    assert api.get(path.format(quote(value))).status_code == status


ACCEPTED_CODES = {
    "wide letters": "ＳＵＭＭＥＲ２５",
    "spaces and dashes": " summer–2 5 ",
    "no-break space": "SUMMER\u00a025",
    "old s": "\u017fummer25",
    "circled": "Ⓢummer25",
}


@cases(ACCEPTED_CODES)
def test_equivalent_spellings_of_a_code_are_accepted(api: Any, value: str) -> None:
    response = api.post("/api/v1/validations", json={"code": value, "customer": {"email": "ada@example.com"}})

    assert (response.json["valid"], response.json["code"]) == (True, "SUMMER25")


def test_a_dotless_i_is_accepted_as_i(api: Any) -> None:
    response = api.post("/api/v1/validations", json={"code": "wınter25", "customer": {"email": "ada@example.com"}})

    assert response.json["code"] == "WINTER25"


# --- e-mails --------------------------------------------------------------------------------------


@cases(EMAILS | {"lone surrogate": "\ud800@example.com", "number": 5, "truth": True, "list": ["ada@example.com"]})
@pytest.mark.parametrize("path", ["redemptions", "validations"])
def test_an_invalid_email_is_rejected_with_a_pointer(api: Any, path: str, value: object) -> None:
    body = {"code": "SUMMER25", "customer": {"email": value}}

    assert pointers(api.post(f"/api/v1/{path}", json=body)) == ["/customer/email"]


@cases(EMAILS)
@pytest.mark.parametrize("path", ["/redeem", "/redemptions/new"])
def test_an_invalid_email_is_reported_at_its_field(staff: FlaskClient, path: str, value: str) -> None:
    response = staff.post(path, data={"code": "SUMMER25", "email": value})

    assert response.status_code == 422
    assert "This email address is not valid" in response.text
    assert 'value="SUMMER25"' in response.text
    assert str(escape(value)).splitlines()[0] in response.text


@cases(EMAILS)
def test_a_customer_with_an_invalid_email_is_rejected(api: Any, value: str) -> None:
    assert pointers(api.put("/api/v1/customers/C-9", json={"email": value})) == ["/email"]


@pytest.mark.parametrize(
    "value",
    [
        "cleo@bücher.example",
        "cleo@BU\u0308CHER.example",
        "cleo@xn--bcher-kva.example",
        "  CLEO@Bücher.EXAMPLE\t",
        "cleo@bücher。example",
    ],
)
def test_equivalent_spellings_of_a_domain_are_accepted(api: Any, value: str) -> None:
    response = api.post("/api/v1/validations", json={"code": "SUMMER25", "customer": {"email": value}})

    assert response.json["valid"]


# --- money ----------------------------------------------------------------------------------------


@cases(
    {
        "negative": -1,
        "huge": 10**30,
        "fraction": 12.5,
        "whole fraction": 5255.0,
        "text": "5255",
        "truth": True,
        "list": [5255],
        "object": {"minor": 5255},
    }
)
@pytest.mark.parametrize("path", ["redemptions", "validations"])
def test_an_amount_is_a_whole_number_of_minor_units(api: Any, path: str, value: object) -> None:
    body = body_with("/order/amount", value)
    del body["metadata"]

    assert pointers(api.post(f"/api/v1/{path}", json=body)) == ["/order/amount"]


@cases({"lower case": "eur", "sign": "€", "four": "EURO", "wide": "ＥＵＲ", "NUL": "EU\0", "number": 978, "empty": ""})
def test_a_currency_is_three_capital_letters(api: Any, value: object) -> None:
    assert pointers(redeem(api, body_with("/order/currency", value))) == ["/order/currency"]


@pytest.mark.parametrize("order", [{"id": "A-1", "amount": 900, "currency": "USD"}, {"id": "A-1", "amount": 900}])
def test_an_amount_discount_refuses_orders_in_another_currency(api: Any, order: dict[str, Any]) -> None:
    body = {"code": "WINTER25", "customer": {"email": "ada@example.com"}, "order": order}

    assert pointers(redeem(api, body)) == ["/order/currency"]
    assert pointers(api.post("/api/v1/validations", json=body)) == ["/order/currency"]


# --- bodies ---------------------------------------------------------------------------------------


def nest(levels: int) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(levels):
        nested = {"a": nested}
    return nested


@cases(
    {
        "1 MB": {"a": "x" * 2**20},
        "50 levels": nest(50),
        "lists in lists": {"a": [[[[[[[[1]]]]]]]]},
        "9,000 keys": {str(n): n for n in range(9_000)},
        "NUL": {"a": "x\0"},
        "lone surrogate": {"\udfff": 1},
        "huge number": {"a": 10**400},
        "list": [1],
        "text": "x",
    }
)
def test_metadata_is_small_and_shallow(api: Any, value: object) -> None:
    assert set(pointers(redeem(api, body_with("/metadata", value)))) == {"/metadata"}


RAW: dict[str, tuple[str | bytes, tuple[int, ...]]] = {
    "nothing": ("", (400, 422)),
    "no JSON": ("{code: SUMMER25}", (400,)),
    "half": ('{"code": "SUMMER25"', (400,)),
    "NaN": (json.dumps(BODY).replace("7}", "NaN}"), (400,)),
    "infinity": (json.dumps(BODY).replace("5255", "1e999"), (400, 422)),
    "100,000 levels": ("[" * 100_000, (400,)),
    "100,000 values": (json.dumps(list(range(100_000))), (413,)),
    "5,000 digits": (json.dumps(BODY).replace("5255", "9" * 5000), (400, 422)),
    "list": (json.dumps([BODY]), (422,)),
    "null": ("null", (422,)),
    "broken UTF-8": (json.dumps(BODY).encode().replace(b"SUMMER", b"\xff\xfe"), (400,)),
    "a name twice": (json.dumps(BODY)[:-1] + ', "code": "WINTER25"}', (400,)),
    "a name twice inside": (json.dumps(BODY).replace('"till": 7', '"till": 7, "till": 8'), (400,)),
    "two bodies": (json.dumps(BODY) * 2, (400,)),
    "3 MB": (json.dumps(BODY | {"metadata": {"a": "x" * 3 * 2**20}}), (413,)),
    "3 MB of blanks": (" " * 3 * 2**20, (413,)),
}


@pytest.mark.parametrize(("body", "statuses"), RAW.values(), ids=RAW.keys())
@pytest.mark.parametrize("path", ["redemptions", "validations", "offers"])
def test_an_unreadable_body_is_a_problem(api: Any, path: str, body: str | bytes, statuses: tuple[int, ...]) -> None:
    response = api.post(f"/api/v1/{path}", data=body, content_type="application/json")

    assert response.status_code in statuses
    assert response.mimetype == "application/problem+json"
    assert response.json["detail"]


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "", "x/\0"]
)
def test_another_content_type_is_rejected(api: Any, media_type: str) -> None:
    response = api.post("/api/v1/redemptions", data=json.dumps(BODY), content_type=media_type)

    assert (response.status_code, response.json["code"]) == (415, "unsupported_media_type")


@cases({"empty": "", "300 characters": "k" * 300, "not ASCII": "schlüssel", "tab": "a\tb", "blank": "\u00a0"})
def test_an_invalid_idempotency_key_is_rejected(api: Any, value: str) -> None:
    response = redeem(api, BODY, **{"Idempotency-Key": value})
    assert pointers(response) == ["/Idempotency-Key"]
    assert [error["header"] for error in response.json["errors"]] == ["Idempotency-Key"]


WRONG_TYPES = [5, 1.5, True, "", "\ud800", [], [1], {}, {"x": 1}]


@pytest.mark.parametrize("path", ["/customer", "/order", "/order/id", "/customer/email", "/metadata", "/code"])
def test_a_wrong_type_is_reported_with_its_pointer(api: Any, path: str) -> None:
    for value in WRONG_TYPES:
        if path == "/metadata" and isinstance(value, dict):
            continue
        response = redeem(api, body_with(path, value))
        assert all(pointer.startswith(path) for pointer in pointers(response)), value


@pytest.mark.parametrize("path", ["/x", "/order/x", "/customer/x"])
def test_an_unknown_field_is_rejected(api: Any, path: str) -> None:
    assert pointers(redeem(api, body_with(path, 1))) == [path]


# --- offers ---------------------------------------------------------------------------------------


NEW: dict[str, Any] = {"name": "Autumn", "discount": {"type": "percent", "percent": "25"}}


def amount(value: object, currency: object = "EUR") -> dict[str, Any]:
    return {"discount": {"type": "amount", "amount": value, "currency": currency}}


def percent(value: object) -> dict[str, Any]:
    return {"discount": {"type": "percent", "percent": value}}


OFFERS: dict[str, tuple[dict[str, Any], str]] = {
    **{f"code {name}": ({"code": code}, "/code") for name, code in CODES.items()},
    "negative amount": (amount(-500), "/discount/amount"),
    "no amount": (amount(0), "/discount/amount"),
    "huge amount": (amount(10**30), "/discount/amount"),
    "fraction of a cent": (amount(5.5), "/discount/amount"),
    "whole fraction": (amount(500.0), "/discount/amount"),
    "amount as text": (amount("500"), "/discount/amount"),
    "amount true": (amount(True), "/discount/amount"),
    "small currency": (amount(500, "eur"), "/discount/currency"),
    "no currency": (amount(500, "QQQ"), "/discount/currency"),
    "percent as number": (percent(25), "/discount/percent"),
    "percent 0": (percent("0"), "/discount/percent"),
    "percent 101": (percent("101"), "/discount/percent"),
    "percent negative": (percent("-5"), "/discount/percent"),
    "percent with three decimals": (percent("12.345"), "/discount/percent"),
    "percent NaN": (percent("NaN"), "/discount/percent"),
    "percent in Arabic digits": (percent("٢٥"), "/discount/percent"),
    "both": ({"discount": {"type": "percent", "percent": "5", "amount": 5, "currency": "EUR"}}, "/discount"),
    "no zone": ({"starts_at": "2026-06-01T00:00:00"}, "/starts_at"),
    "a day": ({"starts_at": "2026-06-01"}, "/starts_at"),
    "seconds since 1970": ({"starts_at": 1780000000}, "/starts_at"),
    "no such day": ({"ends_at": "2026-02-30T00:00:00Z"}, "/ends_at"),
    "a leap second": ({"ends_at": "2026-06-30T23:59:60Z"}, "/ends_at"),
    "before the calendar": ({"starts_at": "0001-01-01T00:00:00+14:00"}, "/starts_at"),
    "after the calendar": ({"ends_at": "9999-12-31T23:59:59-14:00"}, "/ends_at"),
    "Arabic digits": ({"starts_at": "٢٠٢٦-06-01T00:00:00Z"}, "/starts_at"),
    "end before start": ({"starts_at": "2026-06-02T00:00:00Z", "ends_at": "2026-06-01T00:00:00Z"}, "/ends_at"),
    "zone": ({"time_zone": "Mars/Olympus"}, "/time_zone"),
    "zone path": ({"time_zone": "../../etc/passwd"}, "/time_zone"),
    "zone NUL": ({"time_zone": "UTC\0"}, "/time_zone"),
    "cap 0": ({"max_redemptions": 0}, "/max_redemptions"),
    "cap negative": ({"max_redemptions": -1}, "/max_redemptions"),
    "cap huge": ({"max_redemptions": 10**30}, "/max_redemptions"),
    "cap true": ({"max_redemptions": True}, "/max_redemptions"),
    "cap fraction": ({"max_redemptions": 10.0}, "/max_redemptions"),
    "name empty": ({"name": " "}, "/name"),
    "name long": ({"name": "x" * 10_000}, "/name"),
    "name NUL": ({"name": "a\0"}, "/name"),
    "name lines": ({"name": "a\nb"}, "/name"),
    "name surrogate": ({"name": "\ud800"}, "/name"),
    "audience": ({"audience": "Nobody"}, "/audience"),
    "audience NUL": ({"audience": "a\0"}, "/audience"),
    "audience surrogate": ({"audience": "\ud800"}, "/audience"),
    "mail surrogate": ({"mail": {"subject": "\ud800"}}, "/mail/subject"),
    "personal as text": ({"personal_code_required": "yes"}, "/personal_code_required"),
    "unknown": ({"price": 5}, "/price"),
}


@pytest.mark.parametrize(("changes", "pointer"), OFFERS.values(), ids=OFFERS.keys())
def test_an_invalid_offer_is_rejected_with_a_pointer(api: Any, changes: dict[str, Any], pointer: str) -> None:
    assert pointer in pointers(api.post("/api/v1/offers", json=NEW | changes))
    if "mail" not in changes:
        assert pointer in pointers(api.patch("/api/v1/offers/SUMMER25", json=changes))


@pytest.mark.parametrize(
    ("timestamp", "utc"),
    [
        ("2026-03-29T02:30:00+01:00", "2026-03-29T01:30:00Z"),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00Z"),
        ("2026-10-25T02:30:00+01:00", "2026-10-25T01:30:00Z"),
        ("2026-10-25t02:30:00.5z", "2026-10-25T02:30:00.500000Z"),
    ],
)
def test_a_time_with_an_offset_is_converted_to_utc(timestamp: str, utc: str) -> None:
    body = NewOffer.model_validate(NEW | {"starts_at": timestamp, "time_zone": "Europe/Berlin"})

    assert format_rfc3339(body.starts_at) == utc


FORM = {
    "name": "Autumn",
    "code": "AUTUMN25",
    "discount_type": "percent",
    "discount_percent": "25",
    "discount_currency": "EUR",
    "time_zone": "Europe/Berlin",
    "starts_at": "2026-06-01",
}
FIXED = {"discount_type": "amount", "discount_amount": "5"}
FIELDS: dict[str, tuple[dict[str, str], str]] = {
    **{f"code {name}": ({"code": code}, "letters") for name, code in CODES.items()},
    "gap": ({"starts_at": "2026-03-29", "starts_at_time": "02:30"}, "does not exist on that day"),
    "gap at the end": ({"ends_at": "2027-03-28", "ends_at_time": "02:30"}, "does not exist on that day"),
    "twice": ({"starts_at": "2026-10-25", "starts_at_time": "02:30"}, "occurs twice"),
    "no such day": ({"starts_at": "2026-02-30"}, "Not a valid date"),
    "no such time": ({"starts_at_time": "25:00"}, "Not a valid time"),
    "last of all days": ({"ends_at": "9999-12-31"}, "Choose a day"),
    "amount negative": (FIXED | {"discount_amount": "-5"}, "Enter a number"),
    "amount huge": (FIXED | {"discount_amount": "9" * 40}, "The amount is too large."),
    "amount in fractions of a cent": (FIXED | {"discount_amount": "5.005"}, "Use at most 2 decimal places"),
    "amount in digits of another script": (FIXED | {"discount_amount": "٥"}, "Enter a number"),
    "currency": (FIXED | {"discount_currency": "QQQ"}, "three-letter"),
    "percent": ({"discount_percent": "1e1"}, "Enter a number"),
    "percent too much": ({"discount_percent": "100.01"}, "up to 100"),
    "cap": ({"max_redemptions": "many"}, "Enter a whole number"),
    "cap negative": ({"max_redemptions": "-1"}, "must be a whole number"),
    "cap huge": ({"max_redemptions": "9" * 40}, "can be at most 1,000,000,000,000"),
    "name": ({"name": "a\0b"}, "one line of plain text"),
    "zone": ({"time_zone": "Mars/Olympus"}, "Choose a time zone"),
    "audience": ({"audience": "999"}, "does not exist"),
}


@pytest.mark.parametrize(("changes", "message"), FIELDS.values(), ids=FIELDS.keys())
def test_an_invalid_offer_form_is_reported_and_kept(staff: FlaskClient, changes: dict[str, str], message: str) -> None:
    form = FORM | changes

    response = staff.post("/offers/new", data=form)

    assert response.status_code == 422
    assert message in response.text
    for name in ("name", "code", "discount_percent", "max_redemptions", "starts_at", "ends_at"):
        assert str(escape(form.get(name, ""))) in response.text, name


# --- everything else ------------------------------------------------------------------------------


HOSTILE = {
    "NUL": "\0",
    "long": "x" * 2_000,
    "huge number": "9" * 400,
    "negative": "-1",
    "quote": "'\"\\;--",
    "markup": "</title><script>alert(1)</script>",
    "template": "{{ 7 * 7 }}",
    "percent": "%s%(x)s{}",
    "emoji": "🎉\u202e\u200b",
    "line": "a\r\nB: c",
    "replaced": "\ufffd\uffff",
    "date": "9999-12-31",
    "old": "0001-01-01",
}


def form_field_names(kind: type[Form] = Form) -> set[str]:
    """The names of all fields of all forms of the application."""
    names = set(getattr(kind, "_fields", {})) | {
        name for name in vars(kind) if hasattr(getattr(kind, name), "field_class")
    }
    return names.union(*(form_field_names(subclass) for subclass in kind.__subclasses__()))


def page_urls(app: Flask, method: str, value: str) -> Iterator[str]:
    """Build the URL of every page with this method, with a hostile value as parameter."""
    for rule in app.url_map.iter_rules():
        if method in (rule.methods or ()) and not rule.rule.startswith(("/static", "/api", "/sign-out")):
            values: dict[str, Any] = {
                name: 1 if "Id" in type(rule._converters[name]).__name__ else value for name in rule._converters
            }
            yield app.url_map.bind("localhost").build(rule.endpoint, values)


@pytest.mark.slow
@cases(HOSTILE)
def test_no_page_fails_on_hostile_urls(app: Flask, sign_in: Callable[..., FlaskClient], value: str) -> None:
    client = sign_in("admin")
    query = dict.fromkeys(form_field_names() | {"cursor", "limit", "page", "state", "q", "next", "zone"}, value)

    failures = {
        url[:80]: response.status_code
        for url in page_urls(app, "GET", value)
        if not url.startswith("/readyz")
        for response in [client.get(url, query_string=query, buffered=True)]
        if response.status_code >= 500
    }

    assert not failures


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/customers/do-not-mail?after=%00", 400),
        ("/customers?before=%00", 200),
        ("/redemptions?cursor=%00", 422),
        ("/campaigns?after=%00", 200),
    ],
)
def test_a_nul_in_the_position_of_a_list_is_no_failure(
    sign_in: Callable[..., FlaskClient], caplog: pytest.LogCaptureFixture, url: str, status: int
) -> None:
    response = sign_in("admin").get(url)

    assert response.status_code == status
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
@cases(HOSTILE)
def test_no_form_fails_on_hostile_input(app: Flask, sign_in: Callable[..., FlaskClient], value: str) -> None:
    client = sign_in("admin")
    form = dict.fromkeys(form_field_names(), value)

    failures = {
        url[:80]: response.status_code
        for url in page_urls(app, "POST", value)
        for response in [client.post(url, data=form)]
        if response.status_code >= 500
    }

    assert not failures
