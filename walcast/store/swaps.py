"""What stores have in common about `swap`: how big such an object may be, and the proof that a store keeps to it."""

from __future__ import annotations

import secrets

from walcast.store.base import ObjectChanged, Store

MAX_SWAP_BYTES = 64 << 10


def check_size(data: bytes) -> None:
    """ValueError for what is no small object."""
    if len(data) > MAX_SWAP_BYTES:
        raise ValueError(f"{len(data)} bytes to swap; at most {MAX_SWAP_BYTES} are allowed")


def keeps_to_versions(store: Store, key: str) -> bool:
    """Does the store refuse each wrong version, accept each right one, and name versions alike in `swap` and `read`?

    Finds out with an object of that key, which nobody else may use, and leaves it behind. Servers exist that write
    whatever is asked, and others that can only tell whether there is an object. Raises what `swap` and `read` raise.
    """
    second = secrets.token_bytes(16)
    try:
        created = store.swap(key, secrets.token_bytes(16), None)
        changed = store.swap(key, second, created)
    except ObjectChanged:
        return False
    if not _is_refused(store, key, created) or not _is_refused(store, key, None):
        return False
    found = store.read(key)
    return found is not None and (found.data, found.version) == (second, changed)


def _is_refused(store: Store, key: str, version: str | None) -> bool:
    try:
        # Never the same bytes twice: whoever finds its own object takes that for its own success.
        store.swap(key, secrets.token_bytes(16), version)
    except ObjectChanged:
        return True
    return False
