"""The machine: what it is, whether it is quiet, and what its memory and arithmetic units reach."""
import json
import os
import platform
import subprocess
import time

QUIET = 0.8      # the share of a second that all processors together must be idle before a measurement


def ticks():
    """(idle, all) clock ticks of all processors since boot."""
    with open("/proc/stat") as f:
        t = [int(x) for x in f.readline().split()[1:9]]
    return t[3] + t[4], sum(t)


def busy_seconds():
    """Seconds of processor time used by everything since boot, time taken by the host included."""
    idle, total = ticks()
    return (total - idle) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(seconds=60):
    """Returns whether the machine was quiet for a second before the time was over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        idle, total = ticks()
        time.sleep(1)
        idle, total = (b - a for a, b in zip((idle, total), ticks()))
        if idle >= QUIET * total:
            return True
    return False


def describe():
    with open("/proc/cpuinfo") as f:
        cpu = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines() if ":" in line)
    cpu = {k.strip(): v.strip() for k, v in cpu.items()}
    units = [x for x in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if x in cpu.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = f"{cpu.get('model name', platform.machine())} (family {cpu.get('cpu family')}, model {cpu.get('model')})"
    return f"{name}, {os.cpu_count()} processors, {memory:.0f} GiB; {' '.join(units)}"


def roofline(program, threads):
    """The report of the `kernel_roofline` example: ({dtype: GFLOP/s}, GB/s), the best of each."""
    wait_until_quiet()
    report = json.loads(subprocess.run([program, "--threads", str(threads)], check=True, stdout=subprocess.PIPE).stdout)
    read = max((v for k, v in report.items() if "read" in k and isinstance(v, float)), default=None)
    gemm = {}
    for dtype in ("bf16", "f32"):
        speeds = [v for k, v in report.get(dtype, {}).items() if k.startswith("gemm")]
        speeds += [v for k, v in report.items() if k == f"{dtype}_gemm_gflops"]
        gemm[dtype] = max(speeds, default=None)
    return gemm, read, report


def work_per_token(c):
    """(weights that a decode step reads, FLOPs of a prefilled token): linear layers, experts used and, for decoding, the head."""
    hidden, inner = c["hidden_size"], c["mamba_num_heads"] * c["mamba_head_dim"]
    conv = inner + 2 * c["n_groups"] * c["ssm_state_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    sizes = {
        "linear_attention": hidden * (inner + conv + c["mamba_num_heads"]) + inner * hidden,
        "full_attention": 2 * hidden * (q + kv),
        "mlp": 2 * hidden * c["intermediate_size"],
        "moe": hidden * (c["n_routed_experts"] + 2 * c["num_experts_per_tok"] * c["moe_intermediate_size"]
                         + 2 * c["moe_shared_expert_intermediate_size"]),
    }
    layers = sum(sizes[x] for x in c["layers_block_type"])
    return layers + c["vocab_size"] * hidden, 2 * layers
