"""`python -m walcast.discarded FOLDER BASE OUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from walcast.discarded.rebuilding import rebuild
from walcast.errors import WalcastError
from walcast.identifiers import printable


def main() -> int:
    """Exit codes as those of the commands: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m walcast.discarded",
        description="Make a database of what a deposed node had: its kept files over the database that they apply to.",
    )
    parser.add_argument("folder", type=Path, help="a folder of APP.db-walcast/discarded/")
    parser.add_argument("base", type=Path, help="the database as summary.txt says to restore it; it is not changed")
    parser.add_argument("out", type=Path, help="the new file")
    parser.add_argument("--anyway", action="store_true", help="over any state: a mixture, only for finding rows")
    given = parser.parse_args()
    try:
        position = rebuild(given.folder, given.base, given.out, anyway=given.anyway)
    except WalcastError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    proof = "not proven" if given.anyway else "its checksums are right"
    print(f"{given.out}: the database at {position}, {proof}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
