"""Real megatron-core models on CPU (gloo), built from a Hugging Face config.json.

transformer_engine and mamba_ssm are replaced by the parameter-only packages in stubs/: modules have the parameters,
extra states and sharding of the real ones, but no forward pass. With LONGSHORE_INTEROP_COMPUTE=1 in the environment there is
no transformer_engine, and mamba_ssm is the slow but working one of stubs_compute/. Import this module before megatron.
"""
import contextlib
import dataclasses
import datetime
import inspect
import json
import os
import sys
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
warnings.filterwarnings("ignore")
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
COMPUTE = os.environ.get("LONGSHORE_INTEROP_COMPUTE") == "1"
sys.path.insert(0, os.path.join(HERE, "stubs_compute" if COMPUTE else "stubs"))

import torch
import torch.distributed as dist


class _Stream:
    def __init__(self, *a, **k):
        pass

    def wait_stream(self, *a):
        pass


if not torch.cuda.is_available():       # CUDA-only functions become harmless
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = torch.cuda.set_device = lambda *a, **k: None
    torch.cuda.get_rng_state = lambda *a, **k: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.empty_cache = lambda: None
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = lambda *a, **k: _Stream()
    torch.Tensor.cuda = lambda self, *a, **k: self

from megatron.core import dist_checkpointing as dc, parallel_state as mpu
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import random as tp_random
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig


@contextlib.contextmanager
def _fork(self, *a, **k):
    yield


tp_random.CudaRNGStatesTracker.fork = _fork
with contextlib.suppress(Exception):
    from megatron.core.extensions.transformer_engine import TECudaRNGStatesTracker
    TECudaRNGStatesTracker.fork = _fork

import queue
_results = queue.Queue()                # the stock queue lives in a Manager process, which is not needed here
filesystem_async._results_queue = _results
filesystem_async.get_write_results_queue = lambda *a, **k: _results


def world_size(tp, pp, ep, etp):
    """Smallest number of processes for a layout (megatron's default is etp = tp)."""
    import math
    return pp * math.lcm(tp, ep * (etp or tp))


def init(tp=1, pp=1, ep=1, etp=None, timeout=300):
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    mpu.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
                                  expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
                                  create_gloo_process_groups=True)
    with contextlib.suppress(Exception):
        tp_random.initialize_rng_tracker()


def squared_relu(x):
    return torch.pow(torch.nn.functional.relu(x), 2)


def load_hf_config(hf_dir):
    """config.json plus `_family` and, for Nemotron-H, `_pattern` and `_mtp_pattern`."""
    c = json.load(open(os.path.join(hf_dir, "config.json")))
    c["_family"] = c["model_type"]
    if c["model_type"] == "nemotron_h":
        letters = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
        seq = lambda key: "".join(letters[x] for x in c.get(key) or [])
        c["_pattern"] = (c.get("hybrid_override_pattern") or seq("layers_block_type")).replace("|", "")
        c["_mtp_pattern"] = c.get("mtp_hybrid_override_pattern") or seq("mtp_layers_block_type") or "*E"
    c["_layers"] = len(c["_pattern"]) if "_pattern" in c else c["num_hidden_layers"]
    c["_head_dim"] = c.get("head_dim") or c.get("attention_head_dim") or c["hidden_size"] // c["num_attention_heads"]
    c["_experts"] = c.get("n_routed_experts") or c.get("num_local_experts") or c.get("num_experts")
    if c["model_type"] in ("llama", "qwen2", "qwen3"):
        c["_experts"] = None
    if c["model_type"] == "nemotron_h" and "E" not in c["_pattern"]:
        c["_experts"] = None
    return c


def moe_layer_freq(c):
    """1 for a uniform MoE model, else the per-layer list."""
    n = c["_layers"]
    if c["_family"] == "deepseek_v3":
        return [0 if i < c.get("first_k_dense_replace", 0) else 1 for i in range(n)]
    if c["_family"] == "qwen3_moe":
        step, dense = c.get("decoder_sparse_step", 1), set(c.get("mlp_only_layers") or [])
        freq = [int(i not in dense and (i + 1) % step == 0) for i in range(n)]
        return 1 if all(freq) else freq
    return 1


