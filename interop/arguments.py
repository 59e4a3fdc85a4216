#!/usr/bin/env python3
"""`longshore args` and `longshore fit` against Megatron-LM's own parser and models, and Megatron-Bridge's own loader.

    arguments.py --megatron-lm DIR [--bridge DIR] [--longshore PATH] [--only published|ranks|bridge]

DIR are checkouts of August 2026 or newer. Run it with the python that setup.sh prints. Checked are

published  for every Nemotron model that examples/post_training/modelopt/conf/nvidia has a file for: the real arguments.sh sources
           that file and Longshore's, the real parser reads and validates both, and every attribute of the two results is equal,
           but for those in LEFT_OUT (how a run trains) and DIFFERS (listed with the reason in docs/commands/args.md);
ranks      small models are built by Megatron on CPU from Longshore's arguments, one process per rank, in Float16Module as a run
           has them; the bytes of every rank's parameters and persistent buffers equal what `longshore fit --json` says;
bridge     Longshore's run_config.yaml, instantiated by Bridge as its load_model_config does, equals, field by field, what its
           NemotronHBridge makes of the config.json, but for BRIDGE_DIFFERS.

Exit status 0 and `N passed`, or 1 and the list of what differs.
"""
import argparse
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
FACTS = os.path.join(ROOT, "crates/longshore-convert/tests/arguments/published.json")

# What the published files set and a checkpoint does not know: training, logging, kernels, and how a run is started.
LEFT_OUT = {"trust_remote_code", "save_interval", "enable_experimental", "moe_permute_fusion", "use_fused_weighted_squared_relu",
            "cross_entropy_loss_fusion", "cross_entropy_fusion_impl", "moe_aux_loss_coeff", "moe_router_load_balancing_type",
            "attention_backend", "use_gloo_process_groups", "deprecated_use_mcore_models", "init_method_std",
            "masked_softmax_fusion", "apply_rope_fusion", "exit_duration_in_mins", "tiktoken_pattern", "is_hybrid_model",
            "make_vocab_size_divisible_by", "tokenizer_model"}
# attribute: why Longshore says something else than some of the files
DIFFERS = {
    "attention_dropout": "0 in every config.json; only Super's file does not leave Megatron's default",
    "hidden_dropout": "as attention_dropout",
    "max_position_embeddings": "that of config.json",
    "seq_length": "min(8192, max_position_embeddings)",
    "encoder_seq_length": "as seq_length",
    "padded_vocab_size": "said by one file only; the others get the same from the tokenizer",
    "mamba_num_heads": "56B's file leaves it to Megatron, which takes 2 * hidden_size / mamba_head_dim: the same",
    "hybrid_override_pattern": "Ultra's file says it, and Megatron copies it into hybrid_layer_pattern",
    "position_embedding_type": "the 4B and 8B files say rotary; no implementation of Nemotron-H rotates",
    "use_rotary_position_embeddings": "as position_embedding_type",
    "add_position_embedding": "as position_embedding_type",
    "rotary_percent": "as position_embedding_type",
    "rotary_base": "as position_embedding_type",
}
# field: why. Without these Longshore's fields are Bridge's.
BRIDGE_DIFFERS = {
    "init_method_std": "initializer_range: only training reads it",
    "moe_shared_expert_overlap": "speed only",
}
# Of models without experts: transformers' defaults of fields that their config.json does not have.
BRIDGE_DIFFERS_DENSE = {"num_moe_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_router_topk",
                        "moe_router_topk_scaling_factor", "moe_router_num_groups", "moe_router_group_topk"}
ON_CPU = ["--use-cpu-initialization", "--distributed-backend", "gloo", "--no-gradient-accumulation-fusion"]


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--megatron-lm", required=True)
    ap.add_argument("--bridge")
    ap.add_argument("--longshore", default=os.path.join(ROOT, "target/release/longshore"))
    ap.add_argument("--only", choices=("published", "ranks", "bridge"))
    return ap.parse_args()


# ---- models

def published():
    """(name, config.json, the facts) of every published file."""
    facts = json.load(open(FACTS))
    for model in facts["models"]:
        yield model["name"], {**facts["common"], **model["config"], "hybrid_override_pattern": model["pattern"]}


