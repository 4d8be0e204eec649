"""Archive stores: one small interface, a directory and S3 behind it."""

from walcast.store.base import (
    ForeignObject,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    SetAside,
    Store,
    UnsettledObject,
    Versioned,
)
from walcast.store.url import DirectorySpec, S3Spec, StoreSpec, open_store, parse_url

__all__ = [
    "DirectorySpec",
    "ForeignObject",
    "ObjectChanged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "S3Spec",
    "SetAside",
    "Store",
    "StoreSpec",
    "UnsettledObject",
    "Versioned",
    "open_store",
    "parse_url",
]
