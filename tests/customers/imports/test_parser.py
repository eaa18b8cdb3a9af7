"""Files as people make them: what is taken, what is refused, and on which line. No database."""

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
    """The values of a row that was taken, by their names."""

    line: int
    email: str
    email_as_given: str
    name: str
    locale: str
    source_id: str
    audience: str


def taken(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[Row]:
    return [item for item in everything(file, media_type, size) if isinstance(item, Row)]


def refused(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[tuple[int, str]]:
    found = everything(file, media_type, size)
    return [(item.line, item.code) for item in found if isinstance(item, Rejection)]


def everything(file: str | bytes, media_type: str = CSV, size: int = 1 << 20) -> list[Row | Rejection]:
    data = file.encode() if isinstance(file, str) else file
    found = parse_rows([data[at : at + size] for at in range(0, len(data), size)], media_type)
    return [item if isinstance(item, Rejection) else row_of(item[1]) for item in found]


def row_of(text: str) -> Row:
    line, *values = text.split("\t")
    return Row(int(line), *values)


def whole_file(file: str | bytes, media_type: str = CSV) -> str:
    """The code with which a file is refused as a whole, at its opening."""
    with pytest.raises(InvalidInput) as refusal:
        check_file_start(file.encode() if isinstance(file, str) else file, media_type, is_complete=True)
    return refusal.value.errors[0].key


# --- the header ----------------------------------------------------------------------------------


def test_all_columns_are_read() -> None:
    rows = taken("email,name,source_id,locale,audience\nAda@Example.com,Ada Lovelace,C1,en_gb,News\n")

    assert rows == [Row(2, "ada@example.com", "Ada@Example.com", "Ada Lovelace", "en-GB", "C1", "News")]


@pytest.mark.parametrize("header", ["email", "E-Mail", "Mail", " EMAIL ", "Email address", "e_mail", '"email"'])
def test_the_e_mail_column_has_many_names(header: str) -> None:
    assert [row.email for row in taken(f"{header},x\nada@example.com,y\n")] == ["ada@example.com"]


@pytest.mark.parametrize("header", ["first name,last name", "First_Name,Surname", "Vorname,Nachname"])
def test_first_and_last_name_make_the_name(header: str) -> None:
    assert taken(f"{header},mail\nAda,Lovelace,ada@example.com\n")[0].name == "Ada Lovelace"


def test_id_and_language_are_known_by_their_short_names() -> None:
    row = taken("id,language,email\n7,de,ada@example.com\n")[0]

    assert (row.source_id, row.locale) == ("7", "de")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_out(delimiter: str) -> None:
    file = delimiter.join(["email", "name"]) + "\n" + delimiter.join(["ada@example.com", "Ada"]) + "\n"

    assert [(row.email, row.name) for row in taken(file)] == [("ada@example.com", "Ada")]


def test_excel_may_name_the_delimiter_in_a_line_of_its_own() -> None:
    file = "sep=;\nemail;name\nada@example.com;Ada\nx;y\n"

    assert [(row.line, row.name) for row in taken(file)] == [(3, "Ada")]
    assert refused(file) == [(4, "email_invalid")]


def test_a_byte_order_mark_is_passed_over() -> None:
    assert len(taken(b"\xef\xbb\xbfemail,name\nada@example.com,Ada\n")) == 1


def test_columns_that_are_headed_and_unknown_are_ignored() -> None:
    row = taken("shoe size,email,a,b,name\n37,ada@example.com,1,2,Ada\n")[0]

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
        (b"PK\x03\x04" + bytes(200), "file_workbook"),
        ("email,name\nada@example.com,Ada\n".encode("utf-16"), "encoding_utf16"),
        ("email,name\nada@example.com,Ada\n".encode("utf-16-le"), "encoding_utf16"),
    ],
)
def test_a_file_in_which_nothing_can_be_taken_is_refused_at_once(file: str | bytes, code: str) -> None:
    assert whole_file(file) == code


def test_a_missing_e_mail_column_is_told_with_the_columns_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"no column named email. Rename one of these columns: name, phone\."):
        check_file_start(b"name,phone\nAda,1\n", CSV, is_complete=True)


# --- rows ----------------------------------------------------------------------------------------


