"""A process that imports megatron-core once and forks a rank per request, because importing costs 5 s and a tiny load 1 s.

Started by run.py with the environment's python. It reads one JSON object per line from standard input,
    {"script": "load_megatron", "argv": [...], "ranks": 4}
runs that script's worker in forked ranks and answers with one line,
    {"status": 0, "output": "...", "seconds": 1.2}
Scripts: load_megatron, save_megatron (one process per rank), make_hf, common_state (one process).
"""
import json
import os
import signal
import socket
import sys
import tempfile
import time

os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1", TOKENIZERS_PARALLELISM="false",
                  CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore", HF_HUB_OFFLINE="1")
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
TIMEOUT = 900       # seconds for one request


def preload():
    import megatron_cpu                                                                         # noqa: F401
    from megatron.core.models.mamba import mamba_layer_specs, mamba_model                       # noqa: F401
    from megatron.core.post_training.modelopt.mamba import model_specs                          # noqa: F401
    from transformers import AutoModelForCausalLM                                               # noqa: F401
    import common_state, load_megatron, make_hf, mapping, save_megatron, tiny_models            # noqa: F401


def rank_main(request, rank, port, log):
    """Runs in the forked rank; never returns."""
    status = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request["ranks"]:
            os.environ.update(LONGSHORE_INTEROP_WORKER="1", RANK=str(rank), LOCAL_RANK=str(rank),
                              WORLD_SIZE=str(request["ranks"]), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        script = request["script"]
        sys.argv = [script + ".py", *request["argv"]]
        status = __import__(script).main() or 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException as e:
        print(f"FAIL: {type(e).__name__}: {e}", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def answer(request):
    start = time.time()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryFile("w+b", buffering=0) as log:
        ranks = []
        for rank in range(max(1, request["ranks"])):
            pid = os.fork()
            if pid == 0:
                rank_main(request, rank, port, log.fileno())
            ranks.append(pid)
        running, failed, deadline = set(ranks), 0, start + TIMEOUT
        while running:
            for pid in list(running):
                done, code = os.waitpid(pid, os.WNOHANG)
                if done:
                    running.discard(pid)
                    if code and not failed:
                        failed, deadline = 1, min(deadline, time.time() + 10)      # let the others report, then stop them
            if running and time.time() > deadline:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                failed = 1
            time.sleep(0.01)
        log.seek(0)
        return {"status": failed, "output": log.read().decode(errors="replace"), "seconds": time.time() - start}


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)               # nothing but replies on the channel to run.py
    preload()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
