"""A server that speaks the OpenAI chat-completions protocol, for tests of everything that asks one."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class AnsweringServer:
    """Answers every request by a function from the request's body to a text (or a status other than 200)."""

    def __init__(self, answer):
        self.requests = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                said = answer(body)
                status = said if isinstance(said, int) else 200
                data = json.dumps(completion(said, body) if status == 200 else {"error": {"message": "no"}}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After-Ms", "10")
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


def completion(text, body):
    """The protocol's answer with one choice."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


@contextmanager
def answering(monkeypatch, answer, service="LAB"):
    """The server, under openai-api/<service>/MODEL for Inspect."""
    server = AnsweringServer(answer)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv(f"{service}_BASE_URL", server.url)
    monkeypatch.setenv(f"{service}_API_KEY", "none")
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
