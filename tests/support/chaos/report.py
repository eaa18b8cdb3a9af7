"""The Markdown page and the figures of the crash runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.support.chaos.accelerated_worker import FACTOR
from tests.support.chaos.scenarios import ChaosRun
from webapp.campaigns import timing

HEAD = f"""# Chaos: campaigns during crashes

Made by `make chaos`; `python -m tests.chaos --quick` is a quick run that only prints. The last line printed is one
JSON object with the figures; the exit status is 1 when a guarantee was broken. A small version is in every
run of the tests (`tests/chaos/test_campaign_crashes.py`).

The guarantee: whatever crashes, no recipient is silently missed. Under *hold* none gets a second copy; under *resend*
there is at most one for every connection that was killed and every reply that was lost, with the same Message-ID.

Method:

- The relay is a separate process without any code of the program. It logs an email before it replies 250. 1 % of the
  recipients, chosen by a seed, get a fault: 421, 450 or 550 to RCPT, 454 to DATA, or the email is accepted and the
  connection closed without a reply. An email takes 20 ms, half of it before the log and half after, so that crashes
  happen on both sides of it. Every other connection is offered PIPELINING.
- The workers are real ones, two processes with two connections each, whose durations are all divided by
  {FACTOR}; a lease, for instance, is {timing.LEASE_DURATION / FACTOR:.0f} s instead of {timing.LEASE_DURATION:.0f}.
  A killed worker is restarted at once, as systemd would do. A stopped one (SIGSTOP) continues after 1.3 leases, as if
  nothing had happened. No clock and no row is manipulated.
- PostgreSQL 18 is a separate server with durable settings. It is killed by SIGQUIT, like `pg_ctl stop -m immediate`.
- *Connections* are those that were open when their worker was killed or stopped, counted while it was suspended.
  *Replies* are those that the relay never sent, or cannot know to have arrived.
- After every run an audit compares the relay's log with the rows, recipient by recipient: every recipient that counts
  as sent has the email; every recipient who has it counts as sent or uncertain; every failed one was rejected; no
  recipient is without a final state when the campaign is done; the counts that staff see are those of the recipients.
"""


def page(runs: Sequence[ChaosRun], lost_redemptions: int, customers: int, rounds: int) -> str:
    return "\n".join([HEAD, *_table(runs, customers), *_redemptions(lost_redemptions, rounds), *_broken(runs)]) + "\n"


def figures(runs: Sequence[ChaosRun], lost_redemptions: int) -> dict[str, int]:
    """Return the figures.

    Connections and replies are those of the runs that resend: they limit the duplicates of these runs.
    """
    resend = [run for run in runs if run.policy == "resend"]
    return {
        "missing": sum(len(run.audit.missing) for run in runs),
        "duplicates_hold": sum(run.audit.duplicates for run in runs if run.policy == "hold"),
        "duplicates_resend": sum(run.audit.duplicates for run in resend),
        "killed_connections": sum(run.killed_connections for run in resend),
        "lost_replies": sum(run.lost_replies for run in resend),
        "lost_redemptions": lost_redemptions,
    }


def _table(runs: Sequence[ChaosRun], customers: int) -> Iterator[str]:
    yield f"\n## {customers:,} emails in each run\n"
    titles = "received", "connections", "replies", "duplicates", "missing", "uncertain", "failed"
    yield f"| what happened | policy | {' | '.join(titles)} | guarantees |"
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
        f"PostgreSQL was killed {rounds} times while ten clients redeemed over HTTP, each one customer after the "
        f"other. Confirmed redemptions without a row afterwards: {lost}."
    )


def _broken(runs: Sequence[ChaosRun]) -> Iterator[str]:
    broken = [f"- {run.name}, {run.policy}: {words}" for run in runs for words in run.broken]
    if broken:
        yield "\n## Broken guarantees\n"
        yield from broken
