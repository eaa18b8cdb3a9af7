"""The loops that everybody writes, each in a process of its own:
`python -m benchmarks.mail_loops WAY PORT N FOLDER URL`.

The folder holds what is sent (`put_into`): one ready message, and the same mail as two Jinja templates.
"""

from __future__ import annotations

import email
import email.policy
import functools
import json
import re
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psycopg
from flask import Flask, render_template
from flask_mail import Mail, Message
from psycopg.rows import class_row

ROOT = Path(__file__).resolve().parent.parent
RAW, FLASK_MAIL, CEILING = "raw", "flask-mail", "ceiling"
SENDER = "offers@example.com"
CUSTOMERS = "select id, email, name from customer order by id limit %s"


class Customer(NamedTuple):
    id: int
    email: str
    name: str


def put_into(folder: Path, wire: bytes, site: str) -> None:
    """Keep a mail of ours, as it was on the wire, for the loops to send.

    :param site: how the links begin whose last part is the recipient's own.
    :raises ValueError: when it has not both a text and HTML.
    """
    mail = re.sub(rb"(?m)^\.\.", b".", wire)
    (folder / "mail").write_bytes(mail)
    message = email.message_from_bytes(mail, policy=email.policy.default)
    recipient = message["To"].addresses[0]
    for kind, file in (("plain", "mail.txt"), ("html", "mail.html")):
        part = message.get_body((kind,))
        if part is None:
            raise ValueError(f"our mail has no {kind} part")
        words = template(part.get_content(), recipient.display_name, recipient.addr_spec, site)
        (folder / file).write_text(words)


def template(words: str, name: str, address: str, site: str) -> str:
    """A mail to somebody as a Jinja template: the name, the address, and in every link something that is the
    recipient's own, which is no signature and so costs nothing."""
    words = words.replace("{", "{{ '{' }}")
    own = re.compile(re.escape(site) + r"/\w+/[\w.%-]{12,}")
    words = own.sub(lambda link: f"{link[0][:-8]}{{{{ '%08d' % customer.id }}}}", words)
    for value, slot in ((address, "email"), (name, "name")):
        words = re.sub(re.escape(value), f"{{{{ customer.{slot} }}}}", words, flags=re.IGNORECASE)
    return words


def run(way: str, port: int, n: int, folder: Path, url: str) -> float:
    """One of the loops, for so many customers, in a process of its own; its CPU seconds.

    :raises RuntimeError: when it does not come to its end, with its last words.
    """
    command = [sys.executable, "-m", "benchmarks.mail_loops", way, str(port), str(n), str(folder), url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout))


def raw(port: int, n: int, folder: Path, url: str) -> None:
    """The library's own loop: one ready message for everybody, no database."""
    mail = (folder / "mail").read_bytes()
    with smtplib.SMTP("127.0.0.1", port) as relay:
        for k in range(1, n + 1):
            relay.sendmail(SENDER, [f"customer.{k}@example.com"], mail)


def flask_mail(port: int, n: int, folder: Path, url: str) -> None:
    """The loop of Flask-Mail's documentation, with two templates and the customers from the database."""
    app = Flask("shop", template_folder=str(folder))
    app.config.update(MAIL_PORT=port, MAIL_SERVER="127.0.0.1", MAIL_DEFAULT_SENDER=SENDER)
    mail = Mail(app)
    # It asks the network for the name of this machine with every message. That is not what is measured here.
    socket.getfqdn = functools.cache(socket.getfqdn)
    with app.app_context(), psycopg.connect(url, row_factory=class_row(Customer)) as database:
        recipients = database.execute(CUSTOMERS, [n]).fetchall()
        with mail.connect() as connection:
            for customer in recipients:
                connection.send(
                    Message(
                        f"25% off for you, {customer.name}",
                        recipients=[customer.email],
                        body=render_template("mail.txt", customer=customer),
                        html=render_template("mail.html", customer=customer),
                    )
                )


def ceiling(port: int, n: int, folder: Path, url: str) -> None:
    """What the sink can take from one connection: bytes that are ready, a mail and the next one's commands at once."""
    mail = (folder / "mail").read_bytes()
    with socket.create_connection(("127.0.0.1", port)) as relay:
        relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = relay.makefile("rb")
        relay.sendall(b"HELO bench\r\n")
        _read(answers.readline, 1)
        while not answers.readline().startswith(b"250 "):
            pass
        relay.sendall(_envelope(1))
        _read(answers.readline, 3)
        for k in range(1, n):
            relay.sendall(mail + b".\r\n" + _envelope(k + 1))
            _read(answers.readline, 4)
        relay.sendall(mail + b".\r\n")
        _read(answers.readline, 1)


def _envelope(k: int) -> bytes:
    return f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<customer.{k}@example.com>\r\nDATA\r\n".encode()


def _read(line: Callable[[], bytes], n: int) -> None:
    for _ in range(n):
        line()


WAYS: dict[str, Callable[[int, int, Path, str], None]] = {RAW: raw, FLASK_MAIL: flask_mail, CEILING: ceiling}


def main() -> None:
    way, port, n, folder, url = sys.argv[1:]
    before = time.process_time()
    WAYS[way](int(port), int(n), Path(folder), url)
    print(json.dumps(time.process_time() - before))


if __name__ == "__main__":
    main()
