"""Quantizes Megatron models with NVIDIA ModelOpt, saves them, and restores quantized checkpoints; one process per rank.

    quantize_megatron.py save HF OUT --config NAME [--form FORM] [LAYOUT] [--export]
    quantize_megatron.py restore CKPT --hf HF --form FORM [LAYOUT] [--strict MODE] [--like OUT] [--right-replicas] [--lift-refusal]

LAYOUT: [--tp N] [--pp N] [--ep N] [--etp N]

FORM: `compute` (local modules, torch norms, local attention: the forward pass works), `compute-separate` (the same, norms
under their own names), `te`, `local`, `local-fused` (with the stand-ins of the Transformer Engine, by parameters only).

`save` writes OUT/release, latest_checkpointed_iteration.txt, quantizers.json, and, where the model computes,
logits.safetensors (before and after); with --export OUT/hf_export. Where it cannot compute, every activation
quantizer is calibrated with values made up for it, so that keys and extra states are those of a calibrated model.

`restore` builds the model, lets ModelOpt insert its quantizers from modelopt_state and the extra states, loads, and compares
every weight with HF, every quantizer tensor with what the file holds, and the keys that the ranks asked for with those of
the file. --right-replicas repairs a defect of ModelOpt's (`right_replicas`), --lift-refusal takes a refusal of its back (`lift_refusal`). --like compares quantizers and, after taking over its amax values, logits with those that `save` wrote.
"""
import argparse
import json
import os
import re
import shutil
import sys
import types

import launch
import megatron_cpu as M
import quantize_modelopt as Q
import torch
import torch.distributed as dist
from megatron.core.models.mamba.mamba_model import MambaModel

if "megatron.core.models.hybrid.hybrid_model" not in sys.modules:
    try:
        import megatron.core.models.hybrid.hybrid_model                     # noqa: F401
    except ImportError:         # ModelOpt 0.47 expects the newer name of MambaModel
        pkg, mod = types.ModuleType("megatron.core.models.hybrid"), types.ModuleType("megatron.core.models.hybrid.hybrid_model")
        mod.HybridModel, pkg.hybrid_model = MambaModel, mod
        sys.modules.update({pkg.__name__: pkg, mod.__name__: mod})
import megatron.core.transformer.moe.moe_utils as moe_utils
if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.post_training.modelopt.mamba import model_specs

OF_ONE_EXPERT = re.compile(r"\.experts\.experts\.\d+\..*_quantizer\.")


def preload():
    """What a request needs, imported once."""
    import mapping, quantize_checks                                          # noqa: F401
    import modelopt.torch.quantization                                       # noqa: F401
    from megatron.core.models.mamba import mamba_layer_specs                 # noqa: F401
    from modelopt.torch.export import export_mcore_gpt_to_hf                 # noqa: F401
    from modelopt.torch.opt.plugins import mcore_dist_checkpointing          # noqa: F401


def build(c, a):
    over = {}
    if c.get("dtype", c.get("torch_dtype")) == "float32":
        over.update(bf16=False, params_dtype=torch.float32, pipeline_dtype=torch.float32)
    if not a.form.startswith("compute"):
        return M.build(c, "te" if a.form == "te" else "local", a.form == "local-fused", a.tp, a.pp, a.ep, a.etp, divisible=1, **over).eval()
    import megatron.core.ssm.mamba_block as block
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    over.update(apply_rope_fusion=False, masked_softmax_fusion=False, persist_layer_norm=False, sequence_parallel=False)
    if c["_experts"]:
        over.update(moe_token_dispatcher_type="allgather", moe_router_load_balancing_type="none", moe_grouped_gemm=False,
                    moe_router_topk_scaling_factor=c.get("routed_scaling_factor", 1.0))
    block.TENorm = WrappedTorchNorm
    stack = model_specs.get_mamba_stack_modelopt_spec(local_core_attention=True, remap_te_layernorm=a.form == "compute")
    sub = stack.submodules
    sub.mamba_layer.submodules.norm = sub.attention_layer.submodules.input_layernorm = WrappedTorchNorm
    sub.mlp_layer.submodules.pre_mlp_layernorm = sub.moe_layer.submodules.pre_mlp_layernorm = WrappedTorchNorm
    return MambaModel(M.transformer_config(c, "local", a.tp, a.pp, a.ep, a.etp, **over), stack, vocab_size=c["vocab_size"],
                      max_sequence_length=64, parallel_output=False, hybrid_override_pattern=c["_pattern"],
                      position_embedding_type="none", share_embeddings_and_output_weights=False).eval()


