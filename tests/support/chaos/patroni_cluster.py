"""Three machines with PostgreSQL, Patroni and etcd, and HAProxy in front of them.

The configuration is that of docs/operations/high-availability.md; only addresses and folders are replaced. As root,
each machine is a network namespace behind a bridge, so that its network can fail. Otherwise each has a loopback address
of its own. Patroni has no watchdog device.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.support import operations_docs
from tests.support.live_server import wait_until

# Programs and the Debian packages that contain them.
PACKAGES = {
    "patroni": "patroni python3-etcd",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "haproxy": "haproxy",
    "initdb": "postgresql",
    "openssl": "openssl",
}
_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
)
HOST_NAME = "db.shop.example"
# Seconds; a busy machine takes long to create a standby, and minutes for `pg_rewind`.
TIMEOUT = 900


def missing_packages() -> list[str]:
    """Return the Debian packages whose programs are not in PATH, nor where Debian installs them."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program, path=_PATH) is None]
    if os.geteuid() == 0 and shutil.which("ip", path=_PATH) is None:
        missing.append("iproute2")
    return missing


def read_versions() -> dict[str, str]:
    """Return what the programs print as their versions, by name."""
    commands = {
        "PostgreSQL": ("postgres", "--version"),
        "Patroni": ("patroni", "--version"),
        "etcd": ("etcd", "--version"),
        "HAProxy": ("haproxy", "-v"),
    }
    return {
        name: subprocess.run([_program(program), option], capture_output=True, text=True, check=True).stdout
        for name, (program, option) in commands.items()
    }


