"""A small HTTP server that stands for an image in these tests: answers `ok`, and on /env its environment as JSON."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode() if self.path == "/env" else b"ok")

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer((os.environ["POD_IP"], 8000), Handler).serve_forever()
