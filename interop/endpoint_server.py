#!/usr/bin/env python3
"""A small completions server over transformers, on CPU: what `longshore eval --endpoint` is checked against.

    endpoint_server.py FOLDER [--port N] [--name MODEL] [--max-logprobs N] [--least-tokens N]

Answers GET /v1/models and POST /v1/completions as vLLM does: `top_logprobs` maps the text of each of the N most likely tokens to its
log-probability, `echo` puts the prompt's tokens before the new ones, the first with null. More than --max-logprobs, and fewer new tokens
than --least-tokens, are refused with status 400. Everything is computed in float32, without transformers' bound on the time steps of
prompts. Runs in the environment of setup.sh, which it makes where there is none.
"""
import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import checking

if __name__ == "__main__":
    checking.enter_environment()

import torch
from transformers import AutoTokenizer

import logits_reference as reference


class Refused(Exception):
    pass


class Engine:
    """A model and its tokenizer; one request at a time."""

    def __init__(self, folder, max_logprobs=20, least_tokens=0):
        self.model = reference.load(folder, torch.float32, clamp=False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_logprobs, self.least_tokens, self.lock = max_logprobs, least_tokens, threading.Lock()

    def name(self, token):
        return self.tokenizer.decode([token])

    def top(self, row, count, token):
        """The most likely tokens and the one that stands there."""
        values, ids = row.topk(count)
        best = dict(zip(ids.tolist(), values.tolist())) | {token: float(row[token])}
        named = {}
        for i, x in best.items():       # several tokens may have one text
            named[self.name(i)] = max(x, named.get(self.name(i), -9999.0))
        return named

    @torch.no_grad()
    def complete(self, request):
        prompt, new, count = request["prompt"], request.get("max_tokens", 16), request.get("logprobs")
        if count is not None and count > self.max_logprobs:
            raise Refused(f"Requested sample logprobs of {count}, which is greater than max allowed: {self.max_logprobs}")
        if new < self.least_tokens:
            raise Refused(f"max_tokens must be at least {self.least_tokens}, got {new}.")
        if request.get("temperature") != 0:
            raise Refused("this server takes the most likely token: temperature must be 0")
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        prompt_len = len(ids)
        with self.lock:
            rows = self.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
            for _ in range(new):
                ids.append(int(rows[-1].argmax()))
                if len(ids) < prompt_len + new:
                    rows = self.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        begin = 0 if request.get("echo") else prompt_len
        shown = range(begin, len(ids))
        logprobs = count is not None and {
            "tokens": [self.name(ids[t]) for t in shown],
            "token_logprobs": [float(rows[t - 1, ids[t]]) if t else None for t in shown],
            "top_logprobs": [self.top(rows[t - 1], count, ids[t]) if t else None for t in shown],
        }
        text = self.tokenizer.decode(ids[begin:])
        usage = {"prompt_tokens": prompt_len, "completion_tokens": len(ids) - prompt_len, "total_tokens": len(ids)}
        choice = {"index": 0, "text": text, "logprobs": logprobs or None, "finish_reason": "length"}
        return {"object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}


def serve(engine, name, port=0):
    """A server on localhost, not running yet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args):
            pass

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def error(self, status, text):
            self.answer(status, {"error": {"message": text, "type": "BadRequestError", "code": status}})

        def do_GET(self):
            if self.path != "/v1/models":
                return self.error(404, f"no {self.path}")
            self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/completions":
                return self.error(404, f"no {self.path}")
            if request.get("model") != name:
                return self.error(404, f"The model `{request.get('model')}` does not exist.")
            try:
                self.answer(200, engine.complete(request))
            except Refused as e:
                self.error(400, str(e))

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--name")
    p.add_argument("--max-logprobs", type=int, default=20)
    p.add_argument("--least-tokens", type=int, default=0)
    a = p.parse_args()
    server = serve(Engine(a.folder, a.max_logprobs, a.least_tokens), a.name or os.path.basename(os.path.normpath(a.folder)), a.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()
