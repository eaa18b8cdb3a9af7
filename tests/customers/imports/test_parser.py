"""The parser: which rows are accepted, which are rejected, and on which line."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from webapp.core.errors import InvalidInput
from webapp.customers.imports.parse_results import Rejection
from webapp.customers.imports.parser import CSV, NDJSON, check_file_start, parse_rows


class Row(NamedTuple):
    """The values of an accepted row."""

    line: int
    email: str
    email_as_given: str
    name: str
    locale: str
    source_id: str
    audience: str


def accepted_rows(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[Row]:
    return [item for item in parse(file, media_type, size) if isinstance(item, Row)]


def rejected_rows(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[tuple[int, str]]:
    items = parse(file, media_type, size)
    return [(item.line, item.code) for item in items if isinstance(item, Rejection)]


def parse(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[Row | Rejection]:
    data = file.encode() if isinstance(file, str) else file
    items = parse_rows([data[at : at + size] for at in range(0, len(data), size)], media_type)
    return [item if isinstance(item, Rejection) else split_row(item[1]) for item in items]


def split_row(text: str) -> Row:
    line, *values = text.split("\t")
    return Row(int(line), *values)


def file_error(file: str | bytes, media_type: str = CSV) -> str:
    """Return the error code of a file that is rejected at its start."""
    with pytest.raises(InvalidInput) as error:
        check_file_start(file.encode() if isinstance(file, str) else file, media_type, is_complete=True)
    return error.value.errors[0].key


# --- the header ----------------------------------------------------------------------------------


def test_all_columns_are_parsed() -> None:
    rows = accepted_rows("email,name,source_id,locale,audience\nAda@Example.com,Ada Lovelace,C1,en_gb,News\n")

    assert rows == [Row(2, "ada@example.com", "Ada@Example.com", "Ada Lovelace", "en-GB", "C1", "News")]


@pytest.mark.parametrize("header", ["email", "E-Mail", "Mail", " EMAIL ", "Email address", "e_mail", '"email"'])
def test_the_email_column_has_many_names(header: str) -> None:
    assert [row.email for row in accepted_rows(f"{header},x\nada@example.com,y\n")] == ["ada@example.com"]


@pytest.mark.parametrize("header", ["first name,last name", "First_Name,Surname", "Vorname,Nachname"])
def test_first_and_last_name_are_joined(header: str) -> None:
    assert accepted_rows(f"{header},mail\nAda,Lovelace,ada@example.com\n")[0].name == "Ada Lovelace"


@pytest.mark.parametrize(("cells", "name"), [(",Ada,King", "Ada King"), ("Countess,Ada,King", "Countess")])
def test_first_and_last_name_fill_an_empty_name(cells: str, name: str) -> None:
    rows = accepted_rows(f"email,name,first name,last name\nada@example.com,{cells}\n")

    assert [row.name for row in rows] == [name]


def test_the_best_known_name_of_a_column_is_used() -> None:
    rows = accepted_rows("mail,email,customer number,id\nold@example.com,ada@example.com,2,1\n")

    assert [(row.email, row.source_id) for row in rows] == [("ada@example.com", "1")]


def test_unknown_columns_may_have_the_same_name() -> None:
    assert len(accepted_rows("email,,note,note,\nada@example.com,1,2,3,4\n")) == 1


def test_id_and_language_are_accepted_as_column_names() -> None:
    row = accepted_rows("id,language,email\n7,de,ada@example.com\n")[0]

    assert (row.source_id, row.locale) == ("7", "de")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected(delimiter: str) -> None:
    file = delimiter.join(["email", "name"]) + "\n" + delimiter.join(["ada@example.com", "Ada"]) + "\n"

    assert [(row.email, row.name) for row in accepted_rows(file)] == [("ada@example.com", "Ada")]


def test_a_sep_line_sets_the_delimiter() -> None:
    file = "sep=;\nemail;name\nada@example.com;Ada\nx;y\n"

    assert [(row.line, row.name) for row in accepted_rows(file)] == [(3, "Ada")]
    assert rejected_rows(file) == [(4, "email_invalid")]


def test_a_sep_line_sets_any_delimiter() -> None:
    assert [row.name for row in accepted_rows("sep=^\r\nemail^name\r\nada@example.com^Ada, Countess\r\n")] == [
        "Ada, Countess"
    ]


def test_quotation_marks_may_follow_a_space() -> None:
    rows = accepted_rows('"email", "name"\n"ada@example.com", "King, Ada"\n')

    assert [(row.email, row.name) for row in rows] == [("ada@example.com", "King, Ada")]


def test_a_byte_order_mark_is_ignored() -> None:
    assert len(accepted_rows(b"\xef\xbb\xbfemail,name\nada@example.com,Ada\n")) == 1


def test_unknown_columns_are_ignored() -> None:
    row = accepted_rows("shoe size,email,a,b,name\n37,ada@example.com,1,2,Ada\n")[0]

    assert (row.email, row.name) == ("ada@example.com", "Ada")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("", "file_empty"),
        ("\n \r\n\n", "file_empty"),
        (b"\xef\xbb\xbf", "file_empty"),
        ("email,name\n", "rows_missing"),
        ("email,name", "rows_missing"),
        ("ada@example.com,Ada\ngrace@example.com,Grace\n", "header_missing"),
        ("name,phone\nAda,1\n", "email_column_missing"),
        ("email,name,email\na@example.com,A,b@example.com\n", "header_ambiguous"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)) * 20, "file_binary"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "file_binary"),
        (b"GIF89a" + b"a" * 200, "file_binary"),
        (b"%PDF-1.7\nemail,name\nada@example.com,Ada\n", "file_binary"),
        (b"\x1f\x8b\x08" + b"a" * 200, "file_binary"),
        (b"PK\x03\x04" + bytes(200), "file_workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(200), "file_workbook"),
        ("email,name\nada@example.com,Ada\n".encode("utf-16"), "encoding_utf16"),
        ("\ufeffemail,name\nada@example.com,Ada\n".encode("utf-16-be"), "encoding_utf16"),
        ("email,name\nada@example.com,Ada\n".encode("utf-16-le"), "encoding_utf16"),
    ],
)
def test_an_unusable_file_is_rejected_at_its_start(file: str | bytes, code: str) -> None:
    assert file_error(file) == code


def test_the_error_for_a_missing_email_column_lists_the_columns() -> None:
    with pytest.raises(InvalidInput, match=r"no column named email. Rename one of these columns: name, phone\."):
        check_file_start(b"name,phone\nAda,1\n", CSV, is_complete=True)


# --- rows ----------------------------------------------------------------------------------------


def test_only_the_invalid_row_is_rejected() -> None:
    file = "email,name\nada@example.com,Ada\nnobody,X\ngrace@example.com,Grace\n"

    assert [row.line for row in accepted_rows(file)] == [2, 4]
    assert rejected_rows(file) == [(3, "email_invalid")]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (",Ada", "email_missing"),
        ("ada,Ada", "email_invalid"),
        ("jürgen,Jürgen Müller", "email_invalid"),
        ("ada@localhost,Ada", "email_invalid"),
        ('"ada@example.com\r\nBcc: eve@example.com",Ada', "email_invalid"),
        ("ada\x01@example.com,Ada", "email_invalid"),
        ("ada@example.com,A\x00da", "name_invalid"),
        ("ada@example.com,A\x1bda", "name_invalid"),
        ("ada@example.com," + "x" * 201, "name_invalid"),
        ("ada@example.com,Ada,3", "cells_too_many"),
        ("ada@example.com", "cells_missing"),
        ('ada@example.com,"Ada" Lovelace', "quote_invalid"),
        ("ada@example.com," + "x" * 200_000, "field_too_long"),
        ("ada@example.com,A\rda", "line_break_invalid"),
    ],
)
def test_each_rejected_row_has_a_code_and_a_sentence(row: str, code: str) -> None:
    items = parse(f"email,name\n{row}\ngrace@example.com,Grace\n")

    rejection = next(item for item in items if isinstance(item, Rejection))
    assert (rejection.line, rejection.code) == (2, code)
    assert rejection.detail[0].isupper()
    assert rejection.detail.endswith(".")
    assert isinstance(items[-1], Row)
    assert items[-1].email == "grace@example.com"


def test_a_latin_1_row_is_rejected_and_reported_as_text() -> None:
    items = parse("email,name\nada@example.com,J\xfcrgen\n".encode("latin-1") + "b@example.com,Zoë\n".encode())

    assert isinstance(items[0], Rejection)
    assert (items[0].code, items[0].row) == ("encoding_invalid", "ada@example.com,Jürgen")
    assert isinstance(items[1], Row)
    assert items[1].name == "Zoë"


@pytest.mark.parametrize("address", [b"\xe9@example.com", b"ada@\xe9.example.com", b"a\xe9\xff@x.de"])
def test_an_email_that_is_not_utf_8_is_rejected_for_its_encoding(address: bytes) -> None:
    assert rejected_rows(b"email\n" + address + b"\nb@example.com\n") == [(2, "encoding_invalid")]


def test_a_file_that_ends_within_a_character_is_rejected_there() -> None:
    assert rejected_rows("email,name\nada@example.com,Zoë".encode()[:-1]) == [(2, "encoding_invalid")]


@pytest.mark.parametrize(
    ("column", "code"), [("source_id", "source_id_invalid"), ("audience", "audience_invalid"), ("name", "name_invalid")]
)
def test_a_value_that_is_too_long_rejects_its_row(column: str, code: str) -> None:
    file = f"email,{column}\nada@example.com,{'x' * 201}\nbob@example.com,{'x' * 100}\n"

    assert (rejected_rows(file), [row.line for row in accepted_rows(file)]) == ([(2, code)], [3])


def test_the_excerpt_of_a_rejected_row_is_limited() -> None:
    [rejection] = parse(f"email,name\nbad,{'x' * 5000}\n")

    assert isinstance(rejection, Rejection)
    assert rejection.row == f"bad,{'x' * 996}"


def test_spaces_around_an_email_are_removed() -> None:
    assert [row.email_as_given for row in accepted_rows("email,name\n Ada@example.com ,Ada\n")] == ["Ada@example.com"]


def test_invalid_utf_8_in_an_ignored_column_is_accepted() -> None:
    assert len(accepted_rows(b"email,notes\nada@example.com,caf\xe9\n")) == 1


def test_quoted_line_breaks_become_spaces_and_count_as_lines() -> None:
    file = 'email,name\r\nada@example.com,"Ada\r\nLovelace"\r\nbad,x\r\n'

    assert [(row.line, row.name) for row in accepted_rows(file)] == [(2, "Ada Lovelace")]
    assert rejected_rows(file) == [(4, "email_invalid")]


def test_an_unclosed_quotation_mark_rejects_one_row() -> None:
    file = 'email,name\nada@example.com,"Ada\n' + "".join(f"c{n}@example.com,C\n" for n in range(500))

    assert rejected_rows(file) == [(2, "quote_unclosed")]
    assert [(row.line, row.email) for row in accepted_rows(file)] == [
        (number + 3, f"c{number}@example.com") for number in range(500)
    ]


@pytest.mark.parametrize(("lines", "is_accepted"), [(100, True), (101, False)])
def test_a_cell_may_have_a_hundred_lines(lines: int, is_accepted: bool) -> None:
    name = "\n".join("A" * lines)
    file = f'email,name\nada@example.com,"{name}"\nbob@example.com,Bob\n'

    assert [row.email for row in accepted_rows(file)] == ["ada@example.com"] * is_accepted + ["bob@example.com"]
    assert rejected_rows(file)[:1] == [(2, "quote_unclosed")] * (not is_accepted)


def test_an_unclosed_quotation_mark_before_quoted_rows_rejects_one_row() -> None:
    file = 'email,name\nada@example.com,"Ada\n"grace@example.com","Grace"\n"b@example.com","B"\n'

    assert rejected_rows(file) == [(2, "quote_unclosed")]
    assert [row.line for row in accepted_rows(file)] == [3, 4]


def test_an_unclosed_quotation_mark_in_the_last_row_rejects_it() -> None:
    file = 'email,name\nada@example.com,Ada\ngrace@example.com,"Grace'

    assert rejected_rows(file) == [(3, "quote_unclosed")]
    assert len(accepted_rows(file)) == 1


def test_extra_empty_cells_are_ignored() -> None:
    assert len(accepted_rows("email,name\nada@example.com,Ada,,,\n")) == 1


def test_blank_rows_are_ignored() -> None:
    file = "email,name\n\nada@example.com,Ada\n,\n  \n\n"

    assert [row.line for row in accepted_rows(file)] == [3]
    assert rejected_rows(file) == []


def test_carriage_returns_end_lines() -> None:
    assert [row.line for row in accepted_rows("email,name\rada@example.com,Ada\rb@example.com,B\r")] == [2, 3]


def test_names_with_any_characters_are_accepted() -> None:
    names = ["<b>Ada</b>", "Ada 👩‍💻", "عائشة", "李小龙", "O'Brien", "\u202eevil"]
    file = "name,email\n" + "".join(f"{name},c{n}@example.com\n" for n, name in enumerate(names))

    assert [row.name for row in accepted_rows(file)] == names


def test_an_idna_domain_is_normalised_and_kept_as_given() -> None:
    row = accepted_rows("email\nada@straße.de\n")[0]

    assert (row.email, row.email_as_given) == ("ada@xn--strae-oqa.de", "ada@straße.de")


def test_an_email_that_cannot_be_shown_is_kept_as_normalised() -> None:
    [row] = accepted_rows("email\n Ada@exam\u00adple.com \n")

    assert (row.email, row.email_as_given) == ("ada@example.com", "ada@example.com")


def test_the_apostrophe_that_exports_put_before_formulas_is_removed() -> None:
    row = accepted_rows("email,name,source_id\n'+1@example.com,'=SUM(A1),'-7\n")[0]

    assert (row.email, row.name, row.source_id) == ("+1@example.com", "=SUM(A1)", "-7")


def test_other_apostrophes_at_the_start_are_kept() -> None:
    row = accepted_rows("email,name,source_id\n'ada@example.com,'t Hart,'\n")[0]

    assert (row.email, row.name, row.source_id) == ("'ada@example.com", "'t Hart", "'")


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        ("email,locale\nada@example.com,klingon\nbob@example.com,de\n", CSV),
        ('{"email": "ada@example.com", "locale": "klingon"}\n{"email": "bob@example.com", "locale": "de"}\n', NDJSON),
    ],
)
def test_an_unknown_locale_is_only_a_warning(file: str, media_type: str) -> None:
    warning, ada, bob = parse(file, media_type)

    assert isinstance(warning, Rejection)
    assert (warning.code, warning.is_warning) == ("locale_unknown", True)
    assert "“klingon”" in warning.detail
    assert isinstance(ada, Row) and isinstance(bob, Row)  # noqa: PT018
    assert [(row.line, row.email, row.locale) for row in (ada, bob)] == [
        (warning.line, "ada@example.com", ""),
        (warning.line + 1, "bob@example.com", "de"),
    ]


def test_a_row_with_an_unknown_locale_keeps_its_other_values() -> None:
    warning, ada = parse(f"email,name,source_id,locale,audience\nAda@example.com,Ada,C1,{'x' * 99},VIP\n")

    assert ada == Row(2, "ada@example.com", "Ada@example.com", "Ada", "", "C1", "VIP")
    assert isinstance(warning, Rejection)
    assert f"“{'x' * 60}”" in warning.detail


def test_an_invalid_row_with_an_unknown_locale_has_no_warning() -> None:
    assert rejected_rows("email,locale\nada,klingon\n") == [(2, "email_invalid")]


# --- suppression lists ---------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["Reason", "why", "Type"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "unsubscribed"),
        ("Unsubscribe", "unsubscribed"),
        ("cleaned", "bounced"),
        (" Bounce ", "bounced"),
        ("complaint", "complained"),
        ("abuse", "complained"),
        ("SPAM", "complained"),
    ],
)
def test_the_reasons_of_other_mailing_tools_are_known(column: str, given: str, reason: str) -> None:
    rows = parse_rows([f"email,{column}\nada@example.com,{given}\n".encode()], CSV, "suppressions")

    assert list(rows) == [("ada@example.com", f"2\tada@example.com\t{reason}")]


@pytest.mark.parametrize(("hashed", "is_accepted"), [("0" * 64, True), ("0" * 63, False), ("A" * 64, False)])
def test_only_a_complete_hash_replaces_an_email(hashed: str, is_accepted: bool) -> None:
    [item] = parse_rows([f"email\n sha256:{hashed} \n".encode()], CSV, "suppressions")

    assert (item == (f"sha256:{hashed}", f"2\tsha256:{hashed}\tunsubscribed")) is is_accepted
    assert isinstance(item, Rejection) is not is_accepted


# --- NDJSON --------------------------------------------------------------------------------------


def test_ndjson_is_parsed() -> None:
    file = '{"email": "Ada@example.com", "name": "Ada", "source_id": 7, "extra": [1]}\n\n{"email": "b@example.com"}\n'

    assert [(row.line, row.email, row.source_id) for row in accepted_rows(file, NDJSON)] == [
        (1, "ada@example.com", "7"),
        (3, "b@example.com", ""),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "json_invalid"),
        ("[1]", "json_invalid"),
        ("[" * 100_000, "json_invalid"),
        ('{"email": 1}', "type_invalid"),
        ('{"email": "ada@example.com", "name": true}', "type_invalid"),
        ('{"email": "ada@example.com", "source_id": true}', "type_invalid"),
        ('{"name": "Ada"}', "email_missing"),
        ('{"email": "ada@example.com", "name": "\\u0000"}', "name_invalid"),
        ('{"email": "ada@example.com", "name": "\\ud800"}', "name_invalid"),
    ],
)
def test_each_invalid_json_line_has_a_code(line: str, code: str) -> None:
    file = f'{line}\n{{"email": "b@example.com"}}\n'

    assert rejected_rows(file, NDJSON) == [(1, code)]
    assert len(accepted_rows(file, NDJSON)) == 1


# --- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_chunk_size_does_not_change_the_result(size: int) -> None:
    file = '\ufeffemail,name\r\nada@example.com,"Jürgen\r\n👩‍💻"\r\nbad,"x\r\nb@example.com,B\r\n'

    assert parse(file, size=size) == parse(file)


cell = st.text(max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cell, cell), max_size=30), st.integers(1, 50))
def test_every_row_of_a_csv_writer_is_returned_exactly_once(rows: list[tuple[str, str]], size: int) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["email", "name"])
    writer.writerows(rows)
    data = out.getvalue().encode("utf-8", "surrogatepass")

    items = parse(data, size=size)

    filled = [row for row in rows if any(value.strip() for value in row)]
    # A NUL or a lone surrogate rejects the row; it never becomes two rows or none.
    assert len(items) == len(filled)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 64))
@example(b"\x80@,a\n", 64)
def test_arbitrary_bytes_do_not_break_the_parser(junk: bytes, size: int) -> None:
    items = parse(b"email,name\nada@example.com,Ada\n" + junk, size=size)

    assert items[0].line == 2
    assert [item.line for item in items] == sorted(item.line for item in items)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file() -> None:
    def file(megabytes: int) -> Iterator[bytes]:
        yield b"email,name\n"
        for n in range(megabytes * 16):
            yield b"".join(b"customer%08d@example.com,A Customer With A Name\n" % (n * 1300 + i) for i in range(1300))

    peaks = []
    for megabytes in (1, 6):
        tracemalloc.start()
        for _ in parse_rows(file(megabytes), CSV):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] * 1.5


def test_a_very_long_line_uses_little_memory() -> None:
    def file() -> Iterator[bytes]:
        yield b"email,name\n"
        for _ in range(40):
            yield b"x" * (1 << 20)
        yield b"\nada@example.com,Ada\n"

    tracemalloc.start()
    items = list(parse_rows(file(), CSV))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert isinstance(items[0], Rejection)
    assert items[1][1].startswith("3\tada@example.com\t")
    assert peak < 20 * (1 << 20)


def test_unclosed_quotation_marks_give_at_most_one_item_per_line() -> None:
    file = "email,name\n" + 'a",",\n' * 20_000

    assert len(parse(file)) <= 20_000


def test_ndjson_and_csv_give_the_same_values() -> None:
    values = {"email": "Ada@Example.com", "name": "Ada", "source_id": "7", "locale": "de", "audience": "VIP"}

    from_json = accepted_rows(json.dumps(values), NDJSON)[0]
    from_csv = accepted_rows(f"{','.join(values)}\n{','.join(values.values())}\n")[0]

    assert from_json[1:] == from_csv[1:]
