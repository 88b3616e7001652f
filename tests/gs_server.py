"""As much of Google Cloud Storage as reading takes, on loopback: objects are the files below a folder."""

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """The JSON API's list and get of objects, downloads, and a token for whoever asks."""

    root: Path

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200, json.dumps({"access_token": "t", "token_type": "Bearer", "expires_in": 3600}).encode())

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        parts = [urllib.parse.unquote(part) for part in address.path.strip("/").split("/")]
        assert parts[:3] == ["storage", "v1", "b"], self.path
        assert parts[4] == "o", self.path
        assert self.headers["Authorization"] == "Bearer t"
        bucket, name = parts[3], parts[5] if len(parts) > 5 else ""
        path = self.root / bucket / name
        if not name:
            self.list(bucket, query)
        elif not path.is_file():
            self.answer(404, b'{"error": {"code": 404, "message": "not found"}}')
        elif query.get("alt") == "media":
            self.answer(200, path.read_bytes(), "application/octet-stream")
        else:
            self.answer(200, json.dumps(self.describe(bucket, name)).encode())

    def describe(self, bucket: str, name: str) -> dict[str, object]:
        size = (self.root / bucket / name).stat().st_size
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(size),
            "generation": "1",
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00Z",
            "timeCreated": "2026-01-01T00:00:00Z",
        }

    def list(self, bucket: str, query: dict[str, str]) -> None:
        folder = self.root / bucket
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        items = [self.describe(bucket, name) for name in names if name.startswith(query.get("prefix", ""))]
        self.answer(200, json.dumps({"kind": "storage#objects", "items": items}).encode())


@contextlib.contextmanager
def serve(root: Path) -> Iterator[dict[str, str]]:
    """Serve the folders below `root` as buckets; yields the environment in which pyarrow's client finds them.

    From a thread of this process: whoever reads an object must let other threads of Python run meanwhile, or this one
    could never answer.
    """
    handler = type("Bound", (Handler,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    person = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    key = root / "credentials.json"
    key.write_text(json.dumps(person | {"token_uri": f"{address}/token"}))
    try:
        yield {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address, "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
