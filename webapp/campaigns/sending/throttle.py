"""The rate limit: how many mails a second all workers together hand to the relay, MAIL_PER_SECOND."""

from __future__ import annotations

import time

from webapp.campaigns.sending import batches


class SendThrottle:
    """The turns of one pump. It takes them for about a second at a time, from the row that all workers share.

    :param per_second: mails a second; 0 for no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._slots = 0
        self._next_slot_at = 0.0

    def try_acquire(self, wanted: int) -> float:
        """In how many seconds the next mail may go out. When it may now, that is 0 and the turn is used.

        :param wanted: how many mails are still to come as far as is known.
        """
        if not self._per_second:
            return 0
        if self._slots and time.monotonic() - self._next_slot_at > 1:
            # Used now, they would come on top of those of others.
            self._slots = 0
        if not self._slots:
            self._slots = max(1, min(wanted, int(self._per_second)))
            self._next_slot_at = time.monotonic() + batches.reserve_send_slots(self._slots, self._per_second)
        seconds = self._next_slot_at - time.monotonic()
        if seconds > 0:
            return seconds
        self._slots -= 1
        self._next_slot_at += 1 / self._per_second
        return 0
