"""Limits on how often somebody may try, shared by all processes and machines through one unlogged table.

A view is limited by decorators, any of which may refuse:

    @room.post("/sign-in")
    @limiter.limit("30 per minute", key_func=address)
    @limiter.limit("10 per 5 minutes", key_func=typed("email", normalise_email))

Where the table can't be reached the limits stand aside: what the view does needs the database too and says so.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Flask, Response, request
from flask.typing import ResponseReturnValue
from flask_limiter import Limiter, RateLimitExceeded
from limits.storage import Storage
from sqlalchemy import Index, Text, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.errors import DomainError
from webapp.core.extensions import Model, db

# How many old rows the maker of a new one clears away, so that the table never outgrows what is in use.
CLEANUP_BATCH_SIZE = 10


class TableStorage(Storage):
    """Counters of fixed windows in `rate_hit`. Each call is a transaction of its own, whatever the request's does."""

    STORAGE_SCHEME = ["table"]  # noqa: RUF012

    @property
    def base_exceptions(self) -> type[Exception]:
        return SQLAlchemyError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        window = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, expiry)
        over = RateLimitCounter.expires_at <= func.now()
        hit = insert(RateLimitCounter).values(key=key, n=amount, expires_at=window)
        hit = hit.on_conflict_do_update(
            index_elements=[RateLimitCounter.key],
            set_={
                "n": case((over, hit.excluded.n), else_=RateLimitCounter.n + hit.excluded.n),
                "expires_at": case((over, hit.excluded.expires_at), else_=RateLimitCounter.expires_at),
            },
        )
        with _connect_autocommit() as connection:
            n = int(connection.scalar(hit.returning(RateLimitCounter.n)) or 0)
            if n == amount:
                _delete_expired(connection)
        return n

    def get(self, key: str) -> int:
        with _connect_autocommit() as connection:
            alive = select(RateLimitCounter.n).where(
                RateLimitCounter.key == key, RateLimitCounter.expires_at > func.now()
            )
            return connection.scalar(alive) or 0

    def get_expiry(self, key: str) -> float:
        with _connect_autocommit() as connection:
            left = func.extract("epoch", RateLimitCounter.expires_at - func.now())
            seconds = connection.scalar(select(left).where(RateLimitCounter.key == key))
        # Reckoned from this machine's clock, as the caller will; the database's may differ.
        return time.time() + max(0.0, float(seconds or 0))

    def check(self) -> bool:
        try:
            self.get("")
        except SQLAlchemyError:
            return False
        return True

    def reset(self) -> int | None:
        with _connect_autocommit() as connection:
            return connection.execute(delete(RateLimitCounter)).rowcount

    def clear(self, key: str) -> None:
        with _connect_autocommit() as connection:
            connection.execute(delete(RateLimitCounter).where(RateLimitCounter.key == key))


def client_address() -> str:
    """Who asks, by network address. An IPv6 customer owns a /64, so that counts as one."""
    given = ipaddress.ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104
    if isinstance(given, ipaddress.IPv6Address) and given.ipv4_mapped is None:
        return str(ipaddress.ip_network((given, 64), strict=False))
    return str(getattr(given, "ipv4_mapped", None) or given)


def form_field_key(field: str, normalise: Callable[[str], str] = str) -> Callable[[], str]:
    """Who is meant, by a field of the form: an e-mail, a code. Kept as a hash, which is short and names nobody.

    :param normalise: makes different spellings one; what it refuses is counted as it was typed.
    """

    def key() -> str:
        given = request.form.get(field, "")
        try:
            given = normalise(given)
        except DomainError:
            given = given.strip()
        return f"{field}:{hashlib.sha256(given.encode()).hexdigest()}"

    return key


def combined_key(*parts: Callable[[], str]) -> Callable[[], str]:
    """Several keys as one: an e-mail as typed from one address, so that nobody else uses its tries up."""
    return lambda: "|".join(part() for part in parts)


class TooManyRequests(DomainError):
    """Tried too often; `seconds` says for how long to wait."""

    def __init__(self, seconds: int) -> None:
        self.retry_after_seconds = seconds
        self.wait_text = "a minute" if seconds <= 60 else f"{math.ceil(seconds / 60)} minutes"
        super().__init__("rate_limited", f"Too many tries. Please wait {self.wait_text} and try again.", 429)


# `swallow_errors` lets a request pass when the table can't be reached, and logs it.
limiter = Limiter(client_address, storage_uri="table://", strategy="fixed-window", swallow_errors=True)


def reset_attempts(who: Callable[[], str]) -> None:
    """Forget the tries that led to this request, of one kind of key: whoever succeeds has not been guessing."""
    key = who()
    for limit in limiter.current_limits:
        if limit.request_args[0] == key:
            limiter.limiter.clear(limit.limit, *limit.request_args)


def init_app(app: Flask) -> None:
    """Switch the limits on for an app and answer 429 with the time to wait, in the form of the door."""
    limiter.init_app(app)
    # Only these doors have limits. To look for some at every call would cost the API more than its own work.
    every: list[Any] = [app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs]
    for hooks in every:
        hook = hooks[None].pop()
        for door in ("staff", "public"):
            hooks.setdefault(door, []).append(hook)

    @app.errorhandler(RateLimitExceeded)
    def too_often(_: RateLimitExceeded) -> ResponseReturnValue:
        # A room that keeps what was typed on its own page has a handler for this.
        return app.handle_user_exception(TooManyRequests(_seconds_until_reset()))

    @app.errorhandler(TooManyRequests)
    def too_many(error: TooManyRequests) -> Response:
        refusal = DomainError(error.key, error.message, error.status)
        answer: Response = app.make_response(app.handle_user_exception(refusal))
        answer.headers["Retry-After"] = str(error.retry_after_seconds)
        return answer


def _seconds_until_reset() -> int:
    limit = limiter.current_limit
    try:
        return max(1, math.ceil(limit.window[0] - time.time())) if limit else 60
    except SQLAlchemyError:
        return 60


def _connect_autocommit() -> Connection:
    return db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _delete_expired(connection: Connection) -> None:
    """Drop a few windows that are over. Rows that somebody else is at are left to the next one."""
    old: Any = (
        select(RateLimitCounter.key)
        .where(RateLimitCounter.expires_at < func.now())
        .order_by(RateLimitCounter.expires_at)
        .limit(CLEANUP_BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
    connection.execute(delete(RateLimitCounter).where(RateLimitCounter.key.in_(old)))


class RateLimitCounter(Model):
    """Counters of the rate limits, shared by all processes. Unlogged: a crash forgives."""

    __tablename__ = "rate_hit"
    key: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    n: Mapped[int]
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_rate_hit_expires_at", "expires_at"), {"prefixes": ["UNLOGGED"]})