@dataclass
class Machine:
    """One database machine. All its processes work in its folder, which is how they are found."""

    name: str
    address: str
    folder: Path
    is_namespace: bool
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start etcd and Patroni, as the machine does when it boots."""
        self.started.append(self.spawn("etcd", [_program("etcd")], _read_variables(self.folder / "etcd.env")))
        self.start_patroni()

    def start_patroni(self) -> None:
        self.started.append(self.spawn("patroni", [_program("patroni"), str(self.folder / "patroni.yml")], {}))

    def kill(self) -> None:
        """End all processes by SIGKILL, as a power failure does."""
        for process in self.stop_all():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for child in self.started:
            child.wait()
        self.started.clear()
        wait_until(lambda: not self.processes(), TIMEOUT, what=f"{self.name} has no processes")
        # Sockets are in the folder; after a boot, Debian's folder for them is empty.
        for file in self.folder.glob(".s.PGSQL*"):
            file.unlink()

    def erase(self) -> None:
        """Lose the machine with its disks."""
        self.kill()
        for name in ("etcd", "main"):
            shutil.rmtree(self.folder / name)

    def lose_data(self) -> None:
        """Lose the data of PostgreSQL alone; Patroni cannot start it again."""
        self.kill_server()
        shutil.rmtree(self.folder / "main" / "base")

    def stop_all(self) -> list[psutil.Process]:
        """Suspend all processes by SIGSTOP; the kernel still accepts connections. Return them."""
        stopped: list[psutil.Process] = []
        while new := [process for process in self.processes() if process not in stopped]:
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            stopped += new
        return stopped

    def resume(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def disconnect(self) -> None:
        """Cut the network: packets from and to the machine vanish."""
        _run("ip", "link", "set", self.name, "down")

    def reconnect(self) -> None:
        _run("ip", "link", "set", self.name, "up")

    def stop_patroni(self) -> None:
        """Suspend Patroni alone; PostgreSQL goes on without it."""
        self.started[-1].send_signal(signal.SIGSTOP)

    def kill_patroni(self) -> None:
        """End Patroni alone by SIGKILL; PostgreSQL goes on without it."""
        patroni = self.started.pop()
        patroni.kill()
        patroni.wait()

    def stop_etcd(self) -> None:
        """Suspend etcd alone."""
        self.started[0].send_signal(signal.SIGSTOP)

    def kill_server(self) -> None:
        """End all processes of PostgreSQL by SIGKILL."""
        postmaster = psutil.Process(int((self.folder / "main" / "postmaster.pid").read_text().split("\n", 1)[0]))
        for process in (postmaster, *postmaster.children()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def is_primary(self) -> bool:
        """Whether Patroni reports that PostgreSQL accepts writes here: what HAProxy asks."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:8008/primary", timeout=3) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def check_processes(self) -> None:
        """Check that etcd and Patroni run.

        :raises AssertionError: when one has ended, with the last line of its log.
        """
        for name, process in zip(("etcd", "patroni"), self.started, strict=True):
            lines = (self.folder / f"{name}.log").read_text().splitlines()[-1:]
            assert process.poll() is None, f"{name} on {self.name} has ended: {' '.join(lines)}"

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_own = Path(process.cwd()).is_relative_to(self.folder)
                if is_own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def read_cluster(self) -> list[dict[str, Any]]:
        """Return the members of the cluster as Patroni reports them; empty when it does not respond."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:8008/cluster", timeout=3) as response:
                members: list[dict[str, Any]] = json.load(response)["members"]
                return members
        except (OSError, ValueError, KeyError):
            return []

    def spawn(self, log_name: str, command: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a program on the machine as the server's user, with a log file in the machine's folder."""
        prefix = ["ip", "netns", "exec", self.name] if self.is_namespace else []
        if os.geteuid() == 0:
            user = server_user()
            prefix += ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        with (self.folder / f"{log_name}.log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, *command],
                cwd=self.folder,
                env=os.environ | {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": str(self.folder)} | dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@dataclass
class PatroniCluster:
    """The machines, and the connection strings that lead to the primary."""

    machines: list[Machine]
    haproxy_url: str
    multi_host_url: str

    def leader(self) -> Machine:
        return self._find_role("leader")

    def synchronous_standby(self) -> Machine:
        return self._find_role("sync_standby")

    def is_replaced(self, machine: Machine, role: str) -> bool:
        """Whether another machine has the role of a broken one, as the others report it."""
        others = [each for each in self.machines if each is not machine]
        if role == "leader":
            return any(each.is_primary() for each in others)
        members = [member for each in others for member in each.read_cluster()]
        return any(member["role"] == role and member["name"] != machine.name for member in members)

    def switch_over(self) -> None:
        """Let the synchronous standby become the primary by the command of the page."""
        self._run_block("planned switchover", self._local_commands())

    def copy_again(self, machine: Machine) -> None:
        """Copy the database to a machine by the command of the page."""
        # The name first: the path of the configuration may contain it.
        self._run_block("copy the database of db3 again", {"db3": machine.name} | self._local_commands())

    def replace(self, machine: Machine) -> None:
        """Replace a lost machine by a new one by the commands of the page."""
        changed = {"db3": machine.name, "10.0.0.23": machine.address}
        if not machine.is_namespace:
            changed["127.0.0.1:2379"] = f"{self.leader().address}:2379"
        self._run_block("replace db3 in etcd", changed)
        variables = machine.folder / "etcd.env"
        variables.write_text(variables.read_text().replace("CLUSTER_STATE=new", "CLUSTER_STATE=existing"))
        (machine.folder / "etcd").mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = server_user()
            os.chown(machine.folder / "etcd", user.pw_uid, user.pw_gid)
        machine.start()

    def _local_commands(self) -> dict[str, str]:
        """Return what commands of the page have to contain instead to work on the leader."""
        return {"sudo -u postgres ": "", "/etc/patroni/config.yml": str(self.leader().folder / "patroni.yml")}

    def _run_block(self, title: str, changed: Mapping[str, str]) -> None:
        """Run commands of the page on the leader."""
        leader = self.leader()
        process = leader.spawn("commands", ["sh", "-ec", operations_docs.block(title, changed)], {})
        assert process.wait() == 0, (leader.folder / "commands.log").read_text()[-300:]

    def wait_until_complete(self) -> None:
        """Wait for a leader, a synchronous standby and another standby, all of which replicate."""
        wait_until(self._is_complete, TIMEOUT, what="the cluster is complete")

    def _is_complete(self) -> bool:
        for machine in self.machines:
            machine.check_processes()
        reports = [machine.read_cluster() for machine in self.machines]
        return all(
            sorted(member["role"] for member in members) == ["leader", "replica", "sync_standby"]
            and all(member["state"] in ("running", "streaming") for member in members)
            and len({member.get("timeline") for member in members}) == 1
            for members in reports
        )

    def _find_role(self, role: str) -> Machine:
        for machine in self.machines:
            for member in machine.read_cluster():
                if member["role"] == role:
                    return next(each for each in self.machines if each.name == member["name"])
        raise AssertionError(f"the cluster has no {role}")


@contextmanager
def start_cluster(folder: Path) -> Iterator[PatroniCluster]:
    """Run the machines and HAProxy with an empty database.

    :param folder: an empty folder that the server's user can enter.
    """
    is_namespace = os.geteuid() == 0
    prefix = "10.83.0" if is_namespace else f"127.83.{os.getpid() % 250}"
    if is_namespace:
        _create_bridge(f"{prefix}.1/24")
    _create_certificate(folder)
    machines = []
    for number in (1, 2, 3):
        name, address = f"db{number}", f"{prefix}.2{number}"
        machines.append(Machine(name, address, folder / name, is_namespace))
        if is_namespace:
            _create_namespace(name, f"{address}/24")
        _write_configuration(machines[-1], folder, prefix)
    haproxy = None
    try:
        for machine in machines:
            machine.start()
        haproxy = _start_haproxy(folder, prefix)
        cluster = PatroniCluster(machines, *_build_urls(folder, [machine.address for machine in machines]))
        cluster.wait_until_complete()
        _create_database(cluster)
        yield cluster
    finally:
        if haproxy is not None:
            haproxy.kill()
            haproxy.wait()
        for machine in machines:
            machine.kill()


def _create_bridge(address: str) -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "machines", "type", "bridge")
    _run("ip", "address", "add", address, "dev", "machines")
    _run("ip", "link", "set", "machines", "up")


def _create_namespace(name: str, address: str) -> None:
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", name, "master", "machines", "up")
    _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", name, "address", "add", address, "dev", "eth0")
    _run("ip", "-n", name, "link", "set", "eth0", "up")


def _create_certificate(folder: Path) -> None:
    script = operations_docs.block("certificate of the database machines")
    subprocess.run(["sh", "-c", script], cwd=folder, check=True, capture_output=True)


def _write_configuration(machine: Machine, folder: Path, prefix: str) -> None:
    """Write the files of the page for a machine."""
    here = machine.folder
    (here / "etcd").mkdir(parents=True)
    etcd = _localise(operations_docs.block("/etc/default/etcd on db1"), machine, prefix)
    if not machine.is_namespace:
        # The machines share this address.
        etcd = etcd.replace(",http://127.0.0.1:2379", "")
    (here / "etcd.env").write_text(f"{etcd}\nETCD_DATA_DIR={here}/etcd\n")
    changed = {
        # A watchdog device is that of the whole machine.
        "mode: required": "mode: automatic",
        "/etc/patroni/server.": f"{here}/server.",
        "/var/run/postgresql": str(here),
        "/var/lib/postgresql/15/main": f"{here}/main",
        "/usr/lib/postgresql/15/bin": str(_server_folder()),
    }
    if os.geteuid() != 0:
        # The system user has another name than the superuser of the database.
        changed["local all postgres peer"] = "local all postgres trust"
    patroni = _localise(operations_docs.block("/etc/patroni/config.yml on db1", changed), machine, prefix)
    (here / "patroni.yml").write_text(patroni)
    for name in ("server.crt", "server.key"):
        shutil.copy(folder / name, here / name)
        (here / name).chmod(0o600)
    if os.geteuid() == 0:
        user = server_user()
        for path in (here, *here.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)


def _localise(text: str, machine: Machine, prefix: str) -> str:
    """Replace the name and address of db1 by those of a machine, except in the lists of all machines."""
    lines = []
    for line in text.splitlines():
        if "10.0.0.22" not in line:
            line = line.replace("db1", machine.name).replace("10.0.0.21", machine.address)
        lines.append(line.replace("10.0.0.", f"{prefix}."))
    return "\n".join(lines) + "\n"


def _start_haproxy(folder: Path, prefix: str) -> subprocess.Popen[bytes]:
    bind = "127.0.0.1:5432" if os.geteuid() == 0 else f"{prefix}.1:5432"
    text = operations_docs.block("/etc/haproxy/haproxy.cfg", {"10.0.0.2": f"{prefix}.2", "127.0.0.1:5432": bind})
    (folder / "haproxy.cfg").write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        return subprocess.Popen(
            [_program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _build_urls(folder: Path, addresses: list[str]) -> tuple[str, str]:
    """Return the connection strings of the page: through HAProxy, and with all machines."""
    tls = f"sslmode=verify-full&sslrootcert={folder}/server.crt"
    start = "postgresql://onecode:PASSWORD@"
    proxy = "127.0.0.1" if os.geteuid() == 0 else f"{addresses[0].rpartition('.')[0]}.1"
    names = ",".join([HOST_NAME] * len(addresses))
    return (
        f"{start}{HOST_NAME}:5432/onecode?hostaddr={proxy}&{tls}",
        f"{start}{names}/onecode?hostaddr={','.join(addresses)}&target_session_attrs=read-write&{tls}",
    )


def _create_database(cluster: PatroniCluster) -> None:
    """Create the role and the database on the leader, as its system user."""
    leader = cluster.leader()
    for statement in ("create role onecode login password 'PASSWORD'", "create database onecode owner onecode"):
        psql = [f"{_server_folder()}/psql", "-h", str(leader.folder), "-U", "postgres", "-c", statement]
        process = leader.spawn("psql", psql, {})
        assert process.wait() == 0, (leader.folder / "psql.log").read_text()
    wait_until(lambda: _accepts(cluster.haproxy_url), TIMEOUT, what="HAProxy leads to the database")


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _read_variables(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if line and not line.startswith("#"))


def server_user() -> pwd.struct_passwd:
    """Return the system user of PostgreSQL, which Debian's package creates."""
    return pwd.getpwnam("postgres")


def _server_folder() -> Path:
    """Return the folder with all programs of PostgreSQL."""
    return Path(_program("initdb")).resolve().parent


def _program(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    assert path is not None, name
    return path


def _run(program: str, *arguments: str) -> None:
    subprocess.run([_program(program), *arguments], check=True, capture_output=True)
