"""Open the storage that an address names."""

from __future__ import annotations

from components.base.addresses import parse_address
from components.base.errors import PermanentError
from components.storage.interface import Storage
from components.storage.local import LocalStorage


def open_storage(uri: str) -> Storage:
    """Return the storage of a local folder, `gs://bucket/prefix` or `s3://bucket/prefix`."""
    try:
        scheme, place = parse_address(uri)
    except ValueError as error:
        raise PermanentError(f"storage {uri}: {error}") from error
    if scheme == "file":
        return LocalStorage(place)
    bucket, _, prefix = place.partition("/")
    if scheme == "gs":
        from components.storage.gcs import GcsStorage

        return GcsStorage(bucket, prefix.strip("/"))
    from components.storage.s3 import S3Storage

    return S3Storage(bucket, prefix.strip("/"))


def open_object(uri: str) -> tuple[Storage, str]:
    """Split an object's address into its storage and the object's path there."""
    folder, _, name = uri.rpartition("/")
    return open_storage(folder or "."), name
