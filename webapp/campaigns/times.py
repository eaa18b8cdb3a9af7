"""How long the sending of mails waits for what, in seconds.

A batch belongs to a worker until its lease ends. The worker's own promise is kept by its own clock: before it begins
to hand over a body, its lease has been renewed less than RENEW ago, and what follows takes at most BODY and REPLY.
So LEASE is not shorter than RENEW + BODY + REPLY: nobody takes a batch over while its owner still hears of a mail.
"""

from __future__ import annotations

LEASE = 90.0
RENEW = 10.0

CONNECT = 15.0
REPLY = 60.0
BODY = 20.0

# A pump gives its place to the next after a minute, so that everything else in the queue gets its turn.
SLICE = 60.0
# How long to wait before one recipient is tried on a new connection, when the one before broke; three tries in all.
TRIES = (1.0, 3.0, 0.0)
# How often a relay that is away is looked for.
PROBE = 5.0
# How long a batch rests whose mails break one connection after the other.
REST = 60.0

# When a deferred mail is tried again, and when it is given up.
BACKOFF = (60.0, 300.0, 1800.0, 7200.0)
GIVE_UP = 48 * 3600.0
