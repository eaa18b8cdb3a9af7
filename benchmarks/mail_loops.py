"""Common sending loops, each in a separate process.

Usage: `python -m benchmarks.mail_loops IMPLEMENTATION PORT N FOLDER URL`.

The folder contains what is sent (`save_email`): a prepared message, and the same email as two Jinja templates.
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


def save_email(folder: Path, wire: bytes, site: str) -> None:
    """Save an email, given as it was sent on the wire, for the loops.

    :param site: the beginning of links whose last part is personal.
    :raises ValueError: when it lacks a text or HTML part.
    """
    message_bytes = re.sub(rb"(?m)^\.\.", b".", wire)
    (folder / "mail").write_bytes(message_bytes)
    message = email.message_from_bytes(message_bytes, policy=email.policy.default)
    recipient = message["To"].addresses[0]
    for kind, file in (("plain", "mail.txt"), ("html", "mail.html")):
        part = message.get_body((kind,))
        if part is None:
            raise ValueError(f"the email has no {kind} part")
        content = template(part.get_content(), recipient.display_name, recipient.addr_spec, site)
        (folder / file).write_text(content)


def template(content: str, name: str, address: str, site: str) -> str:
    """Turn the content of an email into a Jinja template.

    Name, address and the end of every link become placeholders; the links are not signed, which costs nothing.
    """
    content = content.replace("{", "{{ '{' }}")
    personal_link = re.compile(re.escape(site) + r"/\w+/[\w.%-]{12,}")
    content = personal_link.sub(lambda link: f"{link[0][:-8]}{{{{ '%08d' % customer.id }}}}", content)
    for value, attribute in ((address, "email"), (name, "name")):
        content = re.sub(re.escape(value), f"{{{{ customer.{attribute} }}}}", content, flags=re.IGNORECASE)
    return content


def run(implementation: str, port: int, n: int, folder: Path, url: str) -> float:
    """Run a loop for n customers in a separate process; return its CPU seconds.

    :raises RuntimeError: when it fails, with the end of its error output.
    """
    command = [sys.executable, "-m", "benchmarks.mail_loops", implementation, str(port), str(n), str(folder), url]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{implementation}: {result.stderr[-2000:]}")
    return float(json.loads(result.stdout))


def raw(port: int, n: int, folder: Path, url: str) -> None:
    """A loop of smtplib alone: one prepared message for all, no database."""
    message_bytes = (folder / "mail").read_bytes()
    with smtplib.SMTP("127.0.0.1", port) as relay:
        for k in range(1, n + 1):
            relay.sendmail(SENDER, [f"customer.{k}@example.com"], message_bytes)


def flask_mail(port: int, n: int, folder: Path, url: str) -> None:
    """The loop of Flask-Mail's documentation, with templates and a database."""
    app = Flask("shop", template_folder=str(folder))
    app.config.update(MAIL_PORT=port, MAIL_SERVER="127.0.0.1", MAIL_DEFAULT_SENDER=SENDER)
    mail = Mail(app)
    # Flask-Mail looks up the host name for every message, which is not to be measured here.
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
    """The maximum over one connection: each email is sent with the next commands."""
    message_bytes = (folder / "mail").read_bytes()
    with socket.create_connection(("127.0.0.1", port)) as relay:
        relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = relay.makefile("rb")
        relay.sendall(b"HELO bench\r\n")
        _read_lines(replies.readline, 1)
        while not replies.readline().startswith(b"250 "):
            pass
        relay.sendall(_envelope(1))
        _read_lines(replies.readline, 3)
        for k in range(1, n):
            relay.sendall(message_bytes + b".\r\n" + _envelope(k + 1))
            _read_lines(replies.readline, 4)
        relay.sendall(message_bytes + b".\r\n")
        _read_lines(replies.readline, 1)


def _envelope(k: int) -> bytes:
    return f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<customer.{k}@example.com>\r\nDATA\r\n".encode()


def _read_lines(line: Callable[[], bytes], n: int) -> None:
    for _ in range(n):
        line()


IMPLEMENTATIONS: dict[str, Callable[[int, int, Path, str], None]] = {RAW: raw, FLASK_MAIL: flask_mail, CEILING: ceiling}


def main() -> None:
    implementation, port, n, folder, url = sys.argv[1:]
    before = time.process_time()
    IMPLEMENTATIONS[implementation](int(port), int(n), Path(folder), url)
    print(json.dumps(time.process_time() - before))


if __name__ == "__main__":
    main()
