"""S3-compatible object storage as destination."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kronos_db.backup.destination import Source, Stored
from kronos_db.backup.model import BackupBusyError, DestinationError

# S3 takes 10,000 parts of 5 MiB or more each: with these, objects of 640 GiB.
_PART = 64 * 1024 * 1024
_MISSING = ("NoSuchKey", "404", "NotFound")
# Answers of a conditional write that another one came before.
_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
# Seconds: a lock that was not renewed for so long is a dead process's.
_EXPIRY = 60.0
_RENEWAL = 15.0
_ABANDONED = timedelta(days=1)


class ObjectStorage:
    """The destination `s3://bucket/prefix?endpoint=URL&region=NAME`; both parameters have the SDK's defaults.

    A put is one request, or a multipart upload that shows when it is complete. Locks are objects that are written
    on condition, and renewed while they are held.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        self._url = url
        self._bucket = parts.netloc
        path = unquote(parts.path).strip("/")
        self._prefix = f"{path}/" if path else ""
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=options.get("endpoint", [None])[0],
            region_name=options.get("region", [None])[0],
            config=Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60),
        )

    @property
    def url(self) -> str:
        """The URL that it was made of."""
        return self._url

    def put(self, name: str, pieces: Iterable[bytes]) -> int:
        """Upload, in parts when it is long."""
        parts = _parts(pieces)
        first = next(parts)
        second = next(parts, None)
        with _failures(name):
            if second is None:
                self._client.put_object(**self._at(name), Body=first)
                return len(first)
            return self._put_parts(name, chain((first, second), parts))

    def open(self, name: str) -> Source:
        """Begin a download."""
        with _failures(name):
            try:
                body: Source = self._client.get_object(**self._at(name))["Body"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise FileNotFoundError(name) from None
                raise
        return _Download(body, name)

    def list(self, prefix: str) -> Iterator[Stored]:
        """Ask for page after page."""
        with _failures(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(self._prefix)
                    if not name.startswith("."):
                        yield Stored(name, entry["Size"], entry["LastModified"].astimezone(UTC))

    def delete(self, name: str) -> None:
        """Delete."""
        with _failures(name):
            self._client.delete_object(**self._at(name))

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Write the lock's object if there is none, or an old one, and again every 15 s."""
        key = f".locks/{name}"
        lock = _Lock(self._client, self._at(key), secrets.token_hex(16))
        with _failures(key):
            lock.take()
        try:
            yield
        finally:
            with _failures(key):
                lock.release()

    def clean(self) -> None:
        """Abort multipart uploads that were begun more than a day ago."""
        with _failures("unfinished uploads"):
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix)
            for upload in found.get("Uploads", ()):
                if datetime.now(UTC) - upload["Initiated"] > _ABANDONED:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def _put_parts(self, name: str, parts: Iterable[bytes]) -> int:
        upload = self._client.create_multipart_upload(**self._at(name))["UploadId"]
        size, done = 0, []
        try:
            for number, part in enumerate(parts, 1):
                done.append(self._put_part(name, upload, number, part))
                size += len(part)
            self._client.complete_multipart_upload(**self._at(name), UploadId=upload, MultipartUpload={"Parts": done})
        except BaseException:
            with contextlib.suppress(BotoCoreError, ClientError):
                self._client.abort_multipart_upload(**self._at(name), UploadId=upload)
            raise
        return size

    def _put_part(self, name: str, upload: str, number: int, part: bytes) -> Mapping[str, object]:
        answer = self._client.upload_part(**self._at(name), UploadId=upload, PartNumber=number, Body=part)
        return {"ETag": answer["ETag"], "PartNumber": number}

    def _at(self, name: str) -> Mapping[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}


class _Download:
    """A body that is read in as many bytes as asked for, though they come in fewer."""

    def __init__(self, body: Source, name: str) -> None:
        self._body = body
        self._name = name

    def read(self, size: int) -> bytes:
        found = bytearray()
        with _failures(self._name):
            while len(found) < size and (piece := self._body.read(size - len(found))):
                found += piece
        return bytes(found)

    def close(self) -> None:
        self._body.close()


class _Lock:
    """A lock object. Whether another's is old the storage's own clock says."""

    def __init__(self, client: Any, place: Mapping[str, str], holder: str) -> None:
        self._client = client
        self._place = place
        self._body = json.dumps({"holder": holder}).encode()
        self._etag = ""
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="renew lock", daemon=True)

    def take(self) -> None:
        try:
            self._write(IfNoneMatch="*")
        except ClientError as error:
            if _code(error) not in _REFUSED:
                raise
            self._take_over()
        self._renewal.start()

    def release(self) -> None:
        self._released.set()
        self._renewal.join()
        self._client.delete_object(**self._place)

    def _take_over(self) -> None:
        try:
            found = self._client.head_object(**self._place)
            now = datetime.strptime(
                found["ResponseMetadata"]["HTTPHeaders"]["date"], "%a, %d %b %Y %H:%M:%S GMT"
            ).replace(tzinfo=UTC)
            if (now - found["LastModified"]).total_seconds() > _EXPIRY:
                self._write(IfMatch=found["ETag"])
                return
        except ClientError as error:
            if _code(error) not in (*_REFUSED, *_MISSING):
                raise
        raise BackupBusyError("Another process holds the lock of this destination.")

    def _write(self, **condition: str) -> None:
        self._etag = self._client.put_object(**self._place, Body=self._body, **condition)["ETag"]

    def _renew(self) -> None:
        while not self._released.wait(_RENEWAL):
            # One that fails is tried again before it matters.
            with contextlib.suppress(BotoCoreError, ClientError):
                self._write(IfMatch=self._etag)


def _parts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to parts of the same length, the last one shorter; of none make one empty one."""
    part = bytearray()
    yielded = False
    for piece in pieces:
        part += piece
        while len(part) >= _PART:
            yield bytes(part[:_PART])
            yielded = True
            del part[:_PART]
    if part or not yielded:
        yield bytes(part)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise DestinationError(f"{name} in object storage: {error}") from error
