"""`python -m fuzz TARGET INPUTS [SEED]`, in `tests/`: one run, and what it came to."""

from __future__ import annotations

import random
import sys
from importlib import import_module

from fuzz.engine import Run, Target

name, inputs = sys.argv[1], int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
print(Run(Target.of(import_module(f"fuzz.{name}")), seed).go(inputs), flush=True)
