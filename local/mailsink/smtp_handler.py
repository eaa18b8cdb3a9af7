"""Receive emails: each is stored as a file before the sender gets the reply 250."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path


class SinkHandler:
    """A handler for aiosmtpd that stores each email as a file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sequence = itertools.count()

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802
        """Store one email and return the reply.

        The reply is 250, or 452 (RFC 5321, 4.2.3) if the email can't be stored; then the sender retries.
        """
        # The name starts with the time of receipt, so that emails can be sorted without parsing them.
        name = f"{time.time_ns()}-{os.getpid()}-{next(self.sequence)}.eml"
        part = self.folder / f".{name}"
        try:
            # The folder may have been deleted by hand.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(envelope.original_content)  # type: ignore[attr-defined]
            part.rename(self.folder / name)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            return f"452 not stored: {error.strerror}"
        return "250 stored"
