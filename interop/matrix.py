"""What run.py checks: model variants, specs, layouts, options, and the arguments that a checkpoint must store."""
import dataclasses
import itertools
import re


@dataclasses.dataclass(frozen=True)
class Variant:
    """A source model: a make_hf model with config overrides, or a folder of the repository."""
    name: str
    model: str = ""
    config: tuple = ()          # make_hf --set
    seed: int = 0
    edit: dict = dataclasses.field(default_factory=dict, hash=False)        # config.json fields replaced after make_hf
    folder: str = ""
    moe: bool = False
    quick: bool = False
    special: str = ""           # options and damage tried on this variant


def _made(model, **kw):
    return Variant(model.replace("nemotron_h_", ""), model, **kw)


VARIANTS = [
    _made("nemotron_h_dense", quick=True),
    _made("nemotron_h_dtclamp"),
    _made("nemotron_h_fp32_ssm"),
    _made("nemotron_h_moe", moe=True, quick=True, special="options"),
    _made("nemotron_h_moe_groups", moe=True),
    _made("nemotron_h_moe_sharded", moe=True),
    _made("nemotron_h_latent_mtp", moe=True, quick=True),
    # two MTP blocks of their own; one block used twice; MTP without a latent MoE
    Variant("mtp_depth2", "nemotron_h_latent_mtp", ("num_nextn_predict_layers=2",), 3, moe=True),
    Variant("mtp_repeated", "nemotron_h_latent_mtp", (), 4, {"num_nextn_predict_layers": 2}, moe=True),
    Variant("mtp_plain", "nemotron_h_latent_mtp", ("moe_latent_size=null",), 5, moe=True),
    Variant("dense_tied", "nemotron_h_dense", ("tie_word_embeddings=true",), 6),
    Variant("moe_tied", "nemotron_h_moe", ("tie_word_embeddings=true",), 7, moe=True),
    # as many Mamba groups and key heads as there are heads; many query heads per key head
    Variant("groups4", "nemotron_h_dense", ("n_groups=4", "num_key_value_heads=4"), 8),
    Variant("gqa", "nemotron_h_moe", ("num_attention_heads=8", "head_dim=16", "n_groups=4"), 9, moe=True),
    # a vocabulary that Megatron pads
    Variant("vocab250", "nemotron_h_moe", ("vocab_size=250",), 10, moe=True, special="padding"),
    Variant("bundled", folder="models/nemotron-h-10m", moe=True),
]


@dataclasses.dataclass(frozen=True)
class Spec:
    convert: tuple              # options of `longshore convert`
    load: tuple                 # options of load_megatron.py and save_megatron.py
    handmade: tuple             # options of handmade.py
    also: str = ""              # another spec that must accept the same checkpoint


SPECS = {
    "te": Spec(("--spec", "te"), ("--spec", "te"), ("--spec", "te"), also="local-te-names"),
    "local": Spec(("--spec", "local"), ("--spec", "local"), ("--spec", "local")),
    "local-te-names": Spec(("--spec", "local", "--export-te-mcore-model"), ("--spec", "local", "--remap"),
                           ("--spec", "local", "--remap")),
}
SAVE_SPECS = ("te", "local")


# ---- layouts: (tp, pp, ep, etp), etp None = Megatron's default, the same as tp
ONE = (1, 1, 1, None)
LOADS = {
    False: [ONE, (2, 1, 1, None), (1, 2, 1, None), (2, 2, 1, None)],
    True: [ONE, (2, 1, 1, None), (1, 2, 1, None), (1, 1, 2, None), (1, 1, 1, 2), (2, 1, 1, 1), (2, 2, 2, 1)],
}
SAVES = {
    False: [ONE, (2, 2, 1, None)],
    True: [ONE, (2, 2, 1, None), (1, 1, 2, None), (2, 1, 2, 1)],
}
FULL = {
    False: list(itertools.product((1, 2), (1, 2), (1,), (None,))),
    True: list(itertools.product((1, 2), (1, 2), (1, 2), (1, 2))),
}
QUICK = {False: [ONE, (2, 2, 1, None)], True: [ONE, (2, 2, 2, 1)]}
SAVED_AS_ITERATION = [(1, 1, 2, None)]          # iter_0000005; the others are saved as release
ROUNDED_BY_MEGATRON = ("dt_bias",)              # a bfloat16 parameter in Megatron, also where the source has float32


def load_layouts(v, a):
    return (QUICK if a.quick else FULL if a.full else LOADS)[v.moe]


def save_layouts(v, a):
    return (QUICK if a.quick else SAVES)[v.moe]


def layout_name(layout):
    tp, pp, ep, etp = layout
    return "tp%d" % tp + ("pp%d" % pp) * (pp > 1) + ("ep%d" % ep) * (ep > 1) + (f"etp{etp}" if etp else "")


def parse_layouts(text):
    out = []
    for word in text.split(","):
        n = {k: int(x) for k, x in re.findall(r"(etp|tp|pp|ep)(\d+)", word)}
        out.append((n.get("tp", 1), n.get("pp", 1), n.get("ep", 1), n.get("etp")))
    return out


def written_otherwise(v):
    """(options of convert, layouts to load at): a checkpoint cut for one layout must load at another."""
    if v.name == "gqa":         # more tensor-parallel ranks than key heads
        return [(("--tp", "4", "--pp", "2", "--ep", "2", "--etp", "1"), [ONE, (2, 1, 1, None)])]
    if v.moe:
        return [(("--tp", "2", "--ep", "2"), [ONE, (2, 1, 1, None)])]
    return [(("--tp", "2"), [ONE, (2, 1, 1, None)])]


