"""Run the processes of an instance, in the background or in the foreground.

supervisord restarts a process that dies and lets each one finish its current step when it is stopped. The embedded
PostgreSQL is not one of its processes, so that the services can be stopped without the database.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from local import postgresql as embedded_postgresql
from local import readiness, source_code
from local.readiness import ServiceError
from webapp.campaigns import timing
from webapp.core import atomic_files
from webapp.core.settings import ROOT, Settings, socket_folder
from webapp.serve import web_arguments

# docker-compose.yml and the systemd units in docs/operations use the same value.
GRACE_SECONDS = int(timing.SHUTDOWN_TIMEOUT)
INSTANCE_VARIABLE = "ONECODE_INSTANCE"


@contextmanager
def instance_lock(settings: Settings) -> Iterator[None]:
    """Let one process at a time start or stop an instance; others wait."""
    file = _lock_folder(settings.instance_path)
    with file:
        yield


def _lock_folder(folder: Path) -> IO[str]:
    """Create the folder and lock it; the lock lasts until the returned file is closed."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "lock").open("a")
        except OSError as error:
            raise ServiceError(atomic_files.explain_os_error(error, folder)) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another command that starts or stops this instance …", flush=True)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_same_file(file, folder / "lock"):
            return file
        # The folder was deleted while this process waited (`make demo-reset`).
        file.close()


def _is_same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def embedded_database(settings: Settings) -> embedded_postgresql.EmbeddedServer:
    """Return the embedded server of an instance."""
    return embedded_postgresql.locate_server(settings.instance_path, socket_folder(settings.instance_path))


def start_database(settings: Settings) -> bool:
    """Start the embedded server and create its database.

    Return False if it was running already or DATABASE_URL is set.
    """
    if not settings.uses_embedded_database:
        return False
    server = embedded_database(settings)
    started = server.start()
    server.create_database("onecode")
    return started


def data_folders(settings: Settings) -> list[Path]:
    """Return the folders that an instance writes to on this machine."""
    folders = [settings.instance_path]
    return [*folders, embedded_database(settings).home] if settings.uses_embedded_database else folders


def stop_database(settings: Settings) -> bool:
    """Stop the embedded server; return whether it was running."""
    return settings.uses_embedded_database and embedded_database(settings).stop()


def is_database_running(settings: Settings) -> bool:
    """Return whether the embedded server is running.

    True if DATABASE_URL names another server.
    """
    return not settings.uses_embedded_database or embedded_database(settings).is_running()


def is_supervisor_running(settings: Settings) -> bool:
    """Return whether the supervisor of an instance is running."""
    return _find_supervisor(settings) is not None


def start_services(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """Start web, worker and, without MAIL_SERVER, the mail sink in the background.

    It waits until they are ready.

    :param environment: variables of the started processes that differ from those of this process.
    :raises ServiceError: when a service does not become ready; all processes are stopped then.
    """
    atomic_files.write_atomically(settings.instance_path / "port", str(settings.port))
    source_code.record_started_code(settings)
    configuration = _write_configuration(settings)
    with (settings.instance_path / "log" / "start.log").open("wb") as log:
        positions = readiness.LogPositions(settings.instance_path / "log")
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            cwd=ROOT,
            env=_process_environment(settings) | dict(environment or {}),
        )
    try:
        readiness.wait_until_ready(settings, positions, supervisor)
    except BaseException:
        stop_services(settings)
        raise


def run_in_foreground(settings: Settings) -> None:
    """Run the same processes with their logs on the screen.

    It waits until all have ended after Ctrl-C or SIGTERM.
    """
    atomic_files.write_atomically(settings.instance_path / "port", str(settings.port))
    source_code.record_started_code(settings)
    command = [
        sys.executable,
        "-m",
        "supervisor.supervisord",
        "-n",
        "-c",
        str(_write_configuration(settings, foreground=True)),
    ]
    # Ctrl-C signals the whole process group: supervisord stops its children, and this process waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_process_environment(settings),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.terminate())
    supervisor.wait()


def stop_services(settings: Settings) -> bool:
    """Stop all processes of an instance; return whether there were any.

    This includes processes left by a killed supervisor.
    """
    found = _list_own_processes(settings)
    supervisor = _find_supervisor(settings)
    if supervisor is not None:
        supervisor.send_signal(signal.SIGTERM)
        psutil.wait_procs([supervisor], timeout=GRACE_SECONDS + 10)
    left = _list_own_processes(settings)
    for process in left:
        _send_signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(left, timeout=GRACE_SECONDS if left else 0)
    for process in left:
        _send_signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)
    return bool(found)


def _write_configuration(settings: Settings, foreground: bool = False) -> Path:
    """Write supervisord's configuration.

    Paths are passed in the environment, where no character needs escaping.
    """
    folder = settings.instance_path
    _make_private_folder(folder / "mails")
    _make_private_folder(folder / "log")
    programs = {"web": " ".join(web_arguments(settings.port)), "worker": "-m webapp.worker"}
    if settings.uses_mail_sink:
        programs["mail"] = "-m flask --app wsgi mail-sink"
    lines = [
        "[supervisord]",
        "logfile=%(ENV_ONECODE_INSTANCE)s/log/supervisor.log"
        if not foreground
        else "logfile=/dev/null\nlogfile_maxbytes=0",
        "pidfile=%(ENV_ONECODE_INSTANCE)s/supervisord.pid",
        "childlogdir=%(ENV_ONECODE_INSTANCE)s/log",
        "minfds=256",
        # Without this, supervisord warns when root starts it.
        *(["user=root"] if os.geteuid() == 0 else []),
    ]
    for name, arguments in programs.items():
        log = "/dev/stdout" if foreground else f"%(ENV_ONECODE_INSTANCE)s/log/{name}.log"
        lines += [
            f"[program:{name}]",
            f'command="%(ENV_ONECODE_PYTHON)s" {arguments}',
            "autorestart=true",
            "startretries=1000000",
            f"stopwaitsecs={GRACE_SECONDS}",
            "stopasgroup=false",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={log}",
            "stdout_logfile_maxbytes=" + ("0" if foreground else "20MB"),
            "stdout_logfile_backups=2",
        ]
    file = folder / "supervisord.conf"
    file.write_text("\n".join(lines) + "\n")
    return file


def _make_private_folder(folder: Path) -> None:
    """Create a folder that no other user can read.

    Logs and emails contain personal data.
    """
    folder.mkdir(mode=0o700, exist_ok=True)


def _process_environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        INSTANCE_VARIABLE: str(settings.instance_path),
        "INSTANCE_PATH": str(settings.instance_path),
        "ONECODE_PYTHON": sys.executable,
        "PORT": str(settings.port),
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
    }


def _find_supervisor(settings: Settings) -> psutil.Process | None:
    try:
        process = psutil.Process(int((settings.instance_path / "supervisord.pid").read_text()))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return process if _is_own_process(process, settings) else None


def _list_own_processes(settings: Settings) -> list[psutil.Process]:
    """Return the running processes of an instance.

    They have the instance in their environment. This process and its parents are excluded.
    """
    excluded = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [p for p in psutil.process_iter() if p.pid not in excluded and _is_own_process(p, settings)]


def _is_own_process(process: psutil.Process, settings: Settings) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(INSTANCE_VARIABLE) == str(
            settings.instance_path
        )
    except psutil.Error:
        return False


def _send_signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
