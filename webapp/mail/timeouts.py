"""Timeouts of an SMTP session, in seconds."""

from __future__ import annotations

# For each of: TCP connection, TLS handshake, and all replies until the client is signed in.
CONNECT_TIMEOUT = 15.0
# For all replies to an envelope together, and for the reply to a body, however slowly their bytes arrive.
REPLY_TIMEOUT = 60.0
# For sending a body.
BODY_TIMEOUT = 15.0
# For the reply to RSET after a rejection; a slower connection is closed.
RESET_TIMEOUT = 5.0
