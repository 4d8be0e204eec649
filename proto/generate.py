"""Generate `walcast/rpc` from the .proto files: messages, gRPC stubs, and their type stubs.

    python proto/generate.py walcast/rpc            write
    python proto/generate.py --check walcast/rpc    exit 1 when what is there is not what would be written
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent


def generate(out: Path) -> None:
    """Write the generated modules into `out`, with imports that work inside the package."""
    sources = sorted(p.name for p in HERE.glob("*.proto"))
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).with_name('protoc-gen-' + name)}"
        for name in ("mypy", "mypy_grpc")
    ]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")] + [
        f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")
    ]
    arguments = ["protoc", f"-I{HERE}", *plugins, *outputs]
    if protoc.main([*arguments, *sources]) != 0:
        sys.exit("error: protoc failed")
    for path in out.glob("*_pb2_grpc.py"):
        text = path.read_text()
        for source in sources:
            module = source.removesuffix(".proto") + "_pb2"
            text = text.replace(f"\nimport {module} as", f"\nfrom walcast.rpc import {module} as")
        path.write_text(text)
    for path in out.glob("*_pb2_grpc.pyi"):
        text = path.read_text()
        for source in sources:
            module = source.removesuffix(".proto") + "_pb2"
            text = text.replace(f"\nimport {module} as", f"\nfrom walcast.rpc import {module} as")
        path.write_text(text)


def main(arguments: list[str]) -> int:
    check = arguments[0] == "--check"
    target = Path(arguments[-1])
    if not check:
        generate(target)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = [p.name for p in sorted(Path(scratch).iterdir()) if not same(p, target / p.name)]
    for name in stale:
        print(f"error: {target / name} is not what proto/ generates: run make proto", file=sys.stderr)
    return 1 if stale else 0


def same(fresh: Path, kept: Path) -> bool:
    return kept.exists() and fresh.read_text() == kept.read_text()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
