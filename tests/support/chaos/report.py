"""The page and the figures of the crash runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.support.chaos.accelerated_worker import FACTOR
from tests.support.chaos.scenarios import Run
from webapp.campaigns import timing

HEAD = f"""# Chaos: mailings while everything dies

Made by `make chaos`; `python -m tests.chaos --quick` takes a quick look and only prints. The last line printed is one
JSON object with the figures to follow; the exit status is 1 when a promise was broken. In small the same is in every
run of the tests (`tests/chaos/test_campaign_crashes.py`).

What is promised: whatever dies, nobody is silently missed. Under *hold* nobody gets a second copy; under *resend* there
is at most one for every connection that was killed and every answer that was lost, with the same Message-ID.

How it is done:

- The relay is a process of its own without any code of the program. It writes a mail into its log before it answers
  250. 1 % of the recipients, chosen by a seed, meet a fault: 421, 450 or 550 at RCPT, 454 at DATA, or the mail is taken
  and the connection closed without an answer. A mail takes 20 ms, half of it before the log and half after, so that
  deaths fall on both sides of it. Every other connection is offered PIPELINING.
- The workers are real ones, two processes with two connections each, whose waiting times are all shortened by
  {FACTOR}; a lease, for instance, is {timing.LEASE_DURATION / FACTOR:.0f} s instead of {timing.LEASE_DURATION:.0f}.
  A worker that is killed is started again at once, as systemd would. One that is stopped (SIGSTOP) goes on after 1.3
  leases and believes that nothing has happened.
  No clock and no row is touched.
- PostgreSQL 18 is one of its own with the durable settings. It dies by SIGQUIT, as by `pg_ctl stop -m immediate`.
- *Connections* are those that were open when their worker was killed or stopped, counted while it was held. *Answers*
  are those that the relay never gave, or can not know to have arrived.
- After every run an audit holds the relay's log against the rows, recipient by recipient: whoever the program calls
  sent has the mail; whoever has it is called sent or uncertain; whoever is called failed was refused; nobody is without
  an outcome when all is done; the sums that staff see are those of the recipients.
"""


def page(runs: Sequence[Run], lost_redemptions: int, customers: int, rounds: int) -> str:
    return "\n".join([HEAD, *_table(runs, customers), *_redemptions(lost_redemptions, rounds), *_broken(runs)]) + "\n"


def figures(runs: Sequence[Run], lost_redemptions: int) -> dict[str, int]:
    """Connections and answers are those of the runs that resend: what their duplicates are held to."""
    resend = [run for run in runs if run.policy == "resend"]
    return {
        "missing": sum(len(run.audit.missing) for run in runs),
        "duplicates_hold": sum(run.audit.duplicates for run in runs if run.policy == "hold"),
        "duplicates_resend": sum(run.audit.duplicates for run in resend),
        "killed_connections": sum(run.killed_connections for run in resend),
        "lost_replies": sum(run.lost_replies for run in resend),
        "lost_redemptions": lost_redemptions,
    }


def _table(runs: Sequence[Run], customers: int) -> Iterator[str]:
    yield f"\n## {customers:,} mails in each run\n"
    titles = "received", "connections", "answers", "twice", "missing", "uncertain", "failed"
    yield f"| what happened | policy | {' | '.join(titles)} | promises |"
    yield f"|---|---|{'---:|' * len(titles)}---|"
    for run in runs:
        states = run.audit.states
        yield (
            f"| {run.name} | {run.policy} | {run.audit.received:,} | {run.killed_connections} | {run.lost_replies} "
            f"| {run.audit.duplicates} | {len(run.audit.missing)} | {states['uncertain']} | {states['failed']} "
            f"| {'**broken**' if run.broken else 'kept'} |"
        )
    yield ""


def _redemptions(lost: int, rounds: int) -> Iterator[str]:
    yield "## Redemptions\n"
    yield (
        f"PostgreSQL died {rounds} times at once while ten clients redeemed over HTTP, each one customer after the "
        f'other. Answers "redeemed" without a row afterwards: {lost}.'
    )


def _broken(runs: Sequence[Run]) -> Iterator[str]:
    broken = [f"- {run.name}, {run.policy}: {words}" for run in runs for words in run.broken]
    if broken:
        yield "\n## Broken promises\n"
        yield from broken
