"""A small server of the OpenAI protocol around the local engine, with vLLM's extensions where they are not turned off.

Not a mock: it loads real weights and completes what it is sent, by token ids, text or messages. Other servers are
imitated by what it is told not to know. `python tests/model_server.py MODEL PORT [--plain] [--text-only]` runs it as a
process of its own.
"""

import argparse
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from prefixlab.config import HardwareConfig
from prefixlab.data.chat import chat_format, prompt_ids
from prefixlab.model.generate import Request, first_logits, generate
from prefixlab.model.load import load_model, load_tokenizer, resolve_model
from prefixlab.model.machine import resolve
from prefixlab.records import Message
from prefixlab.study.loaded import Loaded

PRECISE = (
    *("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("stop_token_ids", "ignore_eos", "skip_special_tokens", "return_token_ids"),
)


class Wrong(Exception):
    """A request that is turned away, with its status."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class ModelServer:
    """One base model and adapters by name.

    Args:
        model: As prefixlab names it.
        name: The base's name on the server; its folder where None.
        token_ids: Whether prompts may be lists of ids.
        precise: Whether it knows vLLM's parameters; it refuses them where not, as `transformers serve` does.
        completions: Whether there is /v1/completions.
        loading: Whether there is /v1/load_lora_adapter.
        any_name: Whether it answers under every name, with the base.
        key: What it wants as key, if anything.
        context: Tokens of prompt and completion together, at which it cuts, as vLLM does.
        ends: Ids at which it ends of itself, beside the tokenizer's, unless `ignore_eos` is said.
    """

    def __init__(
        self,
        model="tiny-random",
        *,
        name=None,
        token_ids=True,
        precise=True,
        completions=True,
        loading=True,
        any_name=False,
        key=None,
        context=100_000,
        ends=(),
        port=0,
        threads=1,
    ):
        ref = resolve_model(model)
        hardware = resolve(HardwareConfig(device="cpu", dtype="float32", threads=threads))
        tokenizer = load_tokenizer(ref)
        self.loaded = Loaded(ref, load_model(ref, hardware), tokenizer, chat_format(tokenizer), True)
        self.base, self.adapters = name or ref.path, {}
        self.token_ids, self.precise, self.completions = token_ids, precise, completions
        self.loading, self.any_name, self.key = loading, any_name, key
        self.context = context
        self.ends = {tokenizer.eos_token_id, *ends}
        self.asked, self.lock = [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.answer(outer.get)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(lambda path: outer.post(path, body))

            def answer(self, work):
                try:
                    if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                        raise Wrong(401, "no key")
                    status, told = 200, work(self.path)
                except Wrong as error:
                    status, told = error.status, {"error": {"message": str(error)}}
                data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass  # the client has given up waiting

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def get(self, path):
        if path != "/v1/models":
            raise Wrong(404, "not found")
        return {"object": "list", "data": [{"id": n, "object": "model"} for n in (self.base, *self.adapters)]}

    def post(self, path, body):
        if path == "/v1/load_lora_adapter" and self.loading:
            if not (Path(body["lora_path"]) / "adapter_config.json").exists():
                raise Wrong(404, f"No adapter found for {body['lora_path']}")
            self.adapters[body["lora_name"]] = Path(body["lora_path"])
            return f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        chat = path == "/v1/chat/completions"
        if not chat and not (path == "/v1/completions" and self.completions):
            raise Wrong(404, "not found")
        with self.lock:
            self.asked.append(body)
            return self.complete(body, chat)

    def complete(self, body, chat):
        """The answer to one request."""
        tokenizer, stops = self.loaded.tokenizer, set() if body.get("ignore_eos") else set(self.ends)
        name = body["model"]
        if name not in (self.base, *self.adapters) and not self.any_name:
            raise Wrong(404, f"The model `{name}` does not exist.")
        unknown = [k for k in PRECISE if k in body]
        if unknown and not self.precise:
            raise Wrong(422, f"Unexpected fields in the request: {unknown}")
        ids = self.ids(body, chat)
        model = self.loaded.use(self.adapters.get(name))
        stops |= set(body.get("stop_token_ids", ()))
        request = Request(
            tuple(ids),
            min(body["max_tokens"], self.context - len(ids)),
            body["temperature"],
            body["top_p"],
            body["seed"],
            body.get("repetition_penalty", 1.0),
        )
        (done,) = generate(model, [request], stop_ids=frozenset(stops), pad=self.loaded.pad)
        text = tokenizer.decode(list(done.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        written = list(done.ids) + ([] if done.truncated else [tokenizer.eos_token_id])
        choice = {"index": 0, "finish_reason": "length" if done.truncated else "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("return_token_ids"):
            choice["token_ids"] = written
            choice["prompt_token_ids"] = list(ids)
        if body.get("logprobs") and self.precise:
            found = self.logprobs(model, tuple(ids), done.ids)
            choice["logprobs"] = {"content": [{"logprob": p} for p in found]} if chat else {"token_logprobs": found}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return {"id": "1", "object": "text_completion", "model": name, "choices": [choice], "usage": usage}

    def ids(self, body, chat):
        if chat:
            turns = [Message(role=m["role"], content=m["content"]) for m in body["messages"]]
            return prompt_ids(self.loaded.tokenizer, turns)
        if isinstance(body["prompt"], str):
            return self.loaded.tokenizer(body["prompt"])["input_ids"]
        if not self.token_ids:
            raise Wrong(400, "prompt must be a string.")
        return body["prompt"]

    def logprobs(self, model, prompt, written):
        """Log-probability of each written token."""
        found = []
        for i, token in enumerate(written):
            logits = first_logits(model, [(*prompt, *written[:i])], self.loaded.pad)[0].float()
            found.append(float(torch.log_softmax(logits, -1)[token]))
        return found


@contextmanager
def running(*arguments, **how):
    """The server on a free port, in threads of this process."""
    server = ModelServer(*arguments, **how)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
        server.loaded.use(None)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("model")
    options.add_argument("port", type=int)
    options.add_argument("--fail", action="store_true")
    options.add_argument("--slow", type=float, default=0.0)
    chosen = options.parse_args()
    if chosen.fail:
        raise SystemExit("this model does not fit into the memory")
    time.sleep(chosen.slow)
    print("serving", chosen.model, flush=True)
    ModelServer(chosen.model, port=chosen.port).http.serve_forever()
