"""What stands for oqtopus-client behind QRMI's bridge: the requests that it makes, over HTTP."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
import zipfile
from typing import Any

_BOUNDARY = "oqtopus-boundary"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _API:
    def __init__(self, url: str, api_token: str, **_: object) -> None:
        self._url, self._headers = url, {"q-api-token": api_token}

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return json.loads(_send(method, self._url + path, data, self._headers))

    def submit_job(self, argument: str) -> str:
        spec = json.loads(argument)
        registered = self._ask("POST", "/jobs", {})
        content = {"program": spec.pop("program"), "operator": spec.pop("operator", None)}
        upload = registered["presigned_url"]
        _send("POST", upload["url"], _form(upload["fields"], content), _FORM)
        body = {"shots": 1000, **spec}
        self._ask("POST", f"/jobs/{registered['job_id']}/submit", body)
        return str(registered["job_id"])

    def get_job_status(self, argument: str) -> str:
        return str(self._ask("GET", f"/jobs/{argument}/status")["status"])

    def get_job_result_json(self, argument: str) -> str:
        job = self._ask("GET", f"/jobs/{argument}")
        for name in ("input", "result"):
            if url := job["job_info"].get(name):
                with zipfile.ZipFile(io.BytesIO(_send("GET", url, None, {}))) as archive:
                    job["job_info"][name] = json.loads(archive.read(archive.namelist()[0]))
        return json.dumps(job)

    def cancel_job(self, argument: str) -> str:
        return str(self._ask("POST", f"/jobs/{argument}/cancel", {})["message"])

    def get_device_json(self, argument: str) -> str:
        device = self._ask("GET", f"/devices/{argument}")
        return json.dumps({**device, "device_info": json.loads(device["device_info"])})

    def get_device_status(self, argument: str) -> str:
        return str(self._ask("GET", f"/devices/{argument}")["status"])


_FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}


def call(name: str, argument: str, config: str) -> str:
    """Call a function of the bridge; return `0` and its text, or `1` and the error's."""
    try:
        return "0" + getattr(_API(**json.loads(config)), name)(argument)
    except urllib.error.HTTPError as error:
        message = json.loads(error.read())["message"]
        return f"1api error: status={error.code} message={message}"
    except Exception as error:
        return f"1python error: {error!r}"


def _send(method: str, url: str, data: bytes | None, headers: dict[str, str]) -> bytes:
    kind = {} if data is None or "Content-Type" in headers else {"Content-Type": "application/json"}
    request = urllib.request.Request(  # noqa: S310 - the emulator's own address
        url, data=data, method=method, headers=headers | kind
    )
    with _DIRECT.open(request) as response:
        return bytes(response.read())


def _form(fields: dict[str, str], content: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input.json", json.dumps(content))
    parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    file = b'name="file"; filename="input.zip"\r\nContent-Type: application/zip\r\n'
    parts.append(file + b"\r\n" + buffer.getvalue())
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
