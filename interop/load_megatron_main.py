#!/usr/bin/env python3
"""Loads a torch_dist checkpoint with Megatron-LM itself: the way of pretrain_hybrid.py and convert_model.py, on CPU.

    load_megatron_main.py CKPT --hf HF_DIR --megatron-lm DIR [--spec te|local] [--remap] [--tp N] [--pp N] [--ep N] [--etp N]
                          [--strict MODE] [--wrap] [--verbose]

DIR is a checkout of Megatron-LM whose hybrid models have MTP (2026). CKPT is the root with latest_checkpointed_iteration.txt.
One process per rank (gloo, CPU) parses a command line that names no size of the model but --use-checkpoint-args, builds the
model from what it got, and calls megatron.training.checkpointing.load_checkpoint. Checked are

(a) the checkpoint is taken for a hybrid one, and without its stored pattern it would not be; strict loading, no fallback;
(b) every argument that Megatron takes from the checkpoint has the value of HF_DIR/config.json, none is missing, and so has the
    configuration of the model. NOTE lines: stored arguments that Megatron does not read although its own value is another one;
(c) the keys and extra states that the model asks for, MTP included, are exactly those of the file (with --strict raise_all,
    the default), and every parameter and buffer of every rank equals the values that mapping.py computes from HF_DIR.

--remap: local spec with the norms renamed to the TE names. --wrap: Float16Module around the model, as in training.
Exit status 0 and a line `OK: N parameters equal`, or 1 and the list of mismatches.
"""
import argparse
import contextlib
import os
import re
import sys

import launch
from load_megatron import checkpoint_dir, covered, lossy

# Read by Megatron, and without meaning for a Nemotron-H, or (the tokenizer's folder) unknown to a checkpoint.
NOT_OURS = {"rotary_base", "rotary_percent", "rotary_interleaved", "mtp_hybrid_override_pattern", "moe_single_grouped_weight",
            "moe_single_grouped_bias", "heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json",
            "tiktoken_pattern", "tokenizer_model"}
# Stored for a run of the same kind, for older readers, or derived from other arguments: no NOTE where the run has another value.
NO_NOTE = {"tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size", "world_size",
           "expert_tensor_parallel_size", "data_parallel_size", "no_save_optim", "no_save_rng", "ckpt_fully_parallel_save",
           "norm_epsilon", "hybrid_override_pattern", "is_hybrid_model", "export_model_type", "transformer_impl",
           "vocab_size", "make_vocab_size_divisible_by"}


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("ckpt")
    ap.add_argument("--hf", required=True)
    ap.add_argument("--megatron-lm", required=True)
    ap.add_argument("--spec", choices=("te", "local"), default="te")
    ap.add_argument("--remap", action="store_true")
    ap.add_argument("--tp", type=int, default=1)
    ap.add_argument("--pp", type=int, default=1)
    ap.add_argument("--ep", type=int, default=1)
    ap.add_argument("--etp", type=int, default=None)
    ap.add_argument("--strict", default="raise_all")
    ap.add_argument("--wrap", action="store_true")
    ap.add_argument("--verbose", action="store_true", help="show what Megatron prints")
    return ap.parse_args()


def import_megatron(folder):
    """megatron from the checkout in place of the installed one; what main needs beyond megatron_cpu.py to run on CPU."""
    import importlib
    import types
    import typing
    import typing_extensions
    os.environ.setdefault("NO_VCS_VERSION", "1")        # megatron.core would run git
    if not hasattr(typing, "override"):                 # main wants Python 3.12
        typing.override = typing_extensions.override
    sys.path.insert(0, folder)
    import megatron_cpu as M
    import megatron.core
    if not os.path.abspath(megatron.core.__file__).startswith(os.path.abspath(folder) + os.sep):
        raise RuntimeError(f"megatron.core comes from {megatron.core.__file__}")
    import torch
    from torch.overrides import TorchFunctionMode

    class OnCpu(TorchFunctionMode):                     # torch.tensor(..., device="cuda")
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return func(*args, **kwargs)

    if not torch.cuda.is_available():
        torch.cuda.get_device_capability = lambda *a, **k: (9, 0)       # validate_args asks what the GPU can do
        torch.cuda.get_device_properties = lambda *a, **k: types.SimpleNamespace(major=9, minor=0)
        OnCpu().__enter__()
    for name in ("arguments", "checkpointing", "global_vars", "argument_utils"):
        importlib.import_module("megatron.training." + name)
    return M


