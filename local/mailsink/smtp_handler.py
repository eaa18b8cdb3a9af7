"""Taking a mail: a file each, whole on disk before the sender hears that it is kept. Nothing else is done here."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path


class SinkHandler:
    """aiosmtpd's handler: a message is in the folder, whole, before the answer 250."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sequence = itertools.count()

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802
        """Keep one message. Where it can't be written the sender hears 452 (RFC 5321, 4.2.3) and tries again later."""
        # The name begins with the time, so that the newest is found without looking inside.
        name = f"{time.time_ns()}-{os.getpid()}-{next(self.sequence)}.eml"
        part = self.folder / f".{name}"
        try:
            # Somebody may have deleted the folder by hand.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(envelope.original_content)  # type: ignore[attr-defined]
            part.rename(self.folder / name)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            return f"452 not kept: {error.strerror}"
        return "250 kept"