# Variant.special -> (spec, options of convert, spec to load as, layouts); each is also exported and compared
SPECIALS = {
    "options": [("te", ("--dtype", "fp32"), "te", [ONE]), ("local", ("--norms", "fused"), "local-te-names", [(2, 1, 1, None)])],
    "padding": [("te", ("--make-vocab-size-divisible-by", "128"), "te", [ONE, (2, 1, 1, None)])],
}


def handmade_oddities(v):
    """Legal but unusual checkpoints, as options of handmade.py."""
    if v.name not in ("dense", "latent_mtp"):
        return []
    return [("--rows", "3"), ("--files", "3"), ("--minimal",), ("--common", "state"), ("--align", "1"), ("--align", "0"), ("--f32",),
            ("--no-args",), ("--no-extra-state",), ("--extra-none",), ("--spec", "local"), ("--spec", "local", "--remap", "--rows", "5", "--files", "4", "--minimal")]


# ---- stored arguments
LETTERS = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}


def stored_arguments(c, minimal=False):
    """The attributes of `args` in common.pt that config.json determines (docs/torch_dist.md), with their values."""
    pattern = (c.get("hybrid_override_pattern") or "".join(LETTERS[x] for x in c["layers_block_type"])).replace("|", "")
    want = dict(num_layers=len(pattern), hidden_size=c["hidden_size"], num_attention_heads=c["num_attention_heads"],
                add_position_embedding=True, hybrid_layer_pattern=pattern,
                tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    if minimal:
        return want
    want.update(ffn_hidden_size=c["intermediate_size"], group_query_attention=True, num_query_groups=c["num_key_value_heads"],
                kv_channels=c["head_dim"], max_position_embeddings=c["max_position_embeddings"], position_embedding_type="none",
                normalization="RMSNorm", add_bias_linear=False, add_qkv_bias=False, squared_relu=True, swiglu=False,
                untie_embeddings_and_output_weights=not c.get("tie_word_embeddings", False), padded_vocab_size=c["vocab_size"],
                mamba_state_dim=c["ssm_state_size"], mamba_head_dim=c["mamba_head_dim"], mamba_num_groups=c["n_groups"],
                mamba_num_heads=c["mamba_num_heads"], ckpt_format="torch_dist", expert_model_parallel_size=1)
    if "E" in pattern:
        want.update(num_experts=c["n_routed_experts"], moe_ffn_hidden_size=c["moe_intermediate_size"],
                    moe_router_topk=c["num_experts_per_tok"], moe_router_topk_scaling_factor=c["routed_scaling_factor"],
                    moe_shared_expert_intermediate_size=c["moe_shared_expert_intermediate_size"],
                    moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True, moe_latent_size=c.get("moe_latent_size"))
    if c.get("num_nextn_predict_layers"):
        want.update(mtp_num_layers=c["num_nextn_predict_layers"])
    return want


# Variables of the Megatron scripts; run.py keeps them away from Longshore.
SCRIPT_VARIABLES = ("HF_MODEL_CKPT", "MLM_MODEL_CKPT", "MLM_MODEL_SAVE", "MLM_MODEL_CFG", "MLM_WORK_DIR", "MLM_EXTRA_ARGS", "EXPORT_DIR",
                    "TP", "PP", "EP", "ETP")


# ---- results
def family(key):
    """A checkpoint key with its numbers replaced: which kind of tensor it is."""
    key = re.sub(r"decoder\.layers\.\d+", "decoder.layers.{l}", key)
    key = re.sub(r"mtp\.layers\.\d+", "mtp.layers.{d}", key)
    key = re.sub(r"mtp_model_layer\.layers\.\d+", "mtp_model_layer.layers.{k}", key)
    return re.sub(r"(in_proj|conv1d)\.(weight|bias)\.(z|x|B|C|dt)$", r"\1.\2.*", key)


def short(names, n=12):
    names = sorted(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def table(families):
    """Markdown: key family, what ran, where, with which result."""
    what = {"load": "megatron-core 0.16.1 loads what Longshore wrote", "export": "Longshore exports what megatron-core 0.16.1 (or handmade.py) wrote"}
    out = []
    for direction in ("load", "export"):
        rows = sorted((f, r) for (d, f), r in families.items() if d == direction)
        if not rows:
            continue
        layouts = set().union(*(r["layouts"] for _, r in rows))
        out += [f"### {what[direction]}", "", f"Specs and layouts: {short(layouts, 99)}.", "",
                "| key family | variants | checks | result |", "|---|---|---|---|"]
        for f, r in rows:
            result = "equal" if not r["failed"] else f"{r['failed']} failed"
            if f.startswith("mtp."):
                result += " (1)"
            out.append(f"| `{f}` | {len(r['variants'])} | {r['checks']} | {result} |")
        out.append("")
    out.append("(1) megatron-core 0.16.1 has no MTP in hybrid models: these keys are read and written one by one through its\n"
               "`dist_checkpointing`, under the names of later releases. No model asked for them.\n")
    return "\n".join(out)


def describe(a):
    """The matrix as text."""
    lines = []
    for v in VARIANTS:
        if a.quick and not v.quick:
            continue
        loads = " ".join(map(layout_name, load_layouts(v, a)))
        saves = " ".join(map(layout_name, save_layouts(v, a)))
        lines.append(f"{v.name:<14} load: {loads}   save: {saves}")
    return "\n".join(lines)
