"""A site as docs/operations.md describes it, in a temporary folder."""

from __future__ import annotations

import datetime
import ipaddress
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.live_server import wait_until
from tests.support.operations_docs import block, setting
from tests.support.ports import free_port
from webapp.core.settings import ROOT

BINARIES = Path("/usr/lib/postgresql/15/bin")
# The account for the user postgres of the docs: not root, even when root runs the tests.
POSTGRES = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
PROJECT_SETTINGS = (
    "DATABASE_URL",
    "SECRET_KEY",
    "INSTANCE_PATH",
    "PORT",
    "PUBLIC_URL",
    "TRUSTED_PROXIES",
    "TEST_DATABASE_URL",
)


def missing_programs() -> str:
    """Name the programs that a site needs and that are not installed."""
    required = {"Debian's PostgreSQL 15": BINARIES / "initdb", "nginx": Path(NGINX)}
    return " and ".join(name for name, path in required.items() if not path.exists())


@dataclass
class Site:
    """Folders, ports and processes of the site."""

    folder: Path
    code: Path
    database_port: int
    relay_port: int
    http: int
    https: int
    web: tuple[int, int]
    password: str = "long-and-made-up"
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.https}"

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def backups(self) -> Path:
        """The folder for /var/backups: as on Debian, all users may read it."""
        return self.folder / "backups"

    def owner_url(self, database: str = "onecode", role: str = "onecode") -> str:
        return (
            f"postgresql://{role}:{self.password}@localhost:{self.database_port}/{database}"
            f"?sslmode=verify-full&sslrootcert={self.certificate}"
        )

    def environment(self) -> dict[str, str]:
        """The environment for the docs' commands, with server and certificate."""
        return {k: v for k, v in os.environ.items() if k not in PROJECT_SETTINGS and not k.startswith("MAIL_")} | {
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
            "PGHOST": "localhost",
            "PGPORT": str(self.database_port),
            "PGUSER": "postgres",
            "PGPASSWORD": self.password,
            "SSL_CERT_FILE": str(self.certificate),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, title: str, changed: Mapping[str, str] | None = None, typed: str = "", **environment: str) -> str:
        """Run a block of commands from the docs.

        Only the names of users and folders are replaced. Commands of the user postgres do not run as root.

        :param changed: texts in the block and their replacements.
        :param typed: the input for prompts.
        """
        commands = block(title, changed).replace("/opt/onecode", str(self.code))
        commands = commands.replace("/var/backups", str(self.backups))
        commands = commands.replace("-o postgres -g postgres", f"-o {POSTGRES.pw_uid} -g {POSTGRES.pw_gid}")
        unprivileged = f"setpriv --reuid={POSTGRES.pw_uid} --regid={POSTGRES.pw_gid} --clear-groups "
        commands = commands.replace("sudo -u postgres ", unprivileged if os.geteuid() == 0 else "")
        commands = re.sub(r"\bsudo (-u \w+ )?", "", commands)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=self.environment() | environment,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            start_new_session=True,
        )
        if done.returncode:
            raise AssertionError(f"{title}: {done.stdout}\n{done.stderr}")
        return done.stdout

    def flask(self, *arguments: str, typed: str = "", **environment: str) -> str:
        """Run one of the program's commands; return its output."""
        command = [str(self.code / ".venv/bin/flask"), "--app", "wsgi", *arguments]
        env = self.environment() | environment
        done = subprocess.run(
            command, cwd=self.code, env=env, input=typed, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise AssertionError(f"{arguments}: {done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def start(self, name: str) -> None:
        """Start `onecode-web@8000` or `onecode-worker@1` by its ExecStart in the docs."""
        kind, _, instance = name.partition("@")
        unit = block(f"/etc/systemd/system/{kind}@.service")
        command = setting(unit, "ExecStart").replace("/opt/onecode", str(self.code))
        env = self.environment()
        for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE):
            key, _, value = line.replace("%i", instance).partition("=")
            env[key] = value
        with (self.log / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                shlex.split(command), cwd=self.code, env=env, stdout=log, stderr=log, start_new_session=True
            )
        if kind == "onecode-web":
            wait_for_url(f"http://127.0.0.1:{instance}/readyz")

    def stop(self, name: str) -> int:
        """Stop a unit by SIGTERM to its first process; return the exit status."""
        process = self.started.pop(name)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(90)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def kill(self, name: str) -> None:
        """Kill a unit with all of its processes."""
        process = self.started.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def query(self, statement: str, database: str = "onecode", role: str = "onecode") -> list[tuple[object, ...]]:
        """Return the rows of a statement.

        Only the role `postgres` may use the database `postgres`.
        """
        url = self.owner_url(database, role)
        with psycopg.connect(url if role == "onecode" else url.split("?")[0], autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running_site(folder: Path, relay_port: int) -> Iterator[Site]:
    """Run a site's PostgreSQL and nginx; tests start its programs."""
    folder.chmod(0o755)
    site = Site(
        folder, folder / "onecode", free_port(), relay_port, free_port(), free_port(), (free_port(), free_port())
    )
    site.log.mkdir()
    site.backups.mkdir(mode=0o755)
    _certificate(site)
    _copy(site)
    with _postgresql(site):
        site.run("create the role and the database", typed=f"{site.password}\n{site.password}\n")
        site.run("settings of the server")
        _settings(site)
        try:
            with _nginx(site):
                yield site
        finally:
            # In parallel, because a worker checks only every few seconds whether it should stop.
            for process in site.started.values():
                process.terminate()
            for name in list(site.started):
                site.stop(name)


def wait_for_url(url: str) -> None:
    def responds() -> bool:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return True
        return False

    wait_until(responds, what=f"{url} responds")


def _certificate(site: Site) -> None:
    """Create a self-signed certificate for nginx, relay and database."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    site.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (site.folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (site.folder / "server.key").chmod(0o600)


def _copy(site: Site) -> None:
    """Copy the program to the folder for /opt/onecode of the docs."""
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in tracked.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (site.code / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, site.code / name)
    (site.code / ".venv").symlink_to(Path(os.environ.get("VIRTUAL_ENV") or ROOT / ".venv"))


def _settings(site: Site) -> None:
    changed = {
        "PASSWORD@db.shop.example:5432": f"{site.password}@localhost:{site.database_port}",
        "/etc/onecode/db-ca.pem": str(site.certificate),
        "=SECRET": "=only-for-this-test",
        "https://offers.shop.example": site.url,
        "WEB_HOST=10.0.0.11": "WEB_HOST=127.0.0.1",
        "/var/lib/onecode": str(site.folder / "state"),
        "relay.shop.example": "localhost",
        "MAIL_PORT=587": f"MAIL_PORT={site.relay_port}",
    }
    (site.code / ".env").write_text(block("/opt/onecode/.env", changed))


@contextmanager
def _postgresql(site: Site) -> Iterator[None]:
    """Run Debian's PostgreSQL as in the docs, except for its folder and port."""
    home = site.folder / "postgresql"
    home.mkdir(mode=0o700)
    user = POSTGRES.pw_name if os.geteuid() == 0 else None
    secret = home / "password"
    secret.write_text(site.password)
    for name in ("server.crt", "server.key"):
        shutil.copy2(site.folder / name, home / name)
    if user:
        for path in (home, *home.iterdir()):
            os.chown(path, POSTGRES.pw_uid, POSTGRES.pw_gid)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [BINARIES / program, *arguments], user=user, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=60
        )

    data = home / "data"
    run("initdb", "-D", str(data), "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
    with (data / "postgresql.conf").open("a") as file:
        file.write(
            f"port = {site.database_port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
            f"ssl_cert_file = '{home}/server.crt'\nssl_key_file = '{home}/server.key'\nfsync = off\n"
        )
    rule = block("pg_hba.conf", {"10.0.0.0/24": "127.0.0.1/32"})
    (data / "pg_hba.conf").write_text(f"{rule}host all postgres 127.0.0.1/32 scram-sha-256\n")
    control = ("-D", str(data), "-l", str(home / "log"), "-w", "-s")
    run("pg_ctl", *control, "start")
    try:
        # The settings in the docs apply from the next restart; TLS is one of them, but a reload is enough for it.
        with psycopg.connect(site.owner_url("postgres", "postgres").split("?")[0], autocommit=True) as connection:
            connection.execute("alter system set ssl = on")
            connection.execute("select pg_reload_conf()")
        yield
    finally:
        run("pg_ctl", *control, "-m", "immediate", "stop")


@contextmanager
def _nginx(site: Site) -> Iterator[None]:
    folder = site.folder / "nginx"
    (folder / "tmp").mkdir(parents=True)
    changed = {
        "10.0.0.11:8000": f"127.0.0.1:{site.web[0]}",
        "10.0.0.12:8000": f"127.0.0.1:{site.web[1]}",
        "listen 80;": f"listen 127.0.0.1:{site.http};",
        "listen 443": f"listen 127.0.0.1:{site.https}",
        "https://offers.shop.example": site.url,
        "/etc/letsencrypt/live/offers.shop.example/fullchain.pem": str(site.certificate),
        "/etc/letsencrypt/live/offers.shop.example/privkey.pem": str(site.folder / "server.key"),
        "offers.shop.example": "localhost",
        "/var/log/nginx": str(site.log),
    }
    (folder / "onecode.conf").write_text(block("/etc/nginx/conf.d/onecode.conf", changed))
    paths = "".join(
        f"  {name}_temp_path {folder}/tmp/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    main = folder / "nginx.conf"
    main.write_text(
        # Like Debian's default configuration, this sets both logs, which the docs do not.
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {site.log}/error.log;\n"
        f"events {{}}\nhttp {{\n{paths}  access_log {site.log}/access.log;\n  include {folder}/onecode.conf;\n}}\n"
    )
    process = subprocess.Popen([NGINX, "-c", main, "-p", folder, "-e", site.log / "error.log"])
    try:
        yield
    finally:
        process.send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
