"""An S3-compatible object store: PUT, GET, HEAD and DELETE of objects in path-style buckets.

It is what IBM's Quantum System API exchanges inputs and results through. Every request must be
signed, in its headers or as a presigned URL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from qrmi_workflows.emulator.clock import Clock
from qrmi_workflows.emulator.sigv4 import SignatureError, SignedRequest, check_signature
from qrmi_workflows.emulator.store import Store

__all__ = ["ObjectStore"]

_STATUS = {"NoSuchKey": 404, "NoSuchBucket": 404, "MethodNotAllowed": 405}


class ObjectStore:
    """Objects in one bucket.

    Args:
        store: Where they are kept.
        clock: What signatures' times are checked with.
        bucket: The only bucket.
        keys: Secret access keys by access key id.
    """

    def __init__(self, store: Store, clock: Clock, bucket: str, keys: Mapping[str, str]) -> None:
        self._store = store
        self._clock = clock
        self._bucket = bucket
        self._keys = keys

    async def answer(self, request: Request) -> Response:
        """Answer one S3 request, errors in S3's form."""
        body = await request.body()
        try:
            check_signature(_signed(request), self._keys, body, self._clock.now())
            return self._act(request, body)
        except SignatureError as error:
            return _error(error.code, error.message, _STATUS.get(error.code, 403))

    def _act(self, request: Request, body: bytes) -> Response:
        bucket, key = request.path_params["bucket"], request.path_params["key"]
        if bucket != self._bucket:
            raise SignatureError("NoSuchBucket", f"The bucket {bucket!r} does not exist.")
        if request.method == "PUT":
            kind = request.headers.get("content-type", "application/octet-stream")
            self._store.put_object(bucket, key, body, kind, self._clock.now())
            return Response(headers={"etag": _etag(body)})
        if request.method == "DELETE":
            self._store.delete_object(bucket, key)
            return Response(status_code=204)
        if request.method in ("GET", "HEAD"):
            return self._read(bucket, key)
        raise SignatureError("MethodNotAllowed", f"{request.method} is not supported.")

    def _read(self, bucket: str, key: str) -> Response:
        found = self._store.get_object(bucket, key)
        if found is None:
            raise SignatureError("NoSuchKey", f"The key {key!r} does not exist.")
        body, kind, modified = found
        stamp = format_datetime(datetime.fromtimestamp(modified, UTC), usegmt=True)
        return Response(
            body, media_type=kind, headers={"etag": _etag(body), "last-modified": stamp}
        )


def _signed(request: Request) -> SignedRequest:
    return SignedRequest(
        method=request.method,
        path=request.scope["raw_path"].decode("ascii"),
        query=request.scope["query_string"].decode("ascii"),
        headers=request.headers,
    )


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _error(code: str, message: str, status: int) -> Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Response(text, status_code=status, media_type="application/xml")
