"""Stock SQLite in a process of its own, one statement a line of JSON: `apply_sql.py DATABASE`.

Answers with rows, or {"error": …}; ends with its standard input. One that checks BUSY does not wait (timeout 0).
"""

import json
import sqlite3
import sys


def main() -> None:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
    for line in sys.stdin:
        try:
            answer = db.execute(json.loads(line)).fetchall()
        except sqlite3.Error as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=bytes.hex), flush=True)


main()
