"""`python -m benchmarks.oscar.run set-up USERS`, or `… run '{"way": "step", …}'`.

The latter prints "ready" when all its clients wait, begins when it reads a line, and prints what was done as JSON.
"""

import json
import sys

from django.core.management import call_command
from django.db import connection

from benchmarks import peers_crowd
from benchmarks.oscar import shop


def set_up(users):
    call_command("migrate", verbosity=0)
    shop.stock(users)


def measure(way, items, processes, threads, seconds, usage, cap):
    voucher = shop.new_voucher(usage, cap)
    side = shop.WAYS[way](voucher, items)
    with connection.cursor() as cursor:
        # What autovacuum would have done.
        cursor.execute("vacuum (analyze)")
        cursor.execute("checkpoint")
    crowd = peers_crowd.Crowd(processes, threads, seconds)
    done = peers_crowd.run(side, range(items), crowd, ready)
    print(json.dumps(done.asdict() | shop.counted(voucher)), flush=True)


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    if sys.argv[1] == "set-up":
        set_up(int(sys.argv[2]))
    else:
        measure(**json.loads(sys.argv[2]))