def stored_shapes(ckpt):
    """Keys of the file; shapes of the tensors, None for objects."""
    from torch.distributed.checkpoint import FileSystemReader
    return {k: getattr(v, "size", None) for k, v in FileSystemReader(ckpt).read_metadata().state_dict_metadata.items()}


def command_line(a, c, root):
    """What a user has to say beside --use-checkpoint-args: how to run, and what load_args_from_checkpoint does not read."""
    out = ["--load", root, "--use-checkpoint-args", "--bf16", "--micro-batch-size", 1, "--tensor-model-parallel-size", a.tp,
           "--pipeline-model-parallel-size", a.pp, "--expert-model-parallel-size", a.ep, "--tokenizer-type", "NullTokenizer",
           "--use-cpu-initialization", "--distributed-backend", "gloo", "--no-gradient-accumulation-fusion",
           "--dist-ckpt-strictness", a.strict, "--exit-on-missing-checkpoint", "--norm-epsilon", c["layer_norm_epsilon"]]
    if a.etp:
        out += ["--expert-tensor-parallel-size", a.etp]
    n = c["_layers"]
    if n % a.pp:
        out += ["--decoder-first-pipeline-num-layers", n - (a.pp - 1) * (n // a.pp)]
    if c["_experts"]:
        out += ["--moe-router-dtype", "fp32", "--moe-token-dispatcher-type", "alltoall"]
        out += ["--sequence-parallel"] * (a.tp > 1)
        if c.get("n_group", 1) > 1:
            out += ["--moe-router-num-groups", c["n_group"], "--moe-router-group-topk", c["topk_group"]]
    if a.spec == "local":
        out += ["--export-model-type", "HybridModel"] + ["--export-te-mcore-model"] * a.remap
    return [str(x) for x in out]


def expected_arguments(c, a, blocks, rows):
    """What load_args_from_checkpoint must find. rows: of the stored vocabulary."""
    from matrix import stored_arguments
    plain = {k: v for k, v in c.items() if not k.startswith("_")}
    plain.setdefault("head_dim", c["_head_dim"])
    want = stored_arguments(plain)
    depth = c.get("num_nextn_predict_layers") or 0
    want["hybrid_layer_pattern"] = c["_pattern"] + ("/" + c["_mtp_pattern"]) * depth
    want.update(mtp_use_repeated_layer=blocks < depth, padded_vocab_size=rows, seq_length=min(8192, c["max_position_embeddings"]),
                use_rotary_position_embeddings=False, apply_layernorm_1p=False, apply_query_key_layer_scaling=False,
                attention_dropout=0.0, hidden_dropout=0.0, gdp_num_householder=3, tokenizer_type="HuggingFaceTokenizer",
                moe_layer_freq=1, moe_router_pre_softmax=False, moe_grouped_gemm=a.spec == "te",
                spec=["megatron.core.models.mamba.mamba_layer_specs", "mamba_stack_spec"])
    return want


def expected_config(c, a, blocks):
    """Fields of the TransformerConfig."""
    depth = c.get("num_nextn_predict_layers") or 0
    want = dict(num_layers=c["_layers"], hidden_size=c["hidden_size"], num_attention_heads=c["num_attention_heads"],
                num_query_groups=c["num_key_value_heads"], kv_channels=c["_head_dim"], ffn_hidden_size=c["intermediate_size"],
                layernorm_epsilon=c["layer_norm_epsilon"], normalization="RMSNorm", add_bias_linear=False, add_qkv_bias=False,
                gated_linear_unit=False, is_hybrid_model=True, layernorm_zero_centered_gamma=False, hidden_dropout=0.0,
                attention_dropout=0.0, mamba_num_heads=c["mamba_num_heads"], mamba_head_dim=c["mamba_head_dim"],
                mamba_num_groups=c["n_groups"], mamba_state_dim=c["ssm_state_size"], mtp_num_layers=depth or None,
                num_moe_experts=c["_experts"], qk_layernorm=False, apply_query_key_layer_scaling=False)
    if depth:
        want["mtp_use_repeated_layer"] = blocks < depth
    if c["_experts"]:
        want.update(moe_ffn_hidden_size=c["moe_intermediate_size"], moe_router_topk=c["num_experts_per_tok"],
                    moe_router_topk_scaling_factor=c["routed_scaling_factor"], moe_router_score_function="sigmoid",
                    moe_shared_expert_intermediate_size=c["moe_shared_expert_intermediate_size"], moe_router_enable_expert_bias=True,
                    moe_latent_size=c.get("moe_latent_size"), moe_layer_freq=1, moe_router_pre_softmax=False,
                    moe_grouped_gemm=a.spec == "te")
    return want


def arguments(a, c, blocks, root, bad, notes):
    """Parses the command line as Megatron does; what it says while it reads the checkpoint is checked against the config."""
    from megatron.core.dist_checkpointing import load_common_state_dict
    from megatron.post_training.arguments import add_modelopt_args
    from megatron.training import arguments as A, checkpointing as C, global_vars
    said, say = [], C.print_rank_0
    C.print_rank_0 = lambda *x, **k: (said.append(str(x[0])), say(*x, **k))
    read, load_args = {}, C.load_args_from_checkpoint

    def watched(args, *x, **k):
        out = load_args(args, *x, **k)
        read.update(vars(args))         # as it was read; validation derives some values anew
        return out

    C.load_args_from_checkpoint = watched
    old, sys.argv = sys.argv, ["pretrain_hybrid.py", *command_line(a, c, root)]
    try:
        with contextlib.ExitStack() as stack:
            real = A.set_global_variables
            A.set_global_variables = lambda args: real(args, build_tokenizer=False)
            stack.callback(setattr, A, "set_global_variables", real)
            args = A.parse_and_validate_args(extra_args_provider=add_modelopt_args)
    finally:
        sys.argv, C.print_rank_0, C.load_args_from_checkpoint = old, say, load_args
    found = {m[1] for m in (re.match(r"Setting (\w+) to .* from checkpoint$", x, re.S) for x in said) if m}
    absent = {m[1] for m in (re.match(r"Checkpoint did not provide arguments (\w+)$", x) for x in said) if m}
    if not found:
        bad.append("(b) no argument came from the checkpoint: " + "; ".join(said))
    want = expected_arguments(c, a, blocks, stored_shapes(checkpoint_dir(root))["embedding.word_embeddings.weight"][0])
    stored = vars(load_common_state_dict(checkpoint_dir(root))["args"])
    for name in sorted(found):
        if name not in want:
            bad.append(f"(b) --use-checkpoint-args reads {name}, for which this script knows no value")
        elif (read[name], getattr(args, name)) != (want[name], want[name]):
            found_as = f"{read[name]!r}, after validation {getattr(args, name)!r}" if read[name] != getattr(args, name) else repr(read[name])
            bad.append(f"(b) --use-checkpoint-args: {name} is {found_as}, expected {want[name]!r}")
    empty = {k for k, v in want.items() if v is None} | ({"mtp_num_layers"} if not c.get("num_nextn_predict_layers") else set())
    if not c["_experts"]:
        empty |= {"num_experts"} | {x for x in absent if x.startswith("moe_")}
    if a.spec == "local":
        empty.add("spec")                   # chosen by the builder
    bad += [f"(b) --use-checkpoint-args: the checkpoint has no {name}" for name in sorted(absent - NOT_OURS - empty)]
    for name in sorted(set(stored) - found - NO_NOTE):
        if not hasattr(args, name):
            notes.append(f"stored argument unknown to this Megatron: {name} = {stored[name]!r}")
        elif stored[name] is not None and getattr(args, name) != stored[name]:
            notes.append(f"stored argument not read by this Megatron: {name} = {stored[name]!r}, the run has {getattr(args, name)!r}")
    return args, sorted(found)


def build(a, args):
    """A bare model, or one in Float16Module, from the arguments alone: as pretrain_hybrid.py or convert_model.py build it."""
    from megatron.core import mpu
    first, last = mpu.is_pipeline_first_stage(), mpu.is_pipeline_last_stage()
    if a.spec == "local":
        from megatron.post_training.model_builder import modelopt_gpt_hybrid_builder
        model = modelopt_gpt_hybrid_builder(args, first, last)
    else:
        from megatron.core.process_groups_config import ProcessGroupCollection
        from megatron.training.argument_utils import hybrid_config_from_args
        config = hybrid_config_from_args(args)
        groups = ProcessGroupCollection.use_mpu_process_groups()
        model = config.get_builder_cls()(config).build_model(groups, first, last)
    if a.wrap:
        from megatron.core.transformer.module import Float16Module
        return model, Float16Module(model.config, model)
    return model, model


def check_config(a, c, model, mp, bad):
    from megatron.core.activations import squared_relu
    for name, value in expected_config(c, a, mp.mtp_depth).items():
        found = getattr(model.config, name)
        if name == "moe_router_topk_scaling_factor" and found is None:
            found = 1.0
        if found != value:
            bad.append(f"(b) TransformerConfig.{name} is {found!r}, expected {value!r}")
    if model.config.activation_func is not squared_relu:
        bad.append(f"(b) TransformerConfig.activation_func is {model.config.activation_func}")
    want = (c["_mtp_pattern"], c["num_nextn_predict_layers"]) if c.get("num_nextn_predict_layers") else (None, 0)
    if (model.mtp_pattern, model.mtp_num_depths) != want:
        bad.append(f"(b) HybridModel has MTP {(model.mtp_pattern, model.mtp_num_depths)}, expected {want}")
    if model.share_embeddings_and_output_weights != bool(c.get("tie_word_embeddings")):
        bad.append("(b) HybridModel shares its embeddings otherwise than the config says")


def load(args, model, outer, ckpt, bad):
    """(a): load_checkpoint, watched."""
    import types
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedBase
    from megatron.training import checkpointing as C
    setup, inner, load_state = C._maybe_setup_gpt_to_hybrid_load, C.dist_checkpointing.load, outer.load_state_dict
    taken, loads = [], []

    def watched(request, *x, **k):
        other = [v.key for name, part in request.items() if name != "model" and isinstance(part, dict)
                 for v in nested_values(part) if isinstance(v, ShardedBase)]
        bad.extend(f"(a) load_checkpoint asks for {key}, which is no part of the model" for key in other)
        return inner(request, *x, **k)

    def decided(run, stored, models):
        taken.append((stored, setup(run, stored, models)))
        return taken[-1][1]

    C._maybe_setup_gpt_to_hybrid_load, C.dist_checkpointing.load = decided, watched
    outer.load_state_dict = lambda sd, strict=True: (loads.append(strict), load_state(sd, strict=strict))[1]
    iteration, _ = C.load_checkpoint([outer], None, None)
    C._maybe_setup_gpt_to_hybrid_load, C.dist_checkpointing.load, outer.load_state_dict = setup, inner, load_state
    if [r for _, r in taken] != [(None, False)]:
        bad.append(f"(a) load_checkpoint took the checkpoint for a GPT model: {taken}")
    if loads != [True]:
        bad.append(f"(a) load_checkpoint fell back to loading that is not strict: strict was {loads}")
    stored = types.SimpleNamespace(**{k: v for k, v in vars(taken[0][0]).items() if not k.startswith("hybrid_")})
    try:        # the check above can fail: without the pattern it is a GPT checkpoint
        if setup(args, stored, [model]) == (None, False):
            bad.append("(a) the stored pattern makes no difference")
    except RuntimeError:
        pass
    name = os.path.basename(ckpt)
    if iteration != (0 if name == "release" else int(name.split("_")[1])):
        bad.append(f"(a) load_checkpoint returned iteration {iteration} for {name}")


def compare(a, M, mp, model, ckpt, bad):
    """(c): values and keys. Returns the number of equal shards, the requested keys and what the shards covered."""
    import torch
    import torch.distributed as dist
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    rank, n_ok, seen = dist.get_rank(), 0, set()
    stored = M.dc.load_content_metadata(ckpt) or {}
    leaves = M.flat_sharded(model, {k: v for k, v in stored.items() if v is not None})
    shards = [s for s in leaves if isinstance(s, ShardedTensor)]
    for sh in shards:
        where = f"(c) rank {rank}: {sh.key} offset {list(sh.global_offset)}"
        try:
            want = mp.local(sh)
        except (KeyError, ValueError) as e:
            bad.append(f"{where}: no expected value ({e})")
            continue
        key, expert, _, _ = mp.resolve(sh.key, sh.global_offset)
        seen.add((key, expert))
        got, want = sh.data.float(), want.to(sh.dtype).float()
        if torch.equal(got, want):
            n_ok += 1
        else:
            bad.append(f"{where}: {int((got != want).sum())} of {got.numel()} values differ")
    bad += [f"(c) rank {rank}: {n} was not compared" for n in covered(model, shards)]
    return n_ok, {s.key if isinstance(s, ShardedTensor) else s.unique_key for s in leaves}, seen


def worker(a):
    quiet = contextlib.ExitStack()
    if not a.verbose:
        out = os.dup(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        quiet.callback(lambda: (sys.stdout.flush(), os.dup2(out, 1)))
    try:
        with quiet:
            M = import_megatron(a.megatron_lm)
            bad, notes, lines = check(a, M)
    except BaseException as e:
        return failed(e)
    import torch.distributed as dist
    if dist.get_rank() == 0:
        for line in notes:
            print("NOTE", line)
        for line in bad[:40]:
            print("MISMATCH", line)
        if len(bad) > 40:
            print(f"... and {len(bad) - 40} more")
        print(lines, flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 1 if bad else 0


def check(a, M):
    import torch
    import torch.distributed as dist
    from mapping import Mapping
    rank, bad, notes = int(os.environ["RANK"]), [], []
    root = os.path.abspath(a.ckpt)
    root = os.path.dirname(root) if os.path.exists(os.path.join(root, "metadata.json")) else root
    ckpt = checkpoint_dir(root)
    mp = Mapping(a.hf, fused=a.spec == "te" or a.remap)
    if rank == 0:
        bad += [f"(c) source tensor not covered by the mapping: {k}" for k in mp.unused]
    args, found = arguments(a, mp.c, mp.mtp_depth, root, bad, notes)      # before there are process groups, as in a run
    M.init(a.tp, a.pp, a.ep, a.etp)
    model, outer = build(a, args)
    check_config(a, mp.c, model, mp, bad)
    with torch.no_grad():
        for t in list(model.parameters()) + list(model.buffers()):
            if t.is_floating_point():
                t.fill_(-77.0)          # anything left unread shows
    load(args, model, outer, ckpt, bad)
    n_ok, asked, seen = compare(a, M, mp, model, ckpt, bad)
    if rank == 0:
        bad += ["(c) " + x for x in lossy(ckpt, mp)]
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (bad, n_ok, asked, seen))
    if rank:
        return bad, [], ""
    bad = [x for part, _, _, _ in everything for x in part]
    bad = list(dict.fromkeys(bad))
    asked = set().union(*(x for _, _, x, _ in everything))
    seen = set().union(*(x for _, _, _, x in everything))
    have = set(stored_shapes(ckpt))
    bad += [f"(c) asked for, not stored: {k}" for k in sorted(asked - have)]
    surplus = sorted(have - asked)
    if a.strict.endswith("_all"):
        bad += [f"(c) stored, not asked for: {k}" for k in surplus]
    elif surplus:
        notes.append(f"stored, not asked for: {', '.join(surplus[:4])}{' ...' if len(surplus) > 4 else ''} ({len(surplus)})")
    for key, (_, n, _) in mp.entries.items():
        bad += [f"(c) no rank holds {key}" + (f" expert {e}" if n else "") for e in (range(n) if n else (None,)) if (key, e) not in seen]
    total = sum(n for _, n, _, _ in everything)
    mtp = sum(k.startswith("mtp.") for k in asked)
    what = f"{total} parameters equal, {len(asked)} keys asked for ({mtp} of MTP), {len(have)} stored, {len(found)} arguments read"
    layout = f"Megatron-LM {sys.modules['megatron.core'].__version__}, spec {a.spec}{'+remap' * a.remap} tp{a.tp} pp{a.pp} ep{a.ep}, {a.strict}"
    return bad, notes, f"FAIL: {len(bad)} mismatches, {what} ({layout})" if bad else f"OK: {what} ({layout})"


def failed(e):
    import traceback
    tb = traceback.extract_tb(e.__traceback__)[-1]
    cause = next(iter(getattr(e, "failures", {}).values()), None)
    e = cause[0] if isinstance(cause, tuple) else e         # torch wraps what the planner or a reader raised
    print(f"FAIL: rank {os.environ['RANK']}: {type(e).__name__}: {str(e)[:600]} ({os.path.basename(tb.filename)}:{tb.lineno})", flush=True)
    if os.environ.get("DEBUG"):
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def main():
    a = parse()
    if launch.is_worker():
        return worker(a)
    import math
    return launch.run(a.pp * math.lcm(a.tp, a.ep * (a.etp or a.tp)))


if __name__ == "__main__":
    sys.exit(main())
