"""Timeouts and intervals of campaign sending, in seconds.

A worker owns a batch until its lease expires. The worker checks this against its own clock: before it connects, before
it sends an envelope, and before it sends a body, the lease was renewed less than LEASE_RENEWAL_INTERVAL ago. The next
step takes at most three times CONNECT_TIMEOUT, or REPLY_TIMEOUT, or BODY_TIMEOUT plus REPLY_TIMEOUT. LEASE_DURATION is
longer than any of these, so no other worker takes a batch over while its owner still waits for a reply about an email.
"""

from __future__ import annotations

from webapp.mail.timeouts import BODY_TIMEOUT, REPLY_TIMEOUT

LEASE_DURATION = 90.0
LEASE_RENEWAL_INTERVAL = 5.0
# Time after which a cursor move that PostgreSQL has not confirmed counts as failed, and its connection as lost.
CURSOR_TIMEOUT = 10.0
# Grace period of a stopping worker: the current email, plus some time to shut down. It is killed after that.
SHUTDOWN_TIMEOUT = BODY_TIMEOUT + REPLY_TIMEOUT + CURSOR_TIMEOUT + 5.0

# A sender task ends after a minute and is enqueued again, so that other tasks in the queue can run.
SENDER_TIME_LIMIT = 60.0
# Delays before each reconnect for one recipient after a broken connection; three attempts in total.
RECONNECT_DELAYS = (1.0, 3.0, 0.0)
# Time between two attempts to connect to an unavailable relay.
RELAY_PROBE_INTERVAL = 5.0
# Delay of a batch whose emails break several connections in a row.
BATCH_RETRY_DELAY = 60.0

# Delays before the retries of a deferred email.
RETRY_BACKOFF = (60.0, 300.0, 1800.0, 7200.0)
# Delay before the next attempt after a retry was aborted.
RELEASED_RETRY_DELAY = 10.0
# A deferred email fails after this time.
MAX_RETRY_AGE = 48 * 3600.0