def small():
    """(name, config.json, layouts): the bundled model, changed."""
    bundled = json.load(open(os.path.join(ROOT, "models/nemotron-h-10m/config.json")))
    # Four of everything that tensor parallelism divides, but for the key heads.
    bundled.update(n_groups=4)
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}

    def with_(pattern, **changes):
        return {**bundled, "layers_block_type": [kinds[x] for x in pattern], "num_hidden_layers": len(pattern), **changes}

    mtp = dict(num_nextn_predict_layers=1, mtp_layers_block_type=["full_attention", "moe"])
    dense, every = [(1, 1, 1, 1), (2, 1, 1, 1), (4, 2, 1, 1)], [(1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 4, 1), (2, 2, 2, 1), (4, 1, 2, 2)]
    yield "dense", with_("M*-M*-"), dense
    yield "dense, tied", with_("M*-M*-", tie_word_embeddings=True), dense
    yield "experts", with_("ME*-MEM*E-ME"), every
    yield "latent, MTP", with_("ME*EM-", moe_latent_size=64, **mtp), every
    yield "tied, MTP", with_("ME*EM-", tie_word_embeddings=True, **mtp), every
    yield "two MTP blocks", with_("ME*E", **{**mtp, "num_nextn_predict_layers": 2, "mtp_use_repeated_layer": False}), [(2, 2, 2, 1)]


@contextlib.contextmanager
def folder(config):
    with tempfile.TemporaryDirectory() as d:
        json.dump(config, open(os.path.join(d, "config.json"), "w"))
        yield d


def longshore(a, *argv):
    run = subprocess.run([a.longshore, *map(str, argv)], text=True, capture_output=True)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"longshore {' '.join(map(str, argv))}: {run.stderr}")
    return run.stdout


# ---- Megatron