@torch.no_grad()
def logits(model):
    out = []
    for t in Q.tokens():
        pos = torch.arange(t.shape[1]).unsqueeze(0).expand(t.shape[0], -1)
        mask = torch.triu(torch.ones(1, 1, t.shape[1], t.shape[1], dtype=torch.bool), 1)
        out.append(model(t, pos, mask).float())
    return torch.cat(out)


@torch.no_grad()
def made_up(model):
    """Shows every quantizer but those of weights values of its own, in place of a forward pass; those that are off see all."""
    from modelopt.torch.quantization.nn import TensorQuantizer
    dtype = next(model.parameters()).dtype
    for i, (name, q) in enumerate(model.named_modules()):
        if isinstance(q, TensorQuantizer) and not (q.is_enabled and "weight_quantizer" in name):
            q(torch.full((4, 128), 1 + i / 64, dtype=dtype))


def start(a):
    M.init(a.tp, a.pp, a.ep, a.etp)
    Q.stand_in_kernels()
    from mapping import Mapping
    mp = Mapping(a.hf, fused=a.form not in ("local", "compute-separate"))
    return mp, build(mp.c, a)


def metadata(stored=None):
    """Given to sharded_state_dict as Megatron does. ModelOpt writes singleton_local_shards into it, and that is then stored."""
    return {"singleton_local_shards": False, "chained_optim_avoid_prefix": True, **(stored or {})}


def sharded(model, meta):
    meta["dp_cp_group"] = M.mpu.get_data_parallel_group(with_context_parallel=True)
    sd = model.sharded_state_dict(metadata=meta)
    meta.pop("dp_cp_group")
    return sd


def save(a):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.opt.plugins.mcore_dist_checkpointing import save_sharded_modelopt_state
    from safetensors.torch import save_file
    mp, model = start(a)
    rank, computes = dist.get_rank(), a.form.startswith("compute")
    with torch.no_grad():
        for sh in M.flat_sharded(model):
            if isinstance(sh, ShardedTensor):
                sh.data.copy_(mp.local(sh))
    before = logits(model) if computes else None
    model = mtq.quantize(model, Q.config(a.config), logits if computes else made_up)
    if rank == 0:
        shutil.rmtree(a.out, ignore_errors=True)
        os.makedirs(os.path.join(a.out, "release"))
        json.dump(Q.summary(model), open(os.path.join(a.out, "quantizers.json"), "w"), indent=1)
        mtq.print_quant_summary(model, a.out)
    after = logits(model) if computes else None
    if computes and rank == 0:
        save_file({"before": before.contiguous(), "after": after.contiguous()}, os.path.join(a.out, "logits.safetensors"))
    dist.barrier()
    ckpt, meta = os.path.join(a.out, "release"), metadata()
    M.dc.save({"checkpoint_version": 3.0, "iteration": 1, "model": sharded(model, meta)}, ckpt, content_metadata=meta)
    save_sharded_modelopt_state([model], ckpt, None)
    dist.barrier()
    if rank == 0:
        open(os.path.join(a.out, "latest_checkpointed_iteration.txt"), "w").write("release")
    if a.export:
        from modelopt.torch.export import export_mcore_gpt_to_hf
        # By default it raises the scales of keys and values to 1, which loses what FP8 can hold of them; Longshore does not.
        export_mcore_gpt_to_hf(model, a.hf, export_dir=os.path.join(a.out, "hf_export"), clamp_kv_cache_scales=False)
    dist.barrier()
    return 0


