"""The demonstration's customers, as the files that a shop would import: the same on every day.

All addresses are below example.com, example.net and example.org, which are nobody's (RFC 2606).
"""

from __future__ import annotations

import csv
import io
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from local.demo.names import TONGUES, Tongue
from webapp.core.email_addresses import normalise_email

PEOPLE = 10_000
SUBSCRIBERS = 600
SEED = "the people of the demonstration"
AUDIENCES = ("VIP", "Newsletter", "Lapsed")

# Where people have their mailboxes: a name for each language and some for all.
_HOSTS = ("mail.example.com", "post.example.net", "inbox.example.org", "home.example.net", "letters.example.com")
_WORK = ("bakery.example.org", "studio.example.com", "library.example.net", "bücher.example.com", "clinic.example.org")
_PLAIN = str.maketrans("łŁøØđĐıßæÆþÞðÐ", "lLoOdDisaAtTdD")


# By their addresses the first of each audience, so those as whom a mail is shown before it goes out.
_FIRST = (
    {"email": "a.a.ainsworth@mail.example.com", "name": "Amelia Ainsworth", "locale": "en-GB", "audience": "VIP"},
    {"email": "a.a.bell@post.example.net", "name": "Arthur Bell", "locale": "en-GB", "audience": "Newsletter"},
    {"email": "a.a.clarke@inbox.example.org", "name": "Agnes Clarke", "locale": "en-GB", "audience": "Lapsed"},
)


@dataclass(frozen=True)
class Person:
    """A row of the first file."""

    email: str
    name: str
    locale: str
    source_id: str
    audience: str


@dataclass(frozen=True)
class File:
    """A file that is imported, as whom it was exported from calls it."""

    filename: str
    data: bytes
    kind: str = "customers"
    audience: str = ""


def people() -> list[Person]:
    """All of them, in the order in which they came to the shop."""
    chance = random.Random(SEED)  # noqa: S311
    tongues = chance.choices(TONGUES, [tongue.share for tongue in TONGUES], k=PEOPLE)
    taken: set[str] = set()
    found = [_person(chance, n, tongue, taken) for n, tongue in enumerate(tongues)]
    return [replace(old, **new) for old, new in zip(found, _FIRST, strict=False)] + found[len(_FIRST) :]


def files() -> list[File]:
    """What the shop has imported: its customers, the sign-ups of its newsletter, and whom not to mail."""
    everyone = people()
    signed_up = everyone[PEOPLE - SUBSCRIBERS :]
    # Taken, though not all that its row says.
    signed_up[300] = replace(signed_up[300], locale="by phone")
    known = everyone[: PEOPLE - SUBSCRIBERS]
    return [
        File("customers.csv", _csv(known)),
        File("newsletter-sign-ups.csv", _with_slips(_csv(signed_up, ";", audience=False)), audience="Newsletter"),
        File("do-not-mail.csv", _do_not_mail(known), kind="suppressions"),
    ]


def broken_file() -> File:
    """One with which the import can do nothing: a list of tills."""
    return File(
        "till-export.csv", b"number;name;city\n" + b"".join(b"%d;Till %d;Hamburg\n" % (n, n) for n in range(40))
    )


def addresses() -> list[str]:
    """Every address that these files may put anywhere, normalised."""
    return [normalise_email(person.email) for person in people()] + [address for address, _ in _strangers()]


def _person(chance: random.Random, n: int, tongue: Tongue, taken: set[str]) -> Person:
    givens, families = chance.choice(tongue.groups)
    given, latin_given = _spelled(chance.choice(givens.split()))
    family, latin_family = _spelled(chance.choice(families.split()))
    parts = (family, given) if tongue.family_first else (given, family)
    address = _address(chance, latin_given, latin_family, tongue.locale[:2], taken)
    name = "" if chance.random() < 0.03 else tongue.between.join(parts)
    locale = "" if chance.random() < 0.04 else tongue.locale
    audience = chance.choices((*AUDIENCES, ""), (6, 42, 17, 35))[0]
    return Person(address, name, locale, f"MTH-{10_001 + n}", audience)


def _spelled(name: str) -> tuple[str, str]:
    """As it is written, and as it stands in an address."""
    native, _, latin = name.partition(":")
    plain = latin or unicodedata.normalize("NFKD", native.translate(_PLAIN))
    return native, "".join(c for c in plain.lower() if c.isascii() and (c.isalnum() or c == "-"))


def _address(chance: random.Random, given: str, family: str, language: str, taken: set[str]) -> str:
    local = chance.choice(
        (f"{given}.{family}", f"{given}.{family}", f"{given[0]}.{family}", f"{family}.{given}", given)
    )
    if chance.random() < 0.12:
        local += chance.choice(("+tea", "+shop", "+offers"))
    elif chance.random() < 0.25:
        local += str(chance.randrange(58, 100))
    hosts = (*_HOSTS, f"{language}.example.org", f"{language}.example.com")
    domain = chance.choice(_WORK) if chance.random() < 0.04 else chance.choice(hosts)
    number, address = 1, f"{local}@{domain}"
    while address in taken:
        number += 1
        base, plus, tag = local.partition("+")
        address = f"{base}{number}{plus}{tag}@{domain}"
    taken.add(address)
    # Some type their own address with capitals.
    return address.title().replace("+T", "+t") if chance.random() < 0.02 else address


def _csv(rows: list[Person], delimiter: str = ",", audience: bool = True) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(["email", "name", "locale", "customer number", *(["audience"] if audience else [])])
    for row in rows:
        cells = [row.email, row.name, row.locale, row.source_id]
        writer.writerow([*cells, row.audience] if audience else cells)
    return out.getvalue().encode()


# Rows as they stand in files that people have kept by hand.
_SLIPS = (
    "jonas.petersen(at)mail.example.com;Jonas Petersen;de-DE;",
    ";Nobody left an address;en-GB;",
    "clara@@post.example.net;Clara Böhm;de-DE;",
    "lost.half;",
    "rory.quinn@inbox.example..org;Rory Quinn;en-GB;",
    "amelie lefevre@mail.example.com;Amélie Lefèvre;fr-FR;",
    "someone.else@post.example.net;Takes a number that is taken;en-GB;MTH-10001",
)


def _with_slips(good: bytes) -> bytes:
    """Some rows that can't be taken among those that can, as far apart as they would be."""
    lines = good.decode().split("\r\n")
    for n, slip in enumerate(_SLIPS):
        lines.insert(23 + 71 * n, slip)
    return "\r\n".join(lines).encode()


def _do_not_mail(known: list[Person]) -> bytes:
    """Whom an earlier mailer was told not to mail: some customers, some who are none, one row without sense."""
    chance = random.Random(f"{SEED}: not these")  # noqa: S311
    some = [
        (person.email, chance.choice(("unsubscribe", "unsubscribe", "bounce", "spam")))
        for person in chance.sample(known, 70)
    ]
    rows = [*some, *_strangers()]
    lines = ["email,reason", *(f"{email},{reason}" for email, reason in rows), "see the other list,unsubscribe"]
    return "\r\n".join(lines).encode() + b"\r\n"


def _strangers() -> Iterator[tuple[str, str]]:
    for n in range(1, 13):
        yield f"former.reader{n}@letters.example.com", "unsubscribe"
