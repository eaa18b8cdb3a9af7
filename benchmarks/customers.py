"""The customers of every benchmark."""

from __future__ import annotations

import psycopg

FILL = """
insert into customer (email, email_as_given, name)
select 'customer.' || n || '@example.com', 'Customer.' || n || '@example.com', 'Customer ' || n
from generate_series(1, %s) n
"""


def fill(connection: psycopg.Connection, n: int) -> None:
    """Insert n customers with the ids 1 to n into a database without customers."""
    connection.execute(FILL, [n])
    connection.execute("vacuum (freeze, analyze) customer")
