"""Databases of a Citus cluster, distributed with the statements of docs/operations/scaling.md."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, LiteralString, NamedTuple, cast
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from webapp.core.settings import ROOT

# The URL of a database of the coordinator in which all nodes have been added.
CITUS_VARIABLE = "CITUS_URL"


def is_used() -> bool:
    """Return whether the tests run on a Citus cluster."""
    return bool(os.environ.get(CITUS_VARIABLE))


class Node(NamedTuple):
    """A node of the cluster."""

    host: str
    port: int
    is_coordinator: bool
    has_shards: bool


def list_nodes() -> list[Node]:
    """Return the nodes of the cluster, the coordinator first.

    :raises psycopg.Error: when the coordinator does not respond or has no Citus.
    """
    with _connect() as connection:
        rows = connection.execute(
            "select nodename, nodeport, groupid = 0, shouldhaveshards from pg_dist_node where isactive order by groupid"
        ).fetchall()
    return [Node(*row) for row in rows]


@cache
def list_distribution_statements() -> list[LiteralString]:
    """Return the statements of docs/operations/scaling.md that distribute the tables, in their order."""
    page = (ROOT / "docs" / "operations" / "scaling.md").read_text()
    [block] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    return [cast("LiteralString", line) for line in block.splitlines() if not line.startswith("--")]


_SET_SHARDS = "select citus_set_node_property(%s, %s, 'shouldhaveshards', %s)"


def list_distributed_tables() -> list[str]:
    """Return the names of the tables that are distributed by offer."""
    return re.findall(r"create_distributed_table\('(\w+)'", "".join(list_distribution_statements()))


@contextmanager
def distributed_database(migrate: Callable[[str], None]) -> Iterator[str]:
    """Create a database on every node with the program's tables; drop it afterwards.

    :param migrate: installs the schema in a database, by its connection string.
    :returns: the connection string of the database on the coordinator.
    """
    name = f"onecode_test_{secrets.token_hex(4)}"
    nodes = list_nodes()
    with ExitStack() as databases:
        # The coordinator is created last and dropped first.
        for node in reversed(nodes):
            databases.enter_context(_database(name, node))
        url = urlsplit(os.environ[CITUS_VARIABLE])._replace(path=f"/{name}").geturl()
        with _connect(dbname=name) as connection:
            for node in nodes:
                function = "citus_set_coordinator_host" if node.is_coordinator else "citus_add_node"
                statement = sql.SQL("select {}(%s, %s)").format(sql.Identifier(function))
                connection.execute(statement, (node.host, node.port))
                connection.execute(_SET_SHARDS, (node.host, node.port, node.has_shards))
            migrate(url)
            for line in list_distribution_statements():
                connection.execute(line)
        yield url


@contextmanager
def _database(name: str, node: Node) -> Iterator[None]:
    address: dict[str, Any] = {} if node.is_coordinator else {"host": node.host, "port": node.port}
    with _connect(**address) as connection:
        connection.execute("set citus.enable_create_database_propagation = off")
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    with _connect(dbname=name, **address) as connection:
        connection.execute("create extension citus")
    yield
    with _connect(**address) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _connect(**parameters: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ[CITUS_VARIABLE], autocommit=True, connect_timeout=10, **parameters)
