"""The demo instance: a second instance with its own folder, database and ports.

Its folder is `demo` in the folder of the user's instance. It always uses the embedded PostgreSQL and the mail sink,
whatever DATABASE_URL, MAIL_SERVER and the other settings of the user say.
"""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime
from pathlib import Path

from local import preflight, supervisor
from local.readiness import ServiceError
from webapp.core import atomic_files
from webapp.core import settings as app_settings
from webapp.core.settings import SETTING_NAMES, Settings

FOLDER_NAME = "demo"
PORT_OFFSET = 100
# Slow enough that sending a campaign to 10,000 customers takes about six minutes and can be watched.
EMAILS_PER_SECOND = 25
# Only a folder with this file is ever deleted.
MARKER = "demo-instance"
MARKER_TEXT = "This folder belongs to the demo; `make demo-reset` deletes it.\n"
# Holds the date of the data. While it is missing, the database is incomplete.
SEEDED_MARKER = "seeded"
# Taken over from the user's settings.
INHERITED_SETTINGS = {"LOG_FORMAT", "LOG_LEVEL"}


def get_folder(user_settings: Settings) -> Path:
    """Return the folder of the demo instance, which may not exist.

    :param user_settings: the settings of the user's instance.
    """
    return user_settings.instance_path / FOLDER_NAME


def exists(user_settings: Settings) -> bool:
    """Return whether there is a demo instance, running or not."""
    return (get_folder(user_settings) / MARKER).is_file()


def create_folder(user_settings: Settings) -> None:
    """Create and mark the folder of the demo instance.

    :raises ServiceError: when the folder exists and is not that of a demo instance.
    """
    folder = get_folder(user_settings)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_files.read_or_create(folder / MARKER, MARKER_TEXT)


def choose_port(user_settings: Settings) -> int:
    """Return the first of three free ports.

    These are the ports of the last start if they are free, or else the next ones from the user's port + 100.
    """
    return preflight.find_free_port(_get_usual_port(user_settings))


def get_environment(user_settings: Settings, port: int | None = None, public_url: str | None = None) -> dict[str, str]:
    """Return all settings of the demo instance as environment variables.

    Empty ones override those of `.env`.

    :param port: of the web server, the last one used by default; the mail sink uses the two after it.
    :param public_url: the address for browsers, that of this machine by default.
    """
    port = port or _get_usual_port(user_settings)
    return dict.fromkeys(set(SETTING_NAMES) - INHERITED_SETTINGS, "") | {
        "INSTANCE_PATH": str(get_folder(user_settings)),
        "PORT": str(port),
        "PUBLIC_URL": public_url or f"http://127.0.0.1:{port}",
        "MAIL_PER_SECOND": str(EMAILS_PER_SECOND),
    }


def load_demo_settings(user_settings: Settings, port: int | None = None, public_url: str | None = None) -> Settings:
    """Load the settings of the demo instance.

    The arguments are those of `get_environment`.

    :raises ServiceError: when the embedded PostgreSQL is not installed.
    """
    if not app_settings.has_embedded_server():
        raise ServiceError("the demo needs the embedded PostgreSQL, which this installation lacks; use: make demo")
    return app_settings.load_settings(get_environment(user_settings, port, public_url))


def is_running(user_settings: Settings) -> bool:
    """Return whether any part of the demo instance runs."""
    if not exists(user_settings):
        return False
    settings = load_demo_settings(user_settings)
    return supervisor.is_supervisor_running(settings) or supervisor.is_database_running(settings)


def get_seeded_date(settings: Settings) -> date | None:
    """Return the date (UTC) for which the database was filled.

    None if it is not filled completely.

    :param settings: those of the demo instance.
    """
    try:
        return date.fromisoformat((settings.instance_path / SEEDED_MARKER).read_text().strip())
    except (FileNotFoundError, ValueError):
        return None


def mark_seeded(settings: Settings) -> None:
    """Record that the database is filled completely, with the data of today."""
    atomic_files.write_atomically(settings.instance_path / SEEDED_MARKER, datetime.now(UTC).date().isoformat())


def delete_database(settings: Settings) -> None:
    """Stop and delete the embedded database of the demo instance."""
    supervisor.stop_database(settings)
    (settings.instance_path / SEEDED_MARKER).unlink(missing_ok=True)
    folder = supervisor.embedded_database(settings).data_folder
    if folder.exists():
        shutil.rmtree(folder)


def delete_folder(user_settings: Settings, settings: Settings) -> None:
    """Delete everything that belongs to the demo instance, which must be stopped.

    :raises ServiceError: when the folder is not that of a demo instance; nothing is deleted.
    """
    folder = get_folder(user_settings)
    _check_folder(folder)
    delete_database(settings)
    # Root's database may be outside of the instance folder.
    home = supervisor.embedded_database(settings).home
    for each in (home, folder):
        if each.exists():
            shutil.rmtree(each)


def _get_usual_port(user_settings: Settings) -> int:
    """Return the port of the last start, or the user's port + 100 (- 100 near the end of the range)."""
    offset = PORT_OFFSET if user_settings.port < 60_000 else -PORT_OFFSET
    return app_settings.read_saved_port(get_folder(user_settings)) or user_settings.port + offset


def _check_folder(folder: Path) -> None:
    is_foreign = folder.exists() and not (folder / MARKER).is_file() and any(folder.iterdir())
    if folder.is_symlink() or is_foreign:
        raise ServiceError(f"{folder} is not the demo's folder and was not changed; move it away and try again")
