#!/usr/bin/env python3
"""Conversion and export beside `cp`, in alternating runs; medians.

    throughput.py SOURCE [--work DIR] [--rounds N] [--longshore PATH] [--threads N] [--reference PYTHON]

SOURCE is a Hugging Face folder of a few gigabytes (`interop/make_hf.py --config CONFIG --layers 2` writes one). Every run
begins with the source out of the page cache (posix_fadvise DONTNEED) and ends with the destination on disk (fsync of every
file). `cp` runs with --reflink=never. Prints seconds, the throughput as a share of cp's, and peak memory. --reference also
times interop/reference_convert.py, the reference importer with model build and save, with the Python of interop/setup.sh.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def files(folder):
    return [os.path.join(d, f) for d, _, names in os.walk(folder) for f in names]


def forget(folder):
    for path in files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def sync(folder):
    for path in files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def timed(source, out, command, synced):
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    forget(source)
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    if not synced:
        sync(out)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def compare(title, source, work, command, rounds):
    size = sum(os.path.getsize(f) for f in files(source))
    copy, ours = os.path.join(work, "cp"), os.path.join(work, "out")
    rows = {"cp": [], "longshore": []}
    peak = 0
    for _ in range(rounds):
        rows["cp"].append(timed(source, copy, ["cp", "-rL", "--reflink=never", source, copy], False)[:2])
        shutil.rmtree(copy)
        seconds, cpu, out = timed(source, ours, command(ours), True)
        rows["longshore"].append((seconds, cpu))
        peak = max(peak, json.loads(out)["peak_memory"])
    ratios = [c[0] / o[0] for c, o in zip(rows["cp"], rows["longshore"])]
    print(f"{title}: {size / 1e9:.2f} GB, {rounds} rounds")
    for name, runs in rows.items():
        wall = [r[0] for r in runs]
        print(f"  {name:10} wall median {statistics.median(wall):6.2f} s  (min {min(wall):.2f}, max {max(wall):.2f})  "
              f"cpu median {statistics.median(r[1] for r in runs):5.2f} s  {size / 1e9 / statistics.median(wall):.2f} GB/s")
    print(f"  throughput as a share of cp, pair by pair: median {statistics.median(ratios):.2f} "
          f"(min {min(ratios):.2f}, max {max(ratios):.2f});  peak memory {peak / 2**20:.0f} MiB", flush=True)
    return ours, statistics.median(r[0] for r in rows["longshore"]), peak


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("source")
    ap.add_argument("--work", default="throughput-work")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--longshore", default=os.path.join(HERE, "..", "target", "release", "longshore"))
    ap.add_argument("--threads", default="2")
    ap.add_argument("--reference")
    a = ap.parse_args()
    os.makedirs(a.work, exist_ok=True)
    tool = lambda verb, source: lambda out: [a.longshore, verb, source, out, "--threads", a.threads, "--json", "--quiet"]
    ours, convert, peak = compare("convert", a.source, a.work, tool("convert", a.source), a.rounds)
    kept = os.path.join(a.work, "torch_dist")
    shutil.rmtree(kept, ignore_errors=True)
    os.rename(ours, kept)
    compare("export", kept, a.work, tool("export", kept), a.rounds)
    if a.reference:
        out = os.path.join(a.work, "reference")
        script = os.path.join(HERE, "..", "interop", "reference_convert.py")
        seconds = []
        for _ in range(min(3, a.rounds)):
            wall, _, text = timed(a.source, out, [a.reference, "-W", "ignore", script, a.source, out], True)
            seconds.append(wall)
            print("  reference:", text.strip().splitlines()[-1], f"whole {wall:.1f} s", flush=True)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"  reference importer: median {statistics.median(seconds):.1f} s, {memory / 2**30:.2f} GiB; longshore is "
              f"{statistics.median(seconds) / convert:.1f} times faster in 1/{memory / peak:.0f} of the memory")
    shutil.rmtree(a.work)


if __name__ == "__main__":
    main()
