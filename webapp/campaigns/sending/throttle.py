"""The rate limit towards the relay that all workers share, MAIL_PER_SECOND."""

from __future__ import annotations

import time

from webapp.campaigns.sending import batches


class SendThrottle:
    """The send slots of one sender.

    They are reserved for about a second at a time, in the row that all workers share.

    :param per_second: emails per second; 0 for no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._slots = 0
        self._next_slot_at = 0.0

    def try_acquire(self, max_slots: int) -> float:
        """Return the seconds until the next email may be sent; 0 uses a slot now.

        :param max_slots: maximum number of slots to reserve, such as the number of known remaining emails.
        """
        if not self._per_second:
            return 0
        if self._slots and time.monotonic() - self._next_slot_at > 1:
            # Expired slots: using them now would exceed the limit together with those of other workers.
            self._slots = 0
        if not self._slots:
            self._slots = max(1, min(max_slots, int(self._per_second)))
            self._next_slot_at = time.monotonic() + batches.reserve_send_slots(self._slots, self._per_second)
        seconds = self._next_slot_at - time.monotonic()
        if seconds > 0:
            return seconds
        self._slots -= 1
        self._next_slot_at += 1 / self._per_second
        return 0
