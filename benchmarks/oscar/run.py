"""`python -m benchmarks.oscar.run set-up USERS`, or `… run '{"implementation": "step", …}'`.

The latter prints "ready" when all clients are connected, begins when it reads a line, and prints the result as JSON.
"""

import json
import sys

from django.core.management import call_command
from django.db import connection

from benchmarks import concurrent_clients
from benchmarks.oscar import shop


def set_up(users):
    call_command("migrate", verbosity=0)
    shop.fill_shop(users)


def measure(implementation, items, processes, threads, seconds, usage, cap):
    voucher = shop.new_voucher(usage, cap)
    operation = shop.IMPLEMENTATIONS[implementation](voucher, items)
    with connection.cursor() as cursor:
        # As autovacuum would do.
        cursor.execute("vacuum (analyze)")
        cursor.execute("checkpoint")
    concurrency = concurrent_clients.Concurrency(processes, threads, seconds)
    result = concurrent_clients.run(operation, range(items), concurrency, ready)
    print(json.dumps(result.asdict() | shop.voucher_counts(voucher)), flush=True)


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    if sys.argv[1] == "set-up":
        set_up(int(sys.argv[2]))
    else:
        measure(**json.loads(sys.argv[2]))
