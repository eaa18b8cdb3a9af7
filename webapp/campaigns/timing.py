"""How long the sending of mails waits for what, in seconds.

A batch belongs to a worker until its lease ends. The worker's own promise is kept by its own clock: before it connects,
before it begins an envelope, and before it begins to hand over a body, its lease has been renewed less than RENEW ago,
and what follows takes at most CONNECT three times over, or REPLY, or BODY and REPLY. LEASE is longer than any of these,
so nobody takes a batch over while its owner still hears of a mail.
"""

from __future__ import annotations

from webapp.mail.timeouts import BODY_TIMEOUT, REPLY_TIMEOUT

LEASE_DURATION = 90.0
LEASE_RENEWAL_INTERVAL = 5.0
# For PostgreSQL to say that the cursor is moved; then the connection counts as lost.
CURSOR_TIMEOUT = 10.0
# What a worker that is told to end may need for the mail in hand, and some more to leave; it is killed after that.
SHUTDOWN_TIMEOUT = BODY_TIMEOUT + REPLY_TIMEOUT + CURSOR_TIMEOUT + 5.0

# A pump gives its place to the next after a minute, so that everything else in the queue gets its turn.
SENDER_TIME_LIMIT = 60.0
# How long to wait before one recipient is tried on a new connection, when the one before broke; three tries in all.
RECONNECT_DELAYS = (1.0, 3.0, 0.0)
# How often a relay that is away is looked for.
RELAY_PROBE_INTERVAL = 5.0
# How long a batch rests whose mails break one connection after the other.
BATCH_RETRY_DELAY = 60.0

# When a deferred mail is tried again, and when it is given up.
RETRY_BACKOFF = (60.0, 300.0, 1800.0, 7200.0)
# When one is tried again whose try was called off.
RELEASED_RETRY_DELAY = 10.0
MAX_RETRY_AGE = 48 * 3600.0
