"""`make benchmark-mail`: sending a campaign, compared with common loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import command, mail_loops, mail_report, mail_sink, server
from benchmarks.mail_report import (
    CEILING,
    FAR,
    FAR_PLAIN,
    FAST,
    FLASK_MAIL,
    OURS,
    PLAIN,
    RAW,
    SLOW,
    Case,
    MailResults,
    MailSample,
)
from benchmarks.mail_sink import Sink, SinkOptions
from benchmarks.mail_worker import SITE, CampaignRunner
from benchmarks.server import DatabaseServer
from webapp.campaigns.models import BATCH_SIZE

SINK_OPTIONS = {
    FAST: SinkOptions(),
    PLAIN: SinkOptions(pipelining=False),
    SLOW: SinkOptions(acceptance_delay=0.010),
    FAR: SinkOptions(round_trip=0.005),
    FAR_PLAIN: SinkOptions(round_trip=0.005, pipelining=False),
}
LOOPS = {RAW: mail_loops.RAW, FLASK_MAIL: mail_loops.FLASK_MAIL, CEILING: mail_loops.CEILING}
MANY_CONNECTIONS = 8


@dataclass(frozen=True)
class MailPlan:
    """The number of rounds, and of emails per run.

    `ours` and `eight` are Onecode's over one and eight connections to a fast relay, `slow` and `slow_eight` those to a
    slow one. With eight connections, each gets the same number of batches, so that none idles at the end.
    """

    rounds: int = 3
    ours: int = 20_000
    eight: int = 8_000
    loops: int = 10_000
    flask_mail: int = 2_000
    slow: int = 500
    slow_eight: int = MANY_CONNECTIONS * BATCH_SIZE


USUAL = MailPlan()
QUICK = MailPlan(rounds=1, ours=4_000, eight=4_000, loops=4_000, flask_mail=500, slow=250)
FULL = MailPlan(rounds=5, ours=100_000, eight=40_000, loops=20_000, flask_mail=5_000, slow=2_000, slow_eight=16_000)
PLANS = command.Plans("mail", USUAL, QUICK, FULL)


class MailBench:
    """All relays, listening, and the senders."""

    def __init__(self, database_server: DatabaseServer, sinks: dict[str, Sink], plan: MailPlan) -> None:
        self.database_server = database_server
        self.sinks = sinks
        self.plan = plan
        self.folder = Path(database_server.embedded.socket_folder.parent)
        self.runner = CampaignRunner(database_server)
        self.rows: dict[str, int] = {}
        # The loops send an email that Onecode has built.
        self.runner.run(sinks[FAST], 20, 1)
        mail_loops.save_email(self.folder, sinks[FAST].last_email(), SITE)

    def sample(self, case: Case, n: int) -> MailSample:
        """Measure one run.

        :raises RuntimeError: when a customer did not get exactly one email.
        """
        run = self._ours if case.implementation == OURS else self._loop
        sample = run(case, self.sinks[case.relay], n)
        print(
            f"{case.relay}: {case.implementation}, {case.connections} × : {sample.rate:,.0f}/s, "
            f"{1e6 * sample.cpu:,.0f} µs of CPU"
        )
        return sample

    def _ours(self, case: Case, sink: Sink, n: int) -> MailSample:
        before = sink.totals().cpu
        measurement = self.runner.run(sink, n, case.connections)
        totals = measurement.totals
        self.rows = measurement.rows
        return MailSample(
            n,
            totals.rate,
            measurement.worker / n,
            measurement.postgres / n,
            (totals.cpu - before) / n,
            totals.size / n,
            n / measurement.seconds,
            measurement.wal.records / n,
            measurement.peak,
        )

    def _loop(self, case: Case, sink: Sink, n: int) -> MailSample:
        sink.reset()
        before, postgres = sink.totals().cpu, self.database_server.cpu_seconds()
        url = self.database_server.url(self.runner.customers(self.plan.ours))
        cpu = mail_loops.run(LOOPS[case.implementation], sink.port, n, self.folder, url)
        totals, postgres = sink.totals(), self.database_server.cpu_seconds() - postgres
        if (totals.mails, totals.recipients) != (n, n):
            raise RuntimeError(f"{case.implementation}: {totals.mails} emails to {totals.recipients} of {n} customers")
        return MailSample(n, totals.rate, cpu / n, postgres / n, (totals.cpu - before) / n, totals.size / n)


def cases(plan: MailPlan, number: int) -> list[tuple[Case, int]]:
    """The cases of a round and their numbers of emails.

    Every second round runs in reverse order, so that none is always first and compared cases stay close in time.
    """
    all_cases = [
        (mail_report.ONE_CONNECTION, plan.ours),
        (mail_report.RAW_LOOP, plan.loops),
        (Case(PLAIN, OURS), plan.ours // 4),
        (mail_report.FLASK_MAIL_LOOP, plan.flask_mail),
        (mail_report.EIGHT_CONNECTIONS, plan.eight),
        (Case(FAST, CEILING), plan.loops),
        (mail_report.SLOW_ONE, plan.slow),
        (mail_report.SLOW_EIGHT, plan.slow_eight),
    ]
    return all_cases[::-1] if number % 2 else all_cases


def single_run_cases(plan: MailPlan) -> list[tuple[Case, int]]:
    """The slow cases, which are run only once."""
    return [
        (Case(relay, implementation), plan.slow)
        for relay, implementation in ((SLOW, RAW), (FAR, OURS), (FAR_PLAIN, OURS), (FAR, RAW), (FAR, FLASK_MAIL))
    ]


@contextmanager
def prepared(plan: MailPlan) -> Iterator[MailBench]:
    """Start a separate server with the application's tables, and all relays."""
    with server.running() as database_server, ExitStack() as stack:
        sinks = {name: stack.enter_context(mail_sink.running(options)) for name, options in SINK_OPTIONS.items()}
        bench = MailBench(database_server, sinks, plan)
        try:
            yield bench
        finally:
            bench.runner.ours.disconnect()


def measure(plan: MailPlan) -> MailResults:
    """Run the benchmark."""
    results = MailResults(mails=plan.ours)
    with prepared(plan) as bench:
        for number in range(plan.rounds):
            print(f"round {number + 1} of {plan.rounds}")
            for case, n in cases(plan, number):
                results.samples.setdefault(case, []).append(bench.sample(case, n))
                if case == mail_report.ONE_CONNECTION:
                    results.rows = bench.rows
            results.quarter_runs.append(bench.sample(mail_report.ONE_CONNECTION, plan.ours // 4))
        for case, n in single_run_cases(plan):
            results.samples[case] = [bench.sample(case, n)]
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(PLANS, measure, mail_report, arguments)


if __name__ == "__main__":
    main()
