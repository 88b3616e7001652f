"""A real S3 server on loopback for tests: moto's, one request at a time.

moto looks whether a key exists and then writes it without a lock between: under four racing
clients up to 10 of 400 conditional creates had two winners. S3 itself is atomic, and so is this.
"""

import contextlib
import logging
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def serve(bucket: str = "bucket") -> Iterator[str]:
    """Start the server with an empty `bucket`, point the environment at it and yield its address."""
    moto_server = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
    turn = threading.Lock()

    def one_at_a_time(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with turn:
            return application(environment, start_response)

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            use_server(patch, address)
            # moto's objects live as long as the process: without this a bucket of that name keeps an earlier server's.
            for method, path in (("POST", "moto-api/reset"), ("PUT", bucket)):
                urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", method=method)).close()
            yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_server(patch: pytest.MonkeyPatch, address: str) -> None:
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIAKEYFORTESTS")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secretfortests")
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