def test_a_bad_row_is_refused_and_its_neighbours_are_taken() -> None:
    file = "email,name\nada@example.com,Ada\nnobody,X\ngrace@example.com,Grace\n"

    assert [row.line for row in taken(file)] == [2, 4]
    assert refused(file) == [(3, "email_invalid")]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (",Ada", "email_missing"),
        ("ada,Ada", "email_invalid"),
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
def test_each_bad_row_has_a_code_and_a_sentence(row: str, code: str) -> None:
    found = everything(f"email,name\n{row}\ngrace@example.com,Grace\n")

    rejection = next(item for item in found if isinstance(item, Rejection))
    assert (rejection.line, rejection.code) == (2, code)
    assert rejection.detail[0].isupper()
    assert rejection.detail.endswith(".")
    assert isinstance(found[-1], Row)
    assert found[-1].email == "grace@example.com"


def test_a_row_that_is_not_utf_8_is_shown_as_it_was_meant() -> None:
    found = everything("email,name\nada@example.com,J\xfcrgen\n".encode("latin-1") + "b@example.com,Zoë\n".encode())

    assert isinstance(found[0], Rejection)
    assert (found[0].code, found[0].row) == ("encoding_invalid", "ada@example.com,Jürgen")
    assert isinstance(found[1], Row)
    assert found[1].name == "Zoë"


@pytest.mark.parametrize("address", [b"\xe9@example.com", b"ada@\xe9.example.com", b"a\xe9\xff@x.de"])
def test_an_address_that_is_not_utf_8_is_refused_as_such(address: bytes) -> None:
    assert refused(b"email\n" + address + b"\nb@example.com\n") == [(2, "encoding_invalid")]


def test_bytes_that_are_not_utf_8_in_an_ignored_column_hurt_nobody() -> None:
    assert len(taken(b"email,notes\nada@example.com,caf\xe9\n")) == 1


def test_quoted_line_breaks_are_blanks_and_counted_as_lines() -> None:
    file = 'email,name\r\nada@example.com,"Ada\r\nLovelace"\r\nbad,x\r\n'

    assert [(row.line, row.name) for row in taken(file)] == [(2, "Ada Lovelace")]
    assert refused(file) == [(4, "email_invalid")]


def test_an_unclosed_quotation_mark_costs_one_row() -> None:
    file = 'email,name\nada@example.com,"Ada\n' + "".join(f"c{n}@example.com,C\n" for n in range(500))

    assert refused(file) == [(2, "quote_unclosed")]
    assert [row.line for row in taken(file)] == list(range(3, 503))


def test_an_unclosed_quotation_mark_before_quoted_rows_costs_one_row() -> None:
    file = 'email,name\nada@example.com,"Ada\n"grace@example.com","Grace"\n"b@example.com","B"\n'

    assert refused(file) == [(2, "quote_unclosed")]
    assert [row.line for row in taken(file)] == [3, 4]


def test_an_unclosed_quotation_mark_in_the_last_row_costs_that_row() -> None:
    file = 'email,name\nada@example.com,Ada\ngrace@example.com,"Grace'

    assert refused(file) == [(3, "quote_unclosed")]
    assert len(taken(file)) == 1


def test_empty_cells_behind_the_header_say_nothing() -> None:
    assert len(taken("email,name\nada@example.com,Ada,,,\n")) == 1


def test_blank_rows_are_passed_over() -> None:
    file = "email,name\n\nada@example.com,Ada\n,\n  \n\n"

    assert [row.line for row in taken(file)] == [3]
    assert refused(file) == []


def test_old_line_ends_are_understood() -> None:
    assert [row.line for row in taken("email,name\rada@example.com,Ada\rb@example.com,B\r")] == [2, 3]


def test_names_of_all_kinds_are_kept() -> None:
    names = ["<b>Ada</b>", "Ada 👩‍💻", "عائشة", "李小龙", "O'Brien", "\u202eevil"]
    file = "name,email\n" + "".join(f"{name},c{n}@example.com\n" for n, name in enumerate(names))

    assert [row.name for row in taken(file)] == names


def test_an_idna_domain_is_compared_in_its_ascii_form_and_kept_as_given() -> None:
    row = taken("email\nada@straße.de\n")[0]

    assert (row.email, row.email_as_given) == ("ada@xn--strae-oqa.de", "ada@straße.de")


