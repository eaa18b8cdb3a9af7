"""Rate limits, shared by all processes and machines through one unlogged table.

Limits of an address or a link are checked before the body of a request is parsed:

    @blueprint.post("/sign-in")
    @limit_requests("30 per minute")

Limits of an account are counted by the view, after parsing and before the expensive work. Their key is the parsed
value, so that a request cannot evade them by a body that the form parses differently:

    _account_limit = RateLimit("sign in", "10 per 5 minutes")
    _account_limit.count(email_attempt_key(form.email.data))

If the table is unavailable, the limits are not applied: the views need the database too and report the outage.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from flask import Flask, Response, current_app, request
from flask_babel import gettext as _
from flask_babel import ngettext
from limits import parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import Index, Text, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core import database_health
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError
from webapp.core.extensions import Model, db
from webapp.core.request_origin import parse_client_address

log = logging.getLogger(__name__)
LimitedView = TypeVar("LimitedView", bound=Callable[..., Any])

# Number of expired rows that are deleted with each insert, so that the table does not grow beyond the rows in use.
CLEANUP_CHUNK_SIZE = 10
# Part of each statement that writes, for its transaction. PostgreSQL may let the commit wait for a synchronous standby
# although the table is unlogged: when it has set hint bits in pages of other tables, with data checksums.
_ASYNCHRONOUS_COMMIT = func.set_config("synchronous_commit", "off", True)


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
            count = int(connection.scalar(upsert.returning(RateLimitCounter.n, _ASYNCHRONOUS_COMMIT)) or 0)
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
            return connection.execute(delete(RateLimitCounter).returning(_ASYNCHRONOUS_COMMIT)).rowcount

    def clear(self, key: str) -> None:
        with _connect_autocommit() as connection:
            is_key = RateLimitCounter.key == key
            connection.execute(delete(RateLimitCounter).where(is_key).returning(_ASYNCHRONOUS_COMMIT))


def client_address() -> str:
    """Return the client's IP address as a key.

    An IPv6 subscriber usually has a /64, which counts as one client. So do all clients whose address is unknown.
    """
    address = parse_client_address(request.remote_addr)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return "unknown" if address is None else str(address)


def email_attempt_key(text: str) -> str:
    """Return the key of an email address, the same for all its spellings.

    It is a hash, which is short and contains no personal data.

    :param text: the parsed form field; a text that is not an email address is counted as entered.
    """
    try:
        email = normalise_email(text)
    except DomainError:
        email = text.strip()
    return f"email:{hashlib.sha256(email.encode('utf-8', 'surrogatepass')).hexdigest()}"


class TooManyRequests(DomainError):
    """A rate limit was exceeded (429).

    :param seconds: how long to wait before the next attempt.
    """

    def __init__(self, seconds: int) -> None:
        self.retry_after_seconds = seconds
        self.wait_text = ngettext("a minute", "%(num)s minutes", max(1, math.ceil(seconds / 60)))
        message = _("Please wait %(time)s and try again.", time=self.wait_text)
        super().__init__("rate_limited", message, 429)


class RateLimit:
    """A limit of attempts, counted in fixed windows for each key.

    :param name: what is limited; unique in the program.
    :param rate: such as `10 per 5 minutes`.
    """

    def __init__(self, name: str, rate: str) -> None:
        self._name = name
        self._item = parse(rate)

    def count(self, *key: str) -> None:
        """Count an attempt. Commits on its own.

        Call it before the work that the limit protects: then concurrent attempts cannot exceed it.

        :param key: the parts of the key, such as `email_attempt_key` and `client_address`.
        :raises TooManyRequests: when the limit is exceeded.
        """
        self._raise_unless(_windows.hit, key)

    def check(self, *key: str) -> None:
        """Check that another attempt is allowed, without counting it.

        :raises TooManyRequests: when it is not.
        """
        self._raise_unless(_windows.test, key)

    def reset(self, *key: str) -> None:
        """Forget the attempts: a success shows that they were not guessing. Commits on its own."""
        try:
            _windows.clear(self._item, self._name, *key)
        except SQLAlchemyError as error:
            _report_unavailable_table(error)

    def _raise_unless(self, is_allowed: Callable[..., bool], key: tuple[str, ...]) -> None:
        try:
            if is_allowed(self._item, self._name, *key):
                return
            reset_at = _windows.get_window_stats(self._item, self._name, *key).reset_time
        except SQLAlchemyError as error:
            _report_unavailable_table(error)
            return
        raise TooManyRequests(max(1, math.ceil(reset_at - time.time())))


_windows = FixedWindowRateLimiter(TableStorage())


def limit_requests(rate: str, key_func: Callable[[], str] = client_address) -> Callable[[LimitedView], LimitedView]:
    """Limit the requests to a view that write, before their body is parsed.

    Several limits may be set; each of them may reject a request.

    :param rate: such as `30 per minute`.
    :param key_func: what is counted; it must not read the body.
    """

    def decorate(view: LimitedView) -> LimitedView:
        limit = RateLimit(f"{view.__module__}.{view.__name__}", rate)
        view.request_limits = [*getattr(view, "request_limits", ()), (limit, key_func)]  # type: ignore[attr-defined]
        return view

    return decorate


def _check_request_limits() -> None:
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    view = current_app.view_functions.get(request.endpoint or "")
    for limit, key_func in getattr(view, "request_limits", ()):
        limit.count(key_func())


def _report_unavailable_table(error: SQLAlchemyError) -> None:
    """Log that a limit was not applied: the view needs the database too and reports an outage itself."""
    if not database_health.report_if_outage(error):
        log.error("a rate limit was not applied: %s", error)


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
    """Enable the limits for an app, before hooks that are registered later.

    Responses with status 429 have a Retry-After header and the format of the interface.
    """
    app.before_request(_check_request_limits)

    # A blueprint may handle TooManyRequests itself, to show its own page with the input.
    @app.errorhandler(TooManyRequests)
    def handle_too_many_requests(error: TooManyRequests) -> Response:
        generic_error = DomainError(error.key, error.message, error.status)
        response: Response = app.make_response(app.handle_user_exception(generic_error))
        response.headers["Retry-After"] = str(error.retry_after_seconds)
        return response


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
    connection.execute(
        delete(RateLimitCounter).where(RateLimitCounter.key.in_(expired)).returning(_ASYNCHRONOUS_COMMIT)
    )


class RateLimitCounter(Model):
    """Counters of the rate limits, shared by all processes.

    The table is unlogged: a database crash resets them.
    """

    __tablename__ = "rate_hit"
    key: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    n: Mapped[int]
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_rate_hit_expires_at", "expires_at"), {"prefixes": ["UNLOGGED"]})
