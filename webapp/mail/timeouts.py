"""Timeouts of an SMTP session, in seconds."""

from __future__ import annotations

# The way to the relay: the connection, the encryption, and all that is said until it is signed in, have this long each.
CONNECT_TIMEOUT = 15.0
# All answers to an envelope together, and the answer to a body, however slowly they come.
REPLY_TIMEOUT = 60.0
BODY_TIMEOUT = 15.0
# To be ready for the next mail after a refusal; a connection that takes longer is closed.
RESET_TIMEOUT = 5.0
