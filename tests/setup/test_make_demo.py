"""`make demo`, `make demo-down` and `make demo-reset` in a copy of the tree, with and without the user's instance."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import requests
from psycopg import sql

from local import demo_instance
from tests.support.local_copy import LocalCopy, local_copies
from webapp.core import settings as app_settings
from webapp.core.extensions import db

pytestmark = [pytest.mark.lifecycle, pytest.mark.xdist_group("make demo")]

# Written by the program itself while it runs.
NOT_DATA = {"worker", "mail_pace", "redemption_tally"}
PASSWORD = "a quiet morning with tea"


@dataclass
class BothInstances:
    """A copy of the tree in which the user's instance and the demo run."""

    copy: LocalCopy
    port: int
    output: str
    rows_before: dict[str, int]


@pytest.fixture(scope="module")
def both() -> Iterator[BothInstances]:
    with local_copies() as make:
        copy = make("one copy")
        assert copy.make("setup").returncode == 0
        rows = count_rows(copy.folder / "instance")
        done = copy.make("demo")
        assert done.returncode == 0, done.stderr
        yield BothInstances(copy, demo_port(done.stdout), done.stdout, rows)


def count_rows(instance: Path) -> dict[str, int]:
    """The number of rows of every table of an instance."""
    with connect(instance) as connection:
        return {
            table.name: connection.execute(
                sql.SQL("select count(*) from {}").format(sql.Identifier(table.name))
            ).fetchone()[0]  # type: ignore[index]
            for table in db.metadata.sorted_tables
            if table.name not in NOT_DATA
        }


def connect(instance: Path) -> psycopg.Connection:
    url = app_settings.embedded_database_url(instance)
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1))


def demo_port(output: str) -> int:
    return int(re.findall(r"  Staff +http://127\.0\.0\.1:(\d+)/", output)[0])


def links(output: str) -> list[str]:
    return re.findall(r"http://\S+/invitations/\S+", output)


def test_the_users_instance_is_left_alone(both: BothInstances) -> None:
    assert count_rows(both.copy.folder / "instance") == both.rows_before
    assert not {both.port, both.port + 1, both.port + 2} & {both.copy.port + n for n in range(3)}
    assert (both.copy.folder / "instance" / "port").read_text() == str(both.copy.port)
    assert both.copy.get("/healthz")


def test_the_managers_link_leads_to_a_shop_with_campaigns(both: BothInstances) -> None:
    manager = requests.Session()
    link = links(both.copy.make("demo").stdout)[0]
    token = re.findall(r'name="csrf_token"[^>]*value="([^"]+)"', manager.get(link, timeout=10).text)[0]
    form = {"csrf_token": token, "password": PASSWORD, "confirm": PASSWORD}
    assert manager.post(link, form, timeout=10).ok

    page = manager.get(f"http://127.0.0.1:{both.port}/campaigns", timeout=10).text

    assert "Mara Lind" in page
    assert "Iced tea season" in page


def test_its_emails_arrive_in_a_sink_of_its_own(both: BothInstances) -> None:
    deadline = time.monotonic() + 60
    while "No mail yet" in both.copy.get("/", both.port + 2):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert "No mail yet" in both.copy.get("/", both.copy.port + 2)


def test_run_again_it_prints_the_same_addresses_and_new_links(both: BothInstances) -> None:
    again = both.copy.make("demo")

    assert again.returncode == 0
    assert again.stdout.startswith("The demo is already running.")
    assert demo_port(again.stdout) == both.port
    assert len(links(again.stdout)) == 3
    assert not set(links(again.stdout)) & set(links(both.output))
    assert count_rows(both.copy.folder / "instance" / "demo")["customer"] == 10_000


def test_on_another_port_it_is_not_started_a_second_time(both: BothInstances) -> None:
    done = both.copy.make("demo", f"PORT={both.port + 10}")

    assert done.returncode != 0
    assert done.stderr.startswith(f"onecode: the demo runs on port {both.port} already; to have it on {both.port + 10}")


def test_down_stops_the_users_instance_alone_and_mentions_the_demo(both: BothInstances) -> None:
    done = both.copy.make("down")

    assert "The demo still runs; stop it with: make demo-down" in done.stdout
    assert both.copy.get("/healthz", both.port)
    assert both.copy.make("setup").returncode == 0


def test_demo_down_stops_the_demo_alone_and_keeps_its_data(both: BothInstances) -> None:
    folder = both.copy.folder / "instance" / "demo"
    redemptions = count_rows(folder)["redemption"]

    done = both.copy.make("demo-down")

    assert done.stdout == "The demo is stopped; its data is kept.\n"
    assert both.copy.get("/healthz")
    again = both.copy.make("demo")
    assert "Filling" not in again.stdout
    assert demo_port(again.stdout) == both.port
    assert count_rows(folder)["redemption"] == redemptions


def test_killed_while_it_is_filled_it_is_complete_the_next_time_and_reset_leaves_nothing(
    make_copy: Callable[[str], LocalCopy],
) -> None:
    one = make_copy("without the user's instance")
    (one.folder / ".env").write_text(
        "DATABASE_URL=postgresql://onecode:secret@127.0.0.1:1/onecode\nMAIL_SERVER=relay.invalid\nMAIL_PORT=25\n"
    )
    folder = one.folder / "instance" / "demo"
    kill_while_filling(one, folder)

    done = one.make("demo")

    assert done.returncode == 0, done.stderr
    rows = count_rows(folder)
    assert (rows["customer"], rows["customer_import"], rows["staff_user"]) == (10_000, 4, 2)
    assert one.get("/healthz", demo_port(done.stdout))
    assert demo_instance.MARKER in os.listdir(folder)

    assert one.make("demo-reset").stdout == "The demo is deleted; `make demo` makes a new one.\n"

    assert not folder.exists()
    assert one.processes() == []


def kill_while_filling(one: LocalCopy, folder: Path) -> None:
    """Start the demo and kill the command, as with kill -9, when the first customers are there."""
    with one.start("demo") as process:
        assert process.stdout is not None
        assert any("Filling" in line for line in process.stdout)
        deadline = time.monotonic() + 60
        while not has_customers(folder):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)


def has_customers(instance: Path) -> bool:
    with connect(instance) as connection:
        row = connection.execute("select exists (select from customer)").fetchone()
        return bool(row and row[0])