def test_the_apostrophe_of_our_own_export_is_taken_off() -> None:
    row = taken("email,name,source_id\n'+1@example.com,'=SUM(A1),'-7\n")[0]

    assert (row.email, row.name, row.source_id) == ("+1@example.com", "=SUM(A1)", "-7")


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        ("email,locale\nada@example.com,klingon\nbob@example.com,de\n", CSV),
        ('{"email": "ada@example.com", "locale": "klingon"}\n{"email": "bob@example.com", "locale": "de"}\n', NDJSON),
    ],
)
def test_a_language_that_is_none_costs_nobody_the_row(file: str, media_type: str) -> None:
    said, ada, bob = everything(file, media_type)

    assert isinstance(said, Rejection)
    assert (said.code, said.is_warning) == ("locale_unknown", True)
    assert "“klingon”" in said.detail
    assert isinstance(ada, Row) and isinstance(bob, Row)  # noqa: PT018
    assert [(row.line, row.email, row.locale) for row in (ada, bob)] == [
        (said.line, "ada@example.com", ""),
        (said.line + 1, "bob@example.com", "de"),
    ]


def test_a_row_of_a_bad_language_that_is_bad_otherwise_is_refused_for_that() -> None:
    assert refused("email,locale\nada,klingon\n") == [(2, "email_invalid")]


# --- NDJSON --------------------------------------------------------------------------------------


def test_json_lines_are_read() -> None:
    file = '{"email": "Ada@example.com", "name": "Ada", "source_id": 7, "extra": [1]}\n\n{"email": "b@example.com"}\n'

    assert [(row.line, row.email, row.source_id) for row in taken(file, NDJSON)] == [
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
def test_each_bad_json_line_has_a_code(line: str, code: str) -> None:
    file = f'{line}\n{{"email": "b@example.com"}}\n'

    assert refused(file, NDJSON) == [(1, code)]
    assert len(taken(file, NDJSON)) == 1


# --- whatever the pieces -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_where_a_piece_ends_does_not_matter(size: int) -> None:
    file = '\ufeffemail,name\r\nada@example.com,"Jürgen\r\n👩‍💻"\r\nbad,"x\r\nb@example.com,B\r\n'

    assert everything(file, size=size) == everything(file)


cell = st.text(max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cell, cell), max_size=30), st.integers(1, 50))
def test_every_row_written_by_a_csv_writer_is_told_of_exactly_once(rows: list[tuple[str, str]], size: int) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["email", "name"])
    writer.writerows(rows)
    data = out.getvalue().encode("utf-8", "surrogatepass")

    told = everything(data, size=size)

    filled = [row for row in rows if any(value.strip() for value in row)]
    # A NUL or a lone surrogate makes a row refused, never two or none.
    assert len(told) == len(filled)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 64))
@example(b"\x80@,a\n", 64)
def test_no_bytes_break_the_reader(junk: bytes, size: int) -> None:
    found = everything(b"email,name\nada@example.com,Ada\n" + junk, size=size)

    assert found[0].line == 2
    assert [item.line for item in found] == sorted(item.line for item in found)


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


def test_one_endless_line_does_not_fill_the_memory() -> None:
    def file() -> Iterator[bytes]:
        yield b"email,name\n"
        for _ in range(40):
            yield b"x" * (1 << 20)
        yield b"\nada@example.com,Ada\n"

    tracemalloc.start()
    found = list(parse_rows(file(), CSV))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert isinstance(found[0], Rejection)
    assert found[1][1].startswith("3\tada@example.com\t")
    assert peak < 20 * (1 << 20)


def test_quotation_marks_that_never_end_do_not_cost_more_than_lines() -> None:
    file = "email,name\n" + 'a",",\n' * 20_000

    assert len(everything(file)) <= 20_000


def test_the_values_of_a_json_line_are_those_of_a_csv_row() -> None:
    values = {"email": "Ada@Example.com", "name": "Ada", "source_id": "7", "locale": "de", "audience": "VIP"}

    from_json = taken(json.dumps(values), NDJSON)[0]
    from_csv = taken(f"{','.join(values)}\n{','.join(values.values())}\n")[0]

    assert from_json[1:] == from_csv[1:]
