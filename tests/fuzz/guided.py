"""`python -m fuzz.guided TARGET INPUTS [SEED]`, in `tests/`: a run that atheris (libFuzzer) guides by coverage.

Beside the engine's own runs, which count and measure: what atheris keeps is what reached new code, after each input.
Exit code 0 when there was no finding; else the input is printed and written to the current folder.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["walcast", "primary", "follower", "node"]):
    from fuzz.engine import DEADLINE_S, Target

RSS_LIMIT_MIB = 2048


def dictionary(tokens: list[bytes]) -> str:
    """In libFuzzer's format."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in tokens if token)


def main(name: str, inputs: int, seed: int) -> None:
    """Does not return."""
    with atheris.instrument_imports(include=["walcast", "primary", "follower", "node"]):
        target = Target.of(import_module(f"fuzz.{name}"))

    def one(data: bytes) -> None:
        with contextlib.suppress(*target.allowed):
            target.run(data)

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus, words = folder / "corpus", folder / "dictionary"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    flags = [f"-runs={inputs}", f"-seed={seed}", f"-timeout={DEADLINE_S:.0f}", "-max_len=65536"]
    flags += [f"-rss_limit_mb={RSS_LIMIT_MIB}", "-print_final_stats=1"]
    if target.tokens:
        words.write_text(dictionary(list(target.tokens)))
        flags.append(f"-dict={words}")
    with target.running():
        atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    given = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1, 1 << 31)
    main(sys.argv[1], int(sys.argv[2]), given)