def transformer_config(c, spec, tp, pp, ep, etp, **over):
    H, q, fam, E, n = c["hidden_size"], c["num_attention_heads"], c["_family"], c["_experts"], c["_layers"]
    kw = dict(num_layers=n, hidden_size=H, num_attention_heads=q, num_query_groups=c.get("num_key_value_heads", q),
              kv_channels=c["_head_dim"], ffn_hidden_size=c.get("intermediate_size", 4 * H),
              layernorm_epsilon=c.get("layer_norm_epsilon", c.get("rms_norm_eps", 1e-5)), normalization="RMSNorm",
              add_bias_linear=False, bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16,
              use_cpu_initialization=True, perform_initialization=True, tensor_model_parallel_size=tp,
              pipeline_model_parallel_size=pp, expert_model_parallel_size=ep,
              expert_tensor_parallel_size=etp if etp is not None else tp, sequence_parallel=tp > 1 and E is not None,
              hidden_dropout=0.0, attention_dropout=0.0, gradient_accumulation_fusion=False, bias_dropout_fusion=False,
              bias_activation_fusion=False, attention_softmax_in_fp32=True)
    if n % pp:
        kw["num_layers_in_first_pipeline_stage"] = n - (pp - 1) * (n // pp)
    if E:
        kw.update(num_moe_experts=E, moe_router_topk=c.get("num_experts_per_tok", 2), moe_grouped_gemm=(spec == "te"),
                  moe_ffn_hidden_size=c.get("moe_intermediate_size", c.get("intermediate_size")),
                  moe_token_dispatcher_type="alltoall")
    if fam == "nemotron_h":
        kw.update(activation_func=squared_relu, mamba_num_heads=c["mamba_num_heads"], mamba_head_dim=c["mamba_head_dim"],
                  mamba_num_groups=c["n_groups"], mamba_state_dim=c["ssm_state_size"], is_hybrid_model=True)
        if E:
            kw.update(moe_shared_expert_intermediate_size=c.get("moe_shared_expert_intermediate_size"),
                      moe_latent_size=c.get("moe_latent_size"))
    else:
        kw.update(gated_linear_unit=True, activation_func=torch.nn.functional.silu)
    if fam in ("nemotron_h", "deepseek_v3") and E:
        kw.update(moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True, moe_router_dtype="fp32")
    cls = TransformerConfig
    if fam == "qwen2":
        kw.update(add_qkv_bias=True)
    elif fam in ("qwen3", "qwen3_moe"):
        kw.update(qk_layernorm=True)
    elif fam == "gpt_oss":
        kw.update(add_bias_linear=True, add_qkv_bias=True, softmax_type="learnable")
    elif fam == "deepseek_v3":
        cls = MLATransformerConfig
        kw.update(multi_latent_attention=True, qk_layernorm=True, q_lora_rank=c.get("q_lora_rank"), kv_lora_rank=c["kv_lora_rank"],
                  qk_head_dim=c["qk_nope_head_dim"], qk_pos_emb_head_dim=c["qk_rope_head_dim"], v_head_dim=c["v_head_dim"],
                  num_query_groups=None, kv_channels=None, rope_type="rope",
                  moe_shared_expert_intermediate_size=c["moe_intermediate_size"] * c.get("n_shared_experts", 1))
    if E and moe_layer_freq(c) != 1:
        kw["moe_layer_freq"] = moe_layer_freq(c)
    kw.update(over)
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(k for k in kw if k not in known)
    if unknown:         # older releases know fewer fields
        print("config fields unknown to this megatron-core:", unknown, file=sys.stderr)
    return cls(**{k: v for k, v in kw.items() if k in known})


def padded_vocab(vocab, divisible, tp):
    m = divisible * tp
    return (vocab + m - 1) // m * m


def build(c, spec="te", remap=False, tp=1, pp=1, ep=1, etp=None, divisible=128, **over):
    """spec: te (Transformer-Engine modules) or local (the ModelOpt spec; remap renames its norms to the TE names)."""
    config = transformer_config(c, spec, tp, pp, ep, etp, **over)
    common = dict(vocab_size=padded_vocab(c["vocab_size"], divisible, tp), max_sequence_length=c.get("max_position_embeddings", 4096),
                  pre_process=mpu.is_pipeline_first_stage(), post_process=mpu.is_pipeline_last_stage(),
                  share_embeddings_and_output_weights=bool(c.get("tie_word_embeddings", False)))
    if c["_family"] == "nemotron_h":
        from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec
        from megatron.core.models.mamba.mamba_model import MambaModel
        from megatron.core.post_training.modelopt.mamba.model_specs import get_mamba_stack_modelopt_spec
        stack = mamba_stack_spec if spec == "te" else get_mamba_stack_modelopt_spec(remap_te_layernorm=remap)
        name = "hybrid_layer_pattern" if "hybrid_layer_pattern" in inspect.signature(MambaModel.__init__).parameters else "hybrid_override_pattern"
        return MambaModel(config=config, mamba_stack_spec=stack, position_embedding_type="none", **{name: c["_pattern"]}, **common)
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.post_training.modelopt.gpt.model_specs import get_gpt_modelopt_spec
    if spec == "local":
        layer = get_gpt_modelopt_spec(config=config, remap_te_layernorm=remap)
    elif isinstance(config.moe_layer_freq, list):
        layer = get_gpt_decoder_block_spec(config, use_transformer_engine=True)
    else:
        layer = get_gpt_layer_with_transformer_engine_spec(config.num_moe_experts, config.moe_grouped_gemm,
                                                           config.qk_layernorm, config.multi_latent_attention)
    return GPTModel(config=config, transformer_layer_spec=layer, position_embedding_type="rope", parallel_output=True, **common)


def content_metadata(stored=None):
    """Metadata handed to sharded_state_dict: what the checkpoint recorded, over Megatron's defaults."""
    return {"singleton_local_shards": False, "chained_optim_avoid_prefix": True, **(stored or {}),
            "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}


def flat_sharded(model, stored=None):
    """All ShardedTensor / ShardedObject leaves of the model on this rank; tensors are views of the parameters."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedBase, apply_factories
    sd = model.sharded_state_dict(metadata=content_metadata(stored))
    apply_factories(sd)
    return [x for x in nested_values(sd) if isinstance(x, ShardedBase)]
