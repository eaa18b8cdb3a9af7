"""Record the heartbeats of workers."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import text

from webapp.core.extensions import db

# Rows of workers without a heartbeat are kept for a day, so that a worker that was killed at night can be identified.
WORKER_RETENTION = timedelta(days=1)

# All times are by the clock of the database, since the clocks of machines differ.
_UPSERT_HEARTBEAT = text(
    """
    insert into worker (id, host, pid, version, busy_since, swept)
      select :id, :host, :pid, :version, now() - make_interval(secs => :busy), swept
      from (
        select coalesce(jsonb_object_agg(s.key, extract(epoch from now()) - s.value::float8), '{}') as swept
        from jsonb_each_text(cast(:swept as jsonb)) s
      ) found
    on conflict (id) do update set
      seen_at = now(), busy_since = excluded.busy_since, swept = worker.swept || excluded.swept, stopped_at = null
    """
)
_MARK_STOPPED = text("update worker set seen_at = now(), stopped_at = now(), busy_since = null where id = :id")
_DELETE_STALE = text("delete from worker where seen_at < now() - cast(:retention as interval)")


@dataclass(frozen=True)
class WorkerIdentity:
    """The identity of this worker process.

    The random id is unique: in a container, host name and process id are the same after every restart.
    """

    version: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def record_heartbeat(
    worker: WorkerIdentity,
    busy_seconds: float | None = None,
    periodic_task_ages: Mapping[str, float] | None = None,
) -> None:
    """Record that a worker is alive.

    :param busy_seconds: seconds since the start of its longest-running task; None when it is idle.
    :param periodic_task_ages: seconds since it completed each periodic task, by task name.
    """
    values = {"id": worker.id, "host": worker.host, "pid": worker.pid, "version": worker.version}
    ages = json.dumps(dict(periodic_task_ages or {}))
    db.session.execute(_UPSERT_HEARTBEAT, values | {"busy": busy_seconds, "swept": ages})
    db.session.commit()


def record_shutdown(worker: WorkerIdentity) -> None:
    """Record that a worker has shut down."""
    db.session.execute(_MARK_STOPPED, {"id": worker.id})
    db.session.commit()


def delete_stale_workers() -> None:
    """Delete the rows of workers without a heartbeat for `WORKER_RETENTION`."""
    db.session.execute(_DELETE_STALE, {"retention": WORKER_RETENTION})
    db.session.commit()
