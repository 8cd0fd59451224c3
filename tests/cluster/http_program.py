"""A small HTTP server that stands for an image in these tests.

Usage: http_program.py [--port 8000] [--ready-after N] [--exit-after SECONDS]
`/healthz` answers 200, `/ready` 200 from the Nth request on (503 before), `/env` the environment as JSON.
"""

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--ready-after", type=int, default=0)
parser.add_argument("--exit-after", type=float)
options = parser.parse_args()
readiness_requests = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        global readiness_requests
        status, body = 200, b"ok"
        if self.path == "/ready":
            readiness_requests += 1
            status = 200 if readiness_requests > options.ready_after else 503
        elif self.path == "/env":
            body = json.dumps(dict(os.environ)).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def leave() -> None:
    time.sleep(options.exit_after)
    os._exit(3)


if options.exit_after is not None:
    threading.Thread(target=leave, daemon=True).start()
ThreadingHTTPServer((os.environ["POD_IP"], options.port), Handler).serve_forever()
