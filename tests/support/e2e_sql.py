"""Stock SQLite in a process of its own: `e2e_sql.py DATABASE TIMEOUT_S`; one [sql, values] a line of JSON.

Answers {"rows", "error", "seconds"}; ends with its standard input.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time


def main() -> None:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        sql, values = json.loads(line)
        began, rows, error = time.monotonic(), [], None
        try:
            if isinstance(values, list) and values and isinstance(values[0], list):
                db.executemany(sql, values)
            elif sql.rstrip().endswith(";"):
                db.executescript(sql)
            else:
                rows = db.execute(sql, values).fetchall()
        except sqlite3.Error as raised:
            error = str(raised)
        print(json.dumps({"rows": rows, "error": error, "seconds": time.monotonic() - began}, default=repr), flush=True)


main()
