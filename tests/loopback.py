"""A real HTTP server on loopback that answers like a chat endpoint, or as badly as a test wants.

`script(body, n)` gets the request's JSON and how often this same request came before. It returns the reply's text, a dict
(a completion: see `completion`), or one of the Bad kinds below.
"""

import dataclasses
import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Status:
    code: int
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes = b'{"error": {"message": "not now"}}'


@dataclasses.dataclass
class Slow:
    seconds: float
    text: str = "late"


class Cut:
    """The connection breaks in the middle of the body."""


@dataclasses.dataclass
class Raw:
    body: bytes
    type: str = "application/json"


def completion(content, finish="stop", usage=(11, 7), **message):
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "loopback-1",
        "choices": [{
            "index": 0, "finish_reason": finish, "logprobs": None,
            "message": {"role": "assistant", "content": content, **message},
        }],
        "usage": usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }  # fmt: skip


class Server:
    def __init__(self, script):
        self.script, self.requests, self.headers = script, [], []
        self.counts, self.active, self.most_active, self.times = Counter(), 0, 0, []
        self.error = None
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                with lock:
                    outer.requests.append(body)
                    outer.headers.append(self.headers)
                    outer.times.append(time.monotonic())
                    n = outer.counts[raw]
                    outer.counts[raw] += 1
                    outer.active += 1
                    outer.most_active = max(outer.most_active, outer.active)
                try:
                    self.answer(outer.ask(body, n))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with lock:
                        outer.active -= 1

            def answer(self, what):
                if isinstance(what, Slow):
                    time.sleep(what.seconds)
                    what = what.text
                if isinstance(what, Cut):
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "500")
                    self.end_headers()
                    self.wfile.write(b'{"id": "x", "choi')
                    self.wfile.flush()
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                if isinstance(what, str):
                    what = completion(what)
                if isinstance(what, dict):
                    what = Raw(json.dumps(what).encode())
                if isinstance(what, Raw):
                    what = Status(200, {"Content-Type": what.type}, what.body)
                self.send_response(what.code)
                for name, value in ({"Content-Type": "application/json"} | what.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(what.body)))
                self.end_headers()
                self.wfile.write(what.body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def ask(self, body, n):
        try:
            return self.script(body, n)
        except Exception as error:  # the script's own fault: shown when the server is left
            self.error = error
            return Status(400)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        if self.error:
            raise self.error


def last(body):
    """The text of the last message."""
    return body["messages"][-1]["content"]
