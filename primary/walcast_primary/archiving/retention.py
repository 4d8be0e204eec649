"""Deleting from an archive: nothing goes before what takes over is proven and what stays was seen to be enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from walcast.archive import ArchiveFile, plan_restore
from walcast.errors import Corrupt
from walcast.store import Store
from walcast_primary.archiving.compaction_schedule import ArchivePolicy, expired

BATCH = 1000


def delete_expired(
    store: Store,
    files: Sequence[ArchiveFile],
    policy: ArchivePolicy,
    now_ms: int,
    prove: Callable[[ArchiveFile], object],
) -> Iterator[Sequence[ArchiveFile]]:
    """Delete what the policy does not need, in batches; answers each batch when it is gone.

    `prove` raises unless a file that takes over is whole. Raises Corrupt, with nothing deleted, when the newest TXID
    could not be restored without what would go.
    """
    going = expired(files, policy, now_ms)
    if not going.files:
        return
    for file in going.relied_on:
        prove(file)
    keys = {file.key for file in going.files}
    newest = plan_restore(files)[-1].max_txid
    if plan_restore([file for file in files if file.key not in keys])[-1].max_txid != newest:
        raise Corrupt(f"{store.url}: retention would make the newest TXID unrestorable; nothing was deleted")
    for at in range(0, len(going.files), BATCH):
        batch = going.files[at : at + BATCH]
        store.delete(file.key for file in batch)
        yield batch
