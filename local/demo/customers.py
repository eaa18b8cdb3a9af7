"""The customers of the demo, as the files that a shop would import.

All addresses are in example.com, example.net and example.org, which are reserved for examples (RFC 2606).
"""

from __future__ import annotations

import csv
import io
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from local.demo.names import LOCALE_NAMES, LocaleNames

CUSTOMER_COUNT = 10_000
SIGN_UP_COUNT = 600
SEED = "Marigold Tea House"
AUDIENCES = ("VIP", "Newsletter", "Lapsed")

# Hosts of mailboxes: some for all locales; two more per language are added.
_HOSTS = ("mail.example.com", "post.example.net", "inbox.example.org", "home.example.net", "letters.example.com")
_COMPANY_HOSTS = (
    "bakery.example.org",
    "studio.example.com",
    "library.example.net",
    "bücher.example.com",
    "clinic.example.org",
)
# Letters that Unicode does not decompose into a base letter and a mark.
_TRANSLITERATION = str.maketrans("łŁøØđĐıßæÆþÞðÐ", "lLoOdDisaAtTdD")


# The first of each audience by address: the preview of an email shows them.
_FIRST = (
    {"email": "a.a.ainsworth@mail.example.com", "name": "Amelia Ainsworth", "locale": "en-GB", "audience": "VIP"},
    {"email": "a.a.bell@post.example.net", "name": "Arthur Bell", "locale": "en-GB", "audience": "Newsletter"},
    {"email": "a.a.clarke@inbox.example.org", "name": "Agnes Clarke", "locale": "en-GB", "audience": "Lapsed"},
)


@dataclass(frozen=True)
class CustomerRecord:
    """A row of a customer file."""

    email: str
    name: str
    locale: str
    source_id: str
    audience: str


@dataclass(frozen=True)
class ImportFile:
    """A file to import.

    `audience` is chosen for all its rows; `kind` is that of `CustomerImport`.
    """

    filename: str
    data: bytes
    kind: str = "customers"
    audience: str = ""


def generate_customers() -> list[CustomerRecord]:
    """Return all customers in the order of their source ids."""
    rng = random.Random(SEED)  # noqa: S311
    locales = rng.choices(LOCALE_NAMES, [locale.share for locale in LOCALE_NAMES], k=CUSTOMER_COUNT)
    used: set[str] = set()
    records = [_generate_customer(rng, n, locale, used) for n, locale in enumerate(locales)]
    return [replace(old, **new) for old, new in zip(records, _FIRST, strict=False)] + records[len(_FIRST) :]


def build_import_files() -> list[ImportFile]:
    """Return the files that the shop imported.

    They contain its customers, newsletter sign-ups, and addresses that must not be emailed.
    """
    customers = generate_customers()
    sign_ups = customers[CUSTOMER_COUNT - SIGN_UP_COUNT :]
    # Imported with a warning: a locale that is no language tag.
    sign_ups[300] = replace(sign_ups[300], locale="by phone")
    existing = customers[: CUSTOMER_COUNT - SIGN_UP_COUNT]
    return [
        ImportFile("customers.csv", _to_csv(existing)),
        ImportFile(
            "newsletter-sign-ups.csv",
            _insert_invalid_rows(_to_csv(sign_ups, ";", with_audience=False)),
            audience="Newsletter",
        ),
        ImportFile("do-not-mail.csv", _build_suppression_file(existing), kind="suppressions"),
    ]


def _generate_customer(rng: random.Random, n: int, locale: LocaleNames, used: set[str]) -> CustomerRecord:
    given_names, family_names = rng.choice(locale.groups)
    given, latin_given = _parse_name(rng.choice(given_names.split()))
    family, latin_family = _parse_name(rng.choice(family_names.split()))
    parts = (family, given) if locale.family_first else (given, family)
    address = _generate_address(rng, latin_given, latin_family, locale.locale[:2], used)
    name = "" if rng.random() < 0.03 else locale.separator.join(parts)
    language_tag = "" if rng.random() < 0.04 else locale.locale
    audience = rng.choices((*AUDIENCES, ""), (6, 42, 17, 35))[0]
    return CustomerRecord(address, name, language_tag, f"MTH-{10_001 + n}", audience)


def _parse_name(entry: str) -> tuple[str, str]:
    """Return a name in its own script and in ASCII letters."""
    native, _, latin = entry.partition(":")
    plain = latin or unicodedata.normalize("NFKD", native.translate(_TRANSLITERATION))
    return native, "".join(c for c in plain.lower() if c.isascii() and (c.isalnum() or c == "-"))


def _generate_address(rng: random.Random, given: str, family: str, language: str, used: set[str]) -> str:
    local = rng.choice((f"{given}.{family}", f"{given}.{family}", f"{given[0]}.{family}", f"{family}.{given}", given))
    if rng.random() < 0.12:
        local += rng.choice(("+tea", "+shop", "+offers"))
    elif rng.random() < 0.25:
        local += str(rng.randrange(58, 100))
    hosts = (*_HOSTS, f"{language}.example.org", f"{language}.example.com")
    domain = rng.choice(_COMPANY_HOSTS) if rng.random() < 0.04 else rng.choice(hosts)
    number, address = 1, f"{local}@{domain}"
    while address in used:
        number += 1
        base, plus, tag = local.partition("+")
        address = f"{base}{number}{plus}{tag}@{domain}"
    used.add(address)
    # Some customers type their address with capital letters.
    return address.title().replace("+T", "+t") if rng.random() < 0.02 else address


def _to_csv(records: list[CustomerRecord], delimiter: str = ",", with_audience: bool = True) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(["email", "name", "locale", "customer number", *(["audience"] if with_audience else [])])
    for record in records:
        cells = [record.email, record.name, record.locale, record.source_id]
        writer.writerow([*cells, record.audience] if with_audience else cells)
    return out.getvalue().encode()


# Rows with the mistakes of files that are edited by hand; each is rejected for another reason.
_INVALID_ROWS = (
    "jonas.petersen(at)mail.example.com;Jonas Petersen;de-DE;",
    ";Nobody left an address;en-GB;",
    "clara@@post.example.net;Clara Böhm;de-DE;",
    "lost.half;",
    "rory.quinn@inbox.example..org;Rory Quinn;en-GB;",
    "amelie lefevre@mail.example.com;Amélie Lefèvre;fr-FR;",
    "someone.else@post.example.net;Takes a number that is taken;en-GB;MTH-10001",
)


def _insert_invalid_rows(data: bytes) -> bytes:
    lines = data.decode().split("\r\n")
    for n, row in enumerate(_INVALID_ROWS):
        lines.insert(23 + 71 * n, row)
    return "\r\n".join(lines).encode()


def _build_suppression_file(existing: list[CustomerRecord]) -> bytes:
    """Return the suppression list of an earlier email service.

    It has some customers, some other addresses and one invalid row.
    """
    rng = random.Random(f"{SEED}: suppressions")  # noqa: S311
    suppressed = [
        (record.email, rng.choice(("unsubscribe", "unsubscribe", "bounce", "spam")))
        for record in rng.sample(existing, 70)
    ]
    rows = [*suppressed, *_former_readers()]
    lines = ["email,reason", *(f"{email},{reason}" for email, reason in rows), "see the other list,unsubscribe"]
    return "\r\n".join(lines).encode() + b"\r\n"


def _former_readers() -> Iterator[tuple[str, str]]:
    for n in range(1, 13):
        yield f"former.reader{n}@letters.example.com", "unsubscribe"
