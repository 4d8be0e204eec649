"""Archive stores: one small interface, a directory and S3 behind it."""

from walcast.store.base import ObjectExists, ObjectInfo, ObjectMissing, Store
from walcast.store.url import DirectorySpec, S3Spec, StoreSpec, open_store, parse_url

__all__ = [
    "DirectorySpec",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "S3Spec",
    "Store",
    "StoreSpec",
    "open_store",
    "parse_url",
]
