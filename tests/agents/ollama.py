"""A fake Ollama on 127.0.0.1 that answers with the prompt it got, in two pieces."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ollama(ThreadingHTTPServer):
    """Serves /api/chat. Keeps the prompts (one message per line) and the models that were requested."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prompts: list[str] = []
        self.models: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Ollama)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/api/chat":
            self.send_error(404)
            return
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in asked["messages"])
        server.prompts.append(prompt)
        server.models.append(asked["model"])
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.end_headers()
        half = len(prompt) // 2
        for piece in (prompt[:half], prompt[half:]):
            self._line({"message": {"role": "assistant", "content": piece}, "done": False})
        end = {"role": "assistant", "content": ""}
        self._line({"message": end, "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 9})

    def _line(self, value: dict[str, object]) -> None:
        self.wfile.write(json.dumps({"model": "any", **value}).encode() + b"\n")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def ollama() -> Generator[Ollama]:
    with Ollama() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
