"""A stand-in for the Hub behind a slow link: serves one folder as owner/bench, for tools/bench.py.

    python tools/link.py FOLDER BYTES_PER_SECOND ROUND_TRIP_SECONDS

Every request waits a round trip, every new connection one more, and all bodies share the bandwidth. Large files are
behind a redirect, as on the Hub. Prints its URL on the first line.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 1 << 16
COMMIT = "0" * 40


class Link:
    """Bandwidth that all connections share: each piece waits until the link is free for it."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._sending = threading.Lock()
        self.sent = 0

    def wait(self, size: int) -> None:
        """Sleep until the link would have carried that many bytes more."""
        with self._sending:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            until = self._free_at
            self.sent += size
        time.sleep(max(0.0, until - time.monotonic()))


def _listed(path: Path) -> dict[str, object]:
    """Return a file as the Hub lists it; its hash is made up, of its name."""
    size = path.stat().st_size
    listed: dict[str, object] = {"rfilename": path.name, "size": size}
    if path.suffix == ".safetensors":
        listed["lfs"] = {"sha256": hashlib.sha256(path.name.encode()).hexdigest(), "size": size, "pointerSize": 134}
    return listed


def serve(folder: Path, bytes_per_second: float, round_trip: float) -> None:
    """Serve the folder until the process is stopped."""
    link = Link(bytes_per_second)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            time.sleep(round_trip)

        def do_GET(self) -> None:
            time.sleep(round_trip)
            assert isinstance(self.server, ThreadingHTTPServer)
            path = self.path.split("?")[0]
            if path.startswith("/api/"):
                files = [_listed(p) for p in sorted(folder.iterdir())]
                self.answer(200, json.dumps({"id": "owner/bench", "sha": COMMIT, "siblings": files}).encode())
                return
            name = path.rpartition("/")[2]
            if name.endswith(".safetensors") and "/resolve/" in path:
                self.send_response(302)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{name}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last = (int(end) for end in self.headers["Range"].removeprefix("bytes=").split("-"))
            size = (folder / name).stat().st_size
            self.send_response(206)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("ETag", f'"{hashlib.sha256(name.encode()).hexdigest()}"')
            self.end_headers()
            with (folder / name).open("rb") as file:
                file.seek(first)
                for start in range(first, last + 1, PIECE):
                    piece = file.read(min(PIECE, last + 1 - start))
                    link.wait(len(piece))
                    self.wfile.write(piece)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of a client that has gone."""

    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