def restore(a):
    from modelopt.torch.opt.plugins.mcore_dist_checkpointing import restore_sharded_modelopt_state
    from quantize_checks import Checkpoint, equal_bits
    mp, model = start(a)
    rank, bad, weights, amaxes = dist.get_rank(), [], 0, 0
    with torch.no_grad():
        for t in list(model.parameters()) + list(model.buffers()):
            if t.is_floating_point():
                t.fill_(-77.0)          # anything left unread shows
    stored = Checkpoint(a.ckpt)
    if a.lift_refusal:
        lift_refusal()
    restore_sharded_modelopt_state([model], stored.folder)
    defect = repair_grouped(model)
    common = M.dc.load_common_state_dict(stored.folder)
    meta = {k: v for k, v in (M.dc.load_content_metadata(preloaded_state_dict=common) or {}).items() if v is not None}
    wanted = sharded(model, metadata(meta))
    if a.right_replicas:
        right_replicas(wanted)
    state = M.dc.load({"model": wanted}, stored.folder, strict=a.strict)
    result = model.load_state_dict(state["model"], strict=False)
    bad += [f"rank {rank}: missing {k}" for k in result.missing_keys if "_extra_state" not in k]
    asked = set()
    for sh in flat(model, meta):
        if isinstance(sh, ShardedObject):
            asked.add(sh.unique_key)
            continue
        asked.add(sh.key)
        if "quantizer" in sh.key:
            amaxes += 1
            if not equal_bits(sh.data.detach().reshape(sh.local_shape), stored.part(sh)):
                bad.append(f"rank {rank}: {sh.key} is {sh.data.flatten()[:2].tolist()}, the file has {stored.part(sh).flatten()[:2].tolist()}")
        else:
            weights += 1
            if not torch.equal(sh.data.float(), mp.local(sh).to(sh.dtype).float()):
                bad.append(f"rank {rank}: {sh.key} differs from the source")
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, (bad, asked, weights, amaxes))
    bad, asked = [x for b, *_ in every for x in b], set().union(*(s for _, s, *_ in every))
    weights, amaxes = (sum(counts) for counts in zip(*(n for _, _, *n in every)))
    unread = [k for k in stored.tensors if k not in asked and not k.startswith("mtp.")]
    bad += [f"no rank asks for {k}" for k in unread]
    # A local attention core, which computes here in place of the Transformer Engine's, has no state to ask for.
    bad += [f"no rank asks for {k}" for k, v in stored.objects.items() if k not in asked and v is not None and ".core_attention." not in k and not k.startswith("mtp.")]
    note = f" ({defect} of rank 0's lost by ModelOpt's own restore)" if defect else ""
    if a.like:
        bad += quantizers(model, a.like)
        note += take_over(model, a, bad) if a.form.startswith("compute") else ""
    if rank == 0:
        for line in bad[:30]:
            print("MISMATCH", line)
        print(f"{'FAIL' if bad else 'OK'}: {weights} weights, {amaxes} quantizer tensors{note}, {len(bad)} mismatches", flush=True)
    dist.barrier()
    return 1 if bad else 0


def repair_grouped(model):
    """Gives the weight quantizers of grouped experts back the amax that ModelOpt 0.47 deletes while it restores.

    `_ParallelLinear.modelopt_post_restore` resets those of all experts and calibrates the first one again, so that the rest
    is never read (and computed from the weight when it is needed). Returns how many had lost theirs.
    """
    from modelopt.torch.quantization.nn import GroupedQuantizer, SequentialQuantizer
    stages = lambda q: list(q) if isinstance(q, SequentialQuantizer) else [q]
    lost = 0
    for group in (m for m in model.modules() if isinstance(m, GroupedQuantizer)):
        for q in group:
            for have, need in zip(stages(group[0]), stages(q)):
                if hasattr(have, "_amax") and not hasattr(need, "_amax"):
                    need.register_buffer("_amax", torch.full_like(have._amax, -77.0))
                    lost += 1
    return lost


