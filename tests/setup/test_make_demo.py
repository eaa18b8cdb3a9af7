"""`make demo`, `make demo-down` and `make demo-reset` in a copy of the tree."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import requests
from psycopg import sql

from local import demo_instance
from tests.support.live_server import wait_until
from tests.support.local_copy import LocalCopy, local_copies
from webapp.core import settings as app_settings
from webapp.core.extensions import db

pytestmark = pytest.mark.lifecycle

# Tables that running processes write without user activity.
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
def both_instances() -> Iterator[BothInstances]:
    with local_copies() as make:
        copy = make("one copy")
        assert copy.make("setup").returncode == 0
        rows = count_rows(copy.folder / "instance")
        result = copy.make("demo")
        assert result.returncode == 0, result.stderr
        yield BothInstances(copy, demo_port(result.stdout), result.stdout, rows)


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
    return psycopg.connect(app_settings.embedded_database_url(instance))


def demo_port(output: str) -> int:
    return int(re.findall(r"  Staff +http://127\.0\.0\.1:(\d+)/", output)[0])


def invitation_links(output: str) -> list[str]:
    return re.findall(r"http://\S+/invitations/\S+", output)


def test_the_users_instance_is_not_changed(both_instances: BothInstances) -> None:
    assert count_rows(both_instances.copy.folder / "instance") == both_instances.rows_before
    assert not {both_instances.port, both_instances.port + 1, both_instances.port + 2} & {
        both_instances.copy.port + n for n in range(3)
    }
    assert (both_instances.copy.folder / "instance" / "port").read_text() == str(both_instances.copy.port)
    assert both_instances.copy.get("/healthz")


def test_the_managers_link_leads_to_a_shop_with_campaigns(both_instances: BothInstances) -> None:
    manager = requests.Session()
    link = invitation_links(both_instances.copy.make("demo").stdout)[0]
    token = re.findall(r'name="csrf_token"[^>]*value="([^"]+)"', manager.get(link, timeout=10).text)[0]
    form = {"csrf_token": token, "password": PASSWORD, "confirm": PASSWORD}
    assert manager.post(link, form, timeout=10).ok

    page = manager.get(f"http://127.0.0.1:{both_instances.port}/campaigns", timeout=10).text

    assert "Mara Lind" in page
    assert "Iced tea season" in page


def test_demo_emails_arrive_in_the_demo_mail_sink(both_instances: BothInstances) -> None:
    wait_until(lambda: "No emails yet" not in both_instances.copy.get("/", both_instances.port + 2))

    assert "No emails yet" in both_instances.copy.get("/", both_instances.copy.port + 2)


def test_make_demo_again_prints_the_same_urls_and_new_links(both_instances: BothInstances) -> None:
    repeated = both_instances.copy.make("demo")

    assert repeated.returncode == 0
    assert repeated.stdout.startswith("The demo is already running.")
    assert demo_port(repeated.stdout) == both_instances.port
    assert len(invitation_links(repeated.stdout)) == 3
    assert not set(invitation_links(repeated.stdout)) & set(invitation_links(both_instances.output))
    assert count_rows(both_instances.copy.folder / "instance" / "demo")["customer"] == 10_000


def test_the_demo_is_not_started_twice_on_another_port(both_instances: BothInstances) -> None:
    result = both_instances.copy.make("demo", f"PORT={both_instances.port + 10}")

    assert result.returncode != 0
    assert result.stderr.startswith(
        f"onecode: the demo is already running on port {both_instances.port};"
        f" "
        f"to move it to port {both_instances.port + 10}"
    )


def test_down_stops_only_the_users_instance_and_mentions_the_demo(both_instances: BothInstances) -> None:
    result = both_instances.copy.make("down")

    assert "The demo is still running; stop it with: make demo-down" in result.stdout
    assert both_instances.copy.get("/healthz", both_instances.port)
    assert both_instances.copy.make("setup").returncode == 0


def test_demo_down_stops_only_the_demo_and_keeps_its_data(both_instances: BothInstances) -> None:
    folder = both_instances.copy.folder / "instance" / "demo"
    redemptions = count_rows(folder)["redemption"]

    result = both_instances.copy.make("demo-down")

    assert result.stdout == "The demo is stopped; its data is kept.\n"
    assert both_instances.copy.get("/healthz")
    repeated = both_instances.copy.make("demo")
    assert "Filling" not in repeated.stdout
    assert demo_port(repeated.stdout) == both_instances.port
    assert count_rows(folder)["redemption"] == redemptions


def test_a_demo_killed_while_filling_is_completed_and_reset_deletes_it(
    make_copy: Callable[[str], LocalCopy],
) -> None:
    instance = make_copy("without the user's instance")
    (instance.folder / ".env").write_text(
        "DATABASE_URL=postgresql://onecode:secret@127.0.0.1:1/onecode\nMAIL_SERVER=relay.invalid\nMAIL_PORT=25\n"
    )
    folder = instance.folder / "instance" / "demo"
    kill_while_filling(instance, folder)

    result = instance.make("demo")

    assert result.returncode == 0, result.stderr
    rows = count_rows(folder)
    assert (rows["customer"], rows["customer_import"], rows["staff_user"]) == (10_000, 4, 2)
    assert instance.get("/healthz", demo_port(result.stdout))
    assert demo_instance.MARKER in os.listdir(folder)

    assert instance.make("demo-reset").stdout == "The demo is deleted; `make demo` creates a new one.\n"

    assert not folder.exists()
    assert instance.processes() == []


def kill_while_filling(copy: LocalCopy, folder: Path) -> None:
    """Start the demo and kill the command with SIGKILL once it has created customers."""
    with copy.running("demo") as process:
        assert process.stdout is not None
        assert any("Filling" in line for line in process.stdout)
        wait_until(lambda: has_customers(folder), interval=0.02)
        os.killpg(process.pid, signal.SIGKILL)


def has_customers(instance: Path) -> bool:
    with connect(instance) as connection:
        row = connection.execute("select exists (select from customer)").fetchone()
        return bool(row and row[0])