def alone(run, world=1):
    """run() in forked processes with the variables of ranks, since Megatron keeps its state in globals: their results."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = []
    for rank in range(world):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                said = {"result": run()}
            except BaseException:
                said = {"error": traceback.format_exc()[-1500:]}
            with os.fdopen(write, "w") as out:
                out.write(json.dumps(said))
            os._exit(0)
        os.close(write)
        ranks.append((pid, read))
    said = []
    for pid, read in ranks:
        with os.fdopen(read) as text:
            said.append(json.loads(text.read() or '{"error": "it died"}'))
        os.waitpid(pid, 0)
    errors = [x["error"] for x in said if "error" in x]
    if errors:
        raise RuntimeError(errors[0])
    return [x["result"] for x in said]


def namespace(argv):
    """What Megatron makes of a command line, validated."""
    from megatron.post_training.arguments import add_modelopt_args
    from megatron.training import arguments as A
    sys.argv, real = ["pretrain_hybrid.py", *argv], A.set_global_variables
    A.set_global_variables = lambda args: real(args, build_tokenizer=False)
    return A.parse_and_validate_args(extra_args_provider=add_modelopt_args)


def sourced(a, name, text=None):
    """The words of MODEL_ARGS and the tokenizer, after the real arguments.sh sourced the file; `text` replaces it."""
    scripts = os.path.join(os.path.abspath(a.megatron_lm), "examples/post_training/modelopt")
    with tempfile.TemporaryDirectory() as d:
        env = {"PATH": os.environ["PATH"], "SCRIPT_DIR": scripts, "MLM_SKIP_INSTALL": "1", "CONF": os.path.join(scripts, "conf/arguments.sh")}
        if text is not None:
            where = os.path.join(d, "conf/model/nvidia")
            os.makedirs(where)
            open(os.path.join(where, name + ".sh"), "w").write(text)
            env["SANDBOX_ROOT"] = d
        shell = 'source "$CONF" "$1" >/dev/null; printf "%s\\n" "${TOKENIZER_MODEL}" ${MODEL_ARGS}'
        run = subprocess.run(["bash", "-c", shell, "bash", "nvidia/" + name], env=env, text=True, capture_output=True, cwd=d)
    if run.returncode:
        raise RuntimeError(f"arguments.sh and {name}: {run.stderr}")
    tokenizer, *words = run.stdout.splitlines()
    return tokenizer, words


def check_published(a):
    for name, config in published():
        with folder(config) as d:
            bad = []
            tokenizer, ours = sourced(a, name, longshore(a, "args", d, "-q"))
            if tokenizer != d:
                bad.append(f"TOKENIZER_MODEL is {tokenizer}")
            _, theirs = sourced(a, name)
            one = ["--tensor-model-parallel-size", "1"]         # one file says 8
            ours, theirs = (alone(lambda w=words: {k: str(v) for k, v in vars(namespace(w + one)).items()})[0] for words in (ours, theirs))
            differ = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
            bad += [f"{k}: {theirs.get(k)} published, {ours.get(k)}" for k in sorted(differ - LEFT_OUT - DIFFERS.keys())]
        listed = ", ".join(f"{k} {theirs.get(k)} -> {ours.get(k)}" for k in sorted(differ & DIFFERS.keys()))
        yield f"published {name}: {len(ours)} attributes; listed: {listed}", bad


def stage_and_bytes(a, path, tp, pp, ep, etp):
    """Of one rank: its pipeline stage, and the bytes of what it would save."""
    import types
    import megatron_cpu
    argv = longshore(a, "args", path, "--form", "args", "--mtp", "-q").replace("'", "").split()
    argv += ["--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp), "--expert-model-parallel-size", str(ep),
             "--expert-tensor-parallel-size", str(etp), *ON_CPU] + ["--sequence-parallel"] * (tp > 1)
    args = namespace(argv)
    megatron_cpu.init(tp, pp, ep, etp)
    from load_megatron_main import build
    from megatron.core import mpu
    _, model = build(types.SimpleNamespace(spec="te", wrap=True), args)
    held = [t for t in model.state_dict(keep_vars=True).values() if hasattr(t, "nbytes")]
    return mpu.get_pipeline_model_parallel_rank(), sum({t.data_ptr(): t.nbytes for t in held}.values())


def check_ranks(a):
    for name, config, layouts in small():
        for layout in layouts:
            tp, pp, ep, etp = layout
            with folder(config) as d:
                world, bad = pp * math.lcm(tp, ep * etp), []
                sizes = ["--tp", tp, "--pp", pp, "--ep", ep, "--etp", etp]
                stages = json.loads(longshore(a, "fit", d, "--gpus", f"{world}x80G", *sizes, "--json", "-q"))["layouts"][0]["bytes_per_stage"]
                try:
                    for rank, (stage, found) in enumerate(alone(lambda: stage_and_bytes(a, d, *layout), world)):
                        if found != stages[stage]:
                            bad.append(f"rank {rank} of stage {stage} holds {found} bytes")
                except RuntimeError as e:
                    bad.append(str(e))
            yield f"ranks {name} tp{tp} pp{pp} ep{ep} etp{etp}: {stages} bytes", bad


# ---- Megatron-Bridge

def both_providers(path):
    """What Bridge makes of the run_config.yaml in a folder, and of the config.json beside it."""
    import dataclasses
    import types
    import yaml
    from megatron.bridge.models.nemotronh.nemotron_h_bridge import NemotronHBridge
    from megatron.bridge.utils.instantiate_utils import instantiate
    from transformers import AutoConfig
    theirs = NemotronHBridge().provider_bridge(types.SimpleNamespace(config=AutoConfig.from_pretrained(path)))
    ours = instantiate(yaml.safe_load(open(os.path.join(path, "run_config.yaml")))["model"])
    value = lambda x: x if isinstance(x, (bool, int, float, str, type(None))) else str(x)
    fields = {f.name: (value(getattr(ours, f.name)), value(getattr(theirs, f.name))) for f in dataclasses.fields(theirs)}
    return {"type": type(ours).__name__, "fields": fields}


def check_bridge(a):
    models = [(f"published {n}", c) for n, c in published()] + [(n, c) for n, c, _ in small()]
    for name, config in models:
        with folder(config) as d:
            open(os.path.join(d, "run_config.yaml"), "w").write(longshore(a, "args", d, "--form", "run-config", "-q"))
            try:
                result = alone(lambda: both_providers(d))[0]
            except RuntimeError as e:
                yield f"bridge {name}", [str(e)]
                continue
        bad = [] if result["type"] == "HybridModelProvider" else [f"it is a {result['type']}"]
        dense = "E" not in config.get("hybrid_override_pattern", "") and "moe" not in config.get("layers_block_type", [])
        listed = BRIDGE_DIFFERS.keys() | (BRIDGE_DIFFERS_DENSE if dense else set())
        bad += [f"{k}: Bridge {theirs}, {ours}" for k, (ours, theirs) in result["fields"].items() if ours != theirs and k not in listed]
        yield f"bridge {name}: {len(result['fields'])} fields", bad


def main():
    a = parse()
    import logging
    logging.disable(logging.CRITICAL)
    if a.bridge:
        sys.path.insert(0, os.path.join(os.path.abspath(a.bridge), "src"))
    from load_megatron_main import import_megatron
    import_megatron(os.path.abspath(a.megatron_lm))
    import torch
    torch.set_num_threads(1)
    checks = {"published": check_published, "ranks": check_ranks}
    if a.bridge:
        import megatron.bridge.models.nemotronh.nemotron_h_bridge       # once, before processes are forked
        checks["bridge"] = check_bridge
    passed = failed = 0
    for name, check in checks.items():
        for line, bad in check(a) if a.only in (None, name) else ():
            passed, failed = passed + (not bad), failed + bool(bad)
            print("FAIL" if bad else "ok  ", line, flush=True)
            for what in bad:
                print("    ", what, flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
