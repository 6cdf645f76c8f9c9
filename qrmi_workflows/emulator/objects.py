"""An S3-compatible object store: PUT, GET, HEAD and DELETE of objects in a path-style bucket.

Clients of IBM's Quantum System API exchange inputs and results through it. Every request must be
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
    """An object store with one bucket.

    Args:
        store: The database that holds the objects.
        clock: The clock that signatures are checked against.
        bucket: The bucket's name.
        keys: The secret access keys by access key id.
    """

    def __init__(self, store: Store, clock: Clock, bucket: str, keys: Mapping[str, str]) -> None:
        self._store = store
        self._clock = clock
        self._bucket = bucket
        self._keys = keys

    async def answer(self, request: Request) -> Response:
        """Handle one S3 request, with errors as S3 documents them."""
        body = await request.body()
        try:
            check_signature(_signed_request(request), self._keys, body, self._clock.now())
            return self._carry_out(request, body)
        except SignatureError as error:
            return _error(error.code, error.message, _STATUS.get(error.code, 403))

    def _carry_out(self, request: Request, body: bytes) -> Response:
        bucket, key = request.path_params["bucket"], request.path_params["key"]
        if bucket != self._bucket:
            raise SignatureError("NoSuchBucket", f"The bucket {bucket!r} does not exist.")
        if request.method == "PUT":
            media_type = request.headers.get("content-type", "application/octet-stream")
            self._store.put_object(bucket, key, body, media_type, self._clock.now())
            return Response(headers={"etag": _etag(body)})
        if request.method == "DELETE":
            self._store.delete_object(bucket, key)
            return Response(status_code=204)
        if request.method in ("GET", "HEAD"):
            return self._read(bucket, key)
        raise SignatureError("MethodNotAllowed", f"{request.method} is not supported.")

    def _read(self, bucket: str, key: str) -> Response:
        stored = self._store.get_object(bucket, key)
        if stored is None:
            raise SignatureError("NoSuchKey", f"The key {key!r} does not exist.")
        body, media_type, modified = stored
        last_modified = format_datetime(datetime.fromtimestamp(modified, UTC), usegmt=True)
        headers = {"etag": _etag(body), "last-modified": last_modified}
        return Response(body, media_type=media_type, headers=headers)


def _signed_request(request: Request) -> SignedRequest:
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
