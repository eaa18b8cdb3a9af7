"""SMTP sessions of smtplib with a deadline for replies and a maximum reply size."""

from __future__ import annotations

import smtplib
import ssl
import time

from webapp.mail import timeouts

# In bytes. Usual replies have one or a few lines.
MAX_REPLY_BYTES = 64 * 1024
# OpenSSL errors for which a retry is useless: client and server have no common protocol or cipher.
PERMANENT_TLS_ERRORS = (
    "WRONG_VERSION_NUMBER",
    "UNSUPPORTED_PROTOCOL",
    "NO_PROTOCOLS_AVAILABLE",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
)


class SmtpSession(smtplib.SMTP):
    """An SMTP session of smtplib with a deadline for replies and a maximum reply size.

    The deadline (of `time.monotonic`) applies to whole replies, however slowly their bytes arrive.
    """

    def __init__(self, server: str, port: int) -> None:
        self.deadline = time.monotonic() + timeouts.CONNECT_TIMEOUT
        self.buffer = b""
        super().__init__(server, port, timeout=timeouts.CONNECT_TIMEOUT)

    def set_deadline(self, seconds: float) -> None:
        """Require that all further replies arrive within this many seconds."""
        self.deadline = time.monotonic() + seconds

    def getreply(self) -> tuple[int, bytes]:
        """Read all lines of the next reply; return its code and text (RFC 5321, 4.2).

        The code is -1 if the reply is invalid.
        """
        lines, size = [], 0
        while True:
            line = self._read_line()
            size += len(line)
            if size > MAX_REPLY_BYTES:
                self.close()
                raise smtplib.SMTPServerDisconnected("the reply is too long")
            if not line[:3].isdigit():
                return -1, line.strip()
            lines.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(lines)

    def _read_line(self) -> bytes:
        while b"\n" not in self.buffer:
            if self.sock is None or len(self.buffer) > MAX_REPLY_BYTES:
                self.close()
                raise smtplib.SMTPServerDisconnected("the reply is too long" if self.buffer else "not connected")
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("timed out")
            self.sock.settimeout(remaining)
            received = self.sock.recv(8192)
            if not received:
                self.close()
                raise smtplib.SMTPServerDisconnected("the relay closed the connection")
            self.buffer += received
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line


class ImplicitTlsSmtpSession(SmtpSession, smtplib.SMTP_SSL):
    """An SMTP session with implicit TLS."""

    def __init__(self, server: str, port: int) -> None:
        self.deadline = time.monotonic() + timeouts.CONNECT_TIMEOUT
        self.buffer = b""
        smtplib.SMTP_SSL.__init__(self, server, port, timeout=timeouts.CONNECT_TIMEOUT, context=create_tls_context())


def send_ehlo(host: SmtpSession) -> None:
    """Send EHLO, or HELO if the relay does not know EHLO.

    HELO is not tried after a temporary failure.
    """
    code, reply = host.ehlo()
    if 500 <= code < 600:
        code, reply = host.helo()
    if code // 100 != 2:
        raise smtplib.SMTPHeloError(code, reply)


def create_tls_context() -> ssl.SSLContext:
    """Return a TLS context that verifies the certificate of the relay."""
    return ssl.create_default_context()


def set_socket_timeout(host: SmtpSession, seconds: float) -> None:
    """Set the timeout of the socket, if the session is connected."""
    if host.sock is not None:
        host.sock.settimeout(seconds)
