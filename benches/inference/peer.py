"""What the two peers share: a job comes as one JSON line on stdin, the answer goes as one JSON line to stdout.

job:    {"prompt": [ids], "steps": n, "threads": n, "context": n}
First the model is loaded and run once (the whole prompt, two steps), then the peer prints `ready` and waits for a second line, so
that the caller can wait until the machine is quiet. Then it measures.
answer: {"name", "prefill_seconds", "step_seconds": [..], "tokens": [..], "cpu_seconds"}
Each step feeds the most probable token, and picking it belongs to the step's time. For comparisons a job may have "exact" (the most
precise settings), "forced" (the ids that the steps feed instead) and "logits" (where to write the logits after the prompt and after
every forced step: [1 + steps, vocabulary], f32).
"""
import json
import sys
import time

import numpy as np


def run(model, prompt, steps, forced=None):
    model.reset()
    times, rows = [time.perf_counter()], []
    row = model.forward(prompt)
    token = int(row.argmax())
    times.append(time.perf_counter())
    tokens = []
    for i in range(steps):
        if forced:
            rows.append(np.array(row, np.float32))
        tokens.append(forced[i] if forced else token)
        row = model.forward(tokens[-1:])
        token = int(row.argmax())
        times.append(time.perf_counter())
    rows.append(np.array(row, np.float32))
    return np.diff(times).tolist(), tokens, rows


def serve(load):
    answers = sys.stdout
    sys.stdout = sys.stderr
    job = json.loads(sys.stdin.readline())
    model = load(job)
    run(model, job["prompt"], 2)
    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    seconds, tokens, rows = run(model, job["prompt"], job["steps"], job.get("forced"))
    cpu = time.process_time() - cpu
    if job.get("logits"):
        np.save(job["logits"], np.stack(rows))
    if not all(np.isfinite(r).all() for r in rows):
        sys.exit("the logits are not finite")
    answer = dict(name=model.name, prefill_seconds=seconds[0], step_seconds=seconds[1:], tokens=tokens, cpu_seconds=cpu)
    print(json.dumps(answer), file=answers, flush=True)
