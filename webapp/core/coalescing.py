"""Doing at once what many threads ask for at the same time.

Whoever asks while nobody is at it does the work at once, in its own thread: alone if it is alone, so that a quiet
client never waits. Who comes meanwhile waits; when the work is done, the first of those who wait does the next piece
for all of them. There is no thread that has to be kept alive, and no time is spent on waiting for more to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class CoalescingTimeout(Exception):
    """No answer came in time. `begun` tells whether somebody was at it: then it may have been done all the same."""

    def __init__(self, begun: bool) -> None:
        super().__init__("begun" if begun else "not begun")
        self.begun = begun


class _Waiter(Generic[Item, Result]):
    """One thread's ask. Its bell is rung once: when there is an answer or when it is its turn to lead."""

    __slots__ = ("after", "answers", "ask", "bell", "error", "left")

    def __init__(self, ask: Item) -> None:
        self.ask = ask
        self.bell = threading.Lock()
        self.bell.acquire()
        self.answers: list[Result] = []
        self.error: BaseException | None = None
        # Who is woken by this one, once it has its answer.
        self.after: _Waiter[Item, Result] | None = None
        self.left = False


class Coalescer(Generic[Item, Result]):
    """Gathers what threads of one process ask for.

    :param work: answers many asks, in their order. It runs in the thread of one of those who ask, one call at a time.
    :param at_most: how many asks it is given at once.
    :param patience: seconds after which somebody who waits is told that nobody answers.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], at_most: int, patience: float) -> None:
        self._work = work
        self._at_most = at_most
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter[Item, Result]] = deque()
        self._busy = False

    def ask(self, ask: Item) -> Result:
        """The answer to this ask.

        :raises Stuck: when none came in time.
        :raises Exception: what `work` raised for the asks that were gathered with this one.
        """
        mine: _Waiter[Item, Result] = _Waiter(ask)
        with self._lock:
            self._waiting.append(mine)
            leads, self._busy = not self._busy, True
        if not leads and not mine.bell.acquire(timeout=self._patience):
            self._leave(mine)
        if not mine.answers and mine.error is None:
            self._lead()
        if mine.after is not None:
            mine.after.bell.release()
        if mine.error is not None:
            raise mine.error
        return mine.answers[0]

    def _lead(self) -> None:
        """Do one piece of work for all who wait, hand on to the first of those who came meanwhile, then answer."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._at_most))]
        answers: Sequence[Result] = ()
        error: BaseException | None = None
        try:
            answers = self._work([waiting.ask for waiting in batch])
            if len(answers) != len(batch):
                raise RuntimeError("there must be one answer for each ask")
        except BaseException as raised:
            error = raised
        self._answer(batch, answers, error)

    def _answer(
        self, batch: list[_Waiter[Item, Result]], answers: Sequence[Result], error: BaseException | None
    ) -> None:
        """Wake the next leader and the first who gets an answer, who wakes the second, and so on.

        Woken all at once they would only fight for the interpreter.
        """
        with self._lock:
            for n, waiting in enumerate(batch):
                if error is None:
                    waiting.answers.append(answers[n])
                waiting.error = error
            staying = [waiting for waiting in batch if not waiting.left]
            for waiting, after in pairwise(staying):
                waiting.after = after
            if self._waiting:
                self._waiting[0].bell.release()
            else:
                self._busy = False

    def _leave(self, mine: _Waiter[Item, Result]) -> None:
        """Give up waiting, unless the bell rang at this very moment."""
        with self._lock:
            if mine.bell.acquire(blocking=False) or mine.answers or mine.error is not None:
                return
            mine.left = True
            begun = mine not in self._waiting
            if not begun:
                self._waiting.remove(mine)
        raise CoalescingTimeout(begun)
