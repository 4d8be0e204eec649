"""`python -m bench [NAME …] [--quick] [--profile]`"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback
from types import FrameType

from bench.harness import BenchError, Run
from bench.report import PAGE, RESULTS, load, machine, save, table

NAMES = [
    "lag",
    "flatout",
    "bulk",
    "decode",
    "memory",
    "idle",
    "bootstrap",
    "restore",
    "fanout",
    "archive",
    "compaction",
    "failover",
    "web",
    "waiting",
    "peers",
]


def main() -> int:
    """Exit code 0 also when a floor is missed; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure walcast.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="short rounds; nothing is written")
    parser.add_argument("--profile", action="store_true", help="py-spy on primary and follower; nothing is written")
    options = parser.parse_args()
    names = options.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _end)
    failed = [name for name in names if not measure(name, options)]
    if not options.quick and not options.profile:
        print(f"written: {RESULTS}, {PAGE}", file=sys.stderr)
    return int(bool(failed))


def measure(name: str, options: argparse.Namespace) -> bool:
    """One benchmark, printed and written down; False when it could not be carried out."""
    module = importlib.import_module(f"bench.{name}")
    print(f"{name}: {(module.__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
    facts, began_s = machine(), time.monotonic()
    try:
        with Run(options.quick, options.profile) as run:
            measures = module.run(run)
    except BenchError as error:
        print(f"  not measured: {error}", file=sys.stderr, flush=True)
        return False
    except Exception:  # noqa: BLE001 - one that is broken must not cost the others
        traceback.print_exc()
        return False
    seconds = round(time.monotonic() - began_s)
    print(f"{name}, {seconds} s\n{table(measures)}", flush=True)
    for process, text in run.profiles.items():
        print(f"  profile of the {process}:\n{text}", flush=True)
    if any(m.passed is False for m in measures) and not run.profiles:
        print(f"  a floor is missed; where the time goes: python -m bench {name} --profile", flush=True)
    if not options.quick and not options.profile:
        command = f"python -m bench {name}"
        result = {"command": command, "machine": facts, "seconds": seconds, "measures": [m.encode() for m in measures]}
        results = load() | {name: result}
        save(results, NAMES, {n: _about(n) for n in results})
    return True


def _about(name: str) -> str:
    return (importlib.import_module(f"bench.{name}").__doc__ or "").strip()


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