def lift_refusal():
    """Lets ModelOpt 0.47 insert its quantizers into experts one by one where tp and ep are above 1.

    It refuses for the replica numbers that `right_replicas` puts right. All else it takes from the experts' own groups.
    """
    from modelopt.torch.quantization.plugins.megatron import _MegatronSequentialMLP as Experts
    inner = Experts._setup

    def setup(self):
        tp, self.config.tensor_model_parallel_size = self.config.tensor_model_parallel_size, 1
        inner(self)
        self.config.tensor_model_parallel_size = tp
    Experts._setup = setup


def right_replicas(state):
    """Numbers the copies of the experts' magnitudes as megatron-core does those of their weights.

    ModelOpt 0.47 numbers them by the tp rank. Where etp is smaller than tp, an expert is on some tp ranks only; unless rank 0 is
    among them there is no first copy, which megatron-core takes for an error in loads and saves.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    for sh in nested_values(state):
        if isinstance(sh, ShardedTensor) and OF_ONE_EXPERT.search(sh.key):
            sh.replica_id = (0, M.mpu.get_expert_tensor_parallel_rank(), M.mpu.get_expert_data_parallel_rank())


def flat(model, meta):
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedBase, apply_factories
    sd = sharded(model, metadata(meta))
    apply_factories(sd)
    return [x for x in nested_values(sd) if isinstance(x, ShardedBase)]


def quantizers(model, like):
    """Differences between the quantizers of the restored model and those of the model that ModelOpt quantized itself."""
    mine, want = json.loads(json.dumps(Q.summary(model))), json.load(open(os.path.join(like, "quantizers.json")))
    # A quantizer that scales every token takes note of the axes that it has seen.
    for state in (*mine.values(), *want.values()):
        if state["dynamic"] and not (state["block_sizes"] or {}).get("-1", "None") != "None":
            state["axis"] = state["block_sizes"] = None
    bad = [f"quantizer {k} is only on one side" for k in sorted(mine.keys() ^ want.keys())]
    return bad + [f"quantizer {k}: {mine[k]}, expected {want[k]}" for k in sorted(mine.keys() & want.keys()) if mine[k] != want[k]]


@torch.no_grad()
def take_over(model, a, bad):
    """With the amax values of the other checkpoint, the logits must be the other's, to the bit."""
    from quantize_checks import Checkpoint
    from safetensors.torch import load_file
    other = Checkpoint(a.like)
    for sh in flat(model, {}):
        if isinstance(sh, ShardedTensor) and "quantizer" in sh.key:
            sh.data.copy_(other.part(sh).reshape(sh.data.shape))
    diff = float((logits(model) - load_file(os.path.join(a.like, "logits.safetensors"))["after"]).abs().max())
    if not diff <= a.tolerance:
        bad.append(f"logits differ by {diff:.3g}")
    return f", logits differ by {diff:.3g}"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    one, two = sub.add_parser("save"), sub.add_parser("restore")
    one.add_argument("hf")
    one.add_argument("out")
    one.add_argument("--config", default="FP8_DEFAULT_CFG")
    one.add_argument("--export", action="store_true")
    two.add_argument("ckpt")
    two.add_argument("--hf", required=True)
    two.add_argument("--like")
    two.add_argument("--right-replicas", action="store_true")
    two.add_argument("--lift-refusal", action="store_true")
    two.add_argument("--strict", default="assume_ok_unexpected")
    two.add_argument("--tolerance", type=float, default=0.0)
    for p in (one, two):
        p.add_argument("--form", default="compute")
        for size in ("tp", "pp", "ep"):
            p.add_argument(f"--{size}", type=int, default=1)
        p.add_argument("--etp", type=int)
    a = ap.parse_args()
    a.hf = os.path.abspath(a.hf)
    if a.etp is None and a.ep > 1:
        a.etp = 1
    if not launch.is_worker():
        return launch.run(M.world_size(a.tp, a.pp, a.ep, a.etp))
    try:
        return {"save": save, "restore": restore}[a.command](a)
    except Exception as e:
        if os.environ.get("DEBUG"):
            raise
        cause = next(iter(getattr(e, "failures", {}).values()), None)
        e = cause[0] if isinstance(cause, tuple) else e
        print(f"FAIL: rank {os.environ['RANK']}: {type(e).__name__}: {str(e)[:600]}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
