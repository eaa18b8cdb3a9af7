"""Rate limits, shared by all processes and machines through one unlogged table.

A view is limited by decorators; each of them may reject a request:

    @blueprint.post("/sign-in")
    @limiter.limit("30 per minute", key_func=client_address)
    @limiter.limit("10 per 5 minutes", key_func=form_field_key_func("email", normalise_email))

If the table is unavailable, the limits are not applied: the views need the database too and report the outage.
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
from flask_babel import gettext as _
from flask_babel import ngettext
from flask_limiter import Limiter, RateLimitExceeded
from limits.storage import Storage
from sqlalchemy import Index, Text, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.errors import DomainError
from webapp.core.extensions import Model, db
from webapp.core.request_limits import get_form_or_empty

# Number of expired rows that are deleted with each insert, so that the table does not grow beyond the rows in use.
CLEANUP_CHUNK_SIZE = 10


class TableStorage(Storage):
    """Counters of fixed windows in `rate_hit`.

    Each call is its own transaction, independent of that of the request.
    """

    STORAGE_SCHEME = ["table"]  # noqa: RUF012

    @property
    def base_exceptions(self) -> type[Exception]:
        return SQLAlchemyError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        expires_at = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, expiry)
        is_expired = RateLimitCounter.expires_at <= func.now()
        upsert = insert(RateLimitCounter).values(key=key, n=amount, expires_at=expires_at)
        upsert = upsert.on_conflict_do_update(
            index_elements=[RateLimitCounter.key],
            set_={
                "n": case((is_expired, upsert.excluded.n), else_=RateLimitCounter.n + upsert.excluded.n),
                "expires_at": case((is_expired, upsert.excluded.expires_at), else_=RateLimitCounter.expires_at),
            },
        )
        with _connect_autocommit() as connection:
            count = int(connection.scalar(upsert.returning(RateLimitCounter.n)) or 0)
            if count == amount:
                _delete_expired(connection)
        return count

    def get(self, key: str) -> int:
        with _connect_autocommit() as connection:
            unexpired = select(RateLimitCounter.n).where(
                RateLimitCounter.key == key, RateLimitCounter.expires_at > func.now()
            )
            return connection.scalar(unexpired) or 0

    def get_expiry(self, key: str) -> float:
        with _connect_autocommit() as connection:
            remaining = func.extract("epoch", RateLimitCounter.expires_at - func.now())
            seconds = connection.scalar(select(remaining).where(RateLimitCounter.key == key))
        # Uses this machine's clock, because the caller compares the result with it; that of the database may differ.
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
    """Return the client's IP address as a key.

    An IPv6 subscriber usually has a /64, which counts as one client.
    """
    address = ipaddress.ip_address(request.remote_addr or "0.0.0.0")  # noqa: S104
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


def form_field_key_func(field: str, normalise: Callable[[str], str] = str) -> Callable[[], str]:
    """Return a key function for the value of a form field, such as an email address.

    The key is a hash, which is short and contains no personal data.

    :param normalise: maps different spellings to one; a value that it rejects is counted as entered.
    """

    def key() -> str:
        value = get_form_or_empty().get(field, "")
        try:
            value = normalise(value)
        except DomainError:
            value = value.strip()
        return f"{field}:{hashlib.sha256(value.encode()).hexdigest()}"

    return key


def combined_key_func(*parts: Callable[[], str]) -> Callable[[], str]:
    """Combine key functions, such as those of email and client address.

    Then other clients do not use up the attempts.
    """
    return lambda: "|".join(part() for part in parts)


class TooManyRequests(DomainError):
    """A rate limit was exceeded (429).

    :param seconds: how long to wait before the next attempt.
    """

    def __init__(self, seconds: int) -> None:
        self.retry_after_seconds = seconds
        self.wait_text = ngettext("a minute", "%(num)s minutes", max(1, math.ceil(seconds / 60)))
        message = _("Please wait %(time)s and try again.", time=self.wait_text)
        super().__init__("rate_limited", message, 429)


# `swallow_errors` lets a request pass when the table is unavailable, and logs it.
limiter = Limiter(client_address, storage_uri="table://", strategy="fixed-window", swallow_errors=True)


def reset_attempts(key_func: Callable[[], str]) -> None:
    """Reset the counter of one of the limits of this request.

    A successful attempt shows that the earlier ones were not guessing.

    :param key_func: the key function of that limit.
    """
    key = key_func()
    for limit in limiter.current_limits:
        if limit.request_args[0] == key:
            limiter.limiter.clear(limit.limit, *limit.request_args)


def use_once(token: str, seconds: int) -> bool:
    """Return whether a token is used for the first time within some seconds.

    Only a hash of it is stored. Commits on its own.
    """
    return TableStorage().incr(_token_key(token), seconds) == 1


def allow_again(token: str) -> None:
    """Let `use_once` accept a token again. Commits on its own."""
    TableStorage().clear(_token_key(token))


def _token_key(token: str) -> str:
    return f"once:{hashlib.sha256(token.encode()).hexdigest()}"


def init_app(app: Flask) -> None:
    """Enable the limits for an app.

    Responses with status 429 have a Retry-After header and the format of the interface.
    """
    limiter.init_app(app)
    # Only these blueprints have limits. Looking for limits in every API call would take longer than the call.
    hooks_by_kind: list[Any] = [app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs]
    for hooks in hooks_by_kind:
        hook = hooks[None].pop()
        for blueprint in ("staff", "public"):
            hooks.setdefault(blueprint, []).append(hook)

    @app.errorhandler(RateLimitExceeded)
    def handle_limit_exceeded(_error: RateLimitExceeded) -> ResponseReturnValue:
        # A blueprint may handle TooManyRequests itself, to show its own page with the input.
        return app.handle_user_exception(TooManyRequests(_seconds_until_reset()))

    @app.errorhandler(TooManyRequests)
    def handle_too_many_requests(error: TooManyRequests) -> Response:
        generic_error = DomainError(error.key, error.message, error.status)
        response: Response = app.make_response(app.handle_user_exception(generic_error))
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response


def _seconds_until_reset() -> int:
    limit = limiter.current_limit
    try:
        return max(1, math.ceil(limit.window[0] - time.time())) if limit else 60
    except SQLAlchemyError:
        return 60


def _connect_autocommit() -> Connection:
    return db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _delete_expired(connection: Connection) -> None:
    """Delete a few expired windows.

    Rows that another transaction has locked are left to the next call.
    """
    expired: Any = (
        select(RateLimitCounter.key)
        .where(RateLimitCounter.expires_at < func.now())
        .order_by(RateLimitCounter.expires_at)
        .limit(CLEANUP_CHUNK_SIZE)
        .with_for_update(skip_locked=True)
    )
    connection.execute(delete(RateLimitCounter).where(RateLimitCounter.key.in_(expired)))


class RateLimitCounter(Model):
    """Counters of the rate limits, shared by all processes.

    The table is unlogged: a database crash resets them.
    """

    __tablename__ = "rate_hit"
    key: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    n: Mapped[int]
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_rate_hit_expires_at", "expires_at"), {"prefixes": ["UNLOGGED"]})
