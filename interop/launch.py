"""Runs the calling script once per rank (torch.distributed environment variables, one thread each) and waits."""
import os
import socket
import subprocess
import sys
import time


def is_worker():
    return "LONGSHORE_INTEROP_WORKER" in os.environ


def run(nproc, timeout=1800):
    """Re-executes sys.argv as nproc workers. Returns the exit status: 0 only if every worker returned 0."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    procs = []
    for r in range(nproc):
        env = dict(os.environ, LONGSHORE_INTEROP_WORKER="1", RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(nproc),
                   MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore",
                   CUDA_DEVICE_MAX_CONNECTIONS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
        procs.append(subprocess.Popen([sys.executable, *sys.argv], env=env))
    deadline, failed = time.time() + timeout, None
    while any(p.poll() is None for p in procs):
        bad = [p.returncode for p in procs if p.returncode not in (None, 0)]
        if bad and failed is None:
            failed, deadline = bad[0], min(deadline, time.time() + 10)      # let the others report, then stop them
        if time.time() > deadline:
            for p in procs:
                if p.poll() is None:
                    p.kill()
            break
        time.sleep(0.05)
    codes = [p.wait() for p in procs]
    return next((1 for c in codes if c), 0)
