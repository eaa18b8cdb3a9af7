"""What workers write down about themselves."""

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

# A worker that was silent for so long is dropped: whoever comes in the morning can still see which one it was.
WORKER_RETENTION = timedelta(days=1)

# All times are the database's own: clocks of machines differ.
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
_DELETE_STALE = text("delete from worker where seen_at < now() - cast(:silent as interval)")


@dataclass(frozen=True)
class WorkerIdentity:
    """The worker that this process is, under a name that no process before it has had: in a container the host's name
    and the process's number are the same after every restart."""

    version: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def record_heartbeat(me: WorkerIdentity, busy: float | None = None, swept: Mapping[str, float] | None = None) -> None:
    """Write down that this worker lives.

    :param busy: for how many seconds it has been at the task that it began first; None when it is at nothing.
    :param swept: how many seconds ago it got through each of the tasks of every minute, by name.
    """
    values = {"id": me.id, "host": me.host, "pid": me.pid, "version": me.version}
    db.session.execute(_UPSERT_HEARTBEAT, values | {"busy": busy, "swept": json.dumps(dict(swept or {}))})
    db.session.commit()


def record_shutdown(me: WorkerIdentity) -> None:
    """Write down that this worker ends because it was told to."""
    db.session.execute(_MARK_STOPPED, {"id": me.id})
    db.session.commit()


def delete_stale_workers() -> None:
    """Drop the workers that have not been heard of for a day."""
    db.session.execute(_DELETE_STALE, {"silent": WORKER_RETENTION})
    db.session.commit()
