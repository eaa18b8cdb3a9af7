"""Timeouts of an SMTP session, in seconds."""

from __future__ import annotations

# Applies to each of: TCP connection, TLS handshake, and all replies until the client is signed in.
CONNECT_TIMEOUT = 15.0
# Applies to all replies to an envelope together, and to the reply to a body, however slowly their bytes arrive.
REPLY_TIMEOUT = 60.0
# Applies to sending a body.
BODY_TIMEOUT = 15.0
# Applies to the reply to RSET after a rejection; a slower connection is closed.
RESET_TIMEOUT = 5.0
