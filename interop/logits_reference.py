"""What transformers computes for a Nemotron-H or Llama folder: residual stream, routing, logits and greedy tokens, in float32, bfloat16
and float64.

Attention and experts run in transformers' plain ("eager") code. Every function takes prompts (lists of token ids) and a dtype.
"""
import contextlib
import glob
import os

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Outputs:
    """One prompt: `hidden` [layers + 1, T, H] without the final norm, `logits` [T, V], `router` {layer: [T, E]},
    `experts` and `weights` {layer: [T, k]}, experts in ascending order."""

    def __init__(self, layers):
        self.hidden, self.logits, self.router, self.experts, self.weights = [None] * (layers + 1), None, {}, {}, {}

    def routing(self, layer, gate_output):
        logits, weights, experts = gate_output
        order = experts.argsort(-1)
        self.router[layer], self.experts[layer], self.weights[layer] = logits, experts.gather(1, order), weights.gather(1, order)

    def done(self, logits):
        self.hidden, self.logits = torch.stack(self.hidden), logits
        return self


class _Float64Torch:
    """The torch module as transformers' model files see it, with a float32 of 64 bits."""
    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def arithmetic(dtype):
    """transformers widens to float32 by name in norms, scan, softmax and router; for a true float64 run, widen to float64 there."""
    if dtype != torch.float64:
        yield
        return
    modeling.torch = modeling_llama.torch = _Float64Torch()
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        modeling.torch = modeling_llama.torch = torch
        del torch.Tensor.float      # uncovers the method of the base class


def load(folder, dtype, clamp=True):
    """The whole model. clamp=False takes the lower bound of time steps away, which transformers applies to prompts but not to
    single tokens: without it both are the function that the model was trained as."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()
    if is_llama(model):
        return model
    if model.config.tie_word_embeddings:    # transformers keeps a head of its own for this family, and fills it with noise
        model.lm_head.weight = model.model.embeddings.weight
    if not clamp:
        for layer in model.model.layers:
            if layer.block_type == "linear_attention":
                layer.mixer.time_step_limit = (0.0, float("inf"))
    return model


def is_llama(model):
    return model.config.model_type == "llama"


def watch_nemotron(body, watch):
    watch(body.embeddings, lambda o, x: o.hidden.__setitem__(0, x[0]))
    for i, layer in enumerate(body.layers):
        watch(layer, lambda o, x, i=i: o.hidden.__setitem__(i + 1, x[0]))
        if layer.block_type == "moe":
            watch(layer.mixer.gate, lambda o, x, i=i: o.routing(i, x))
    return len(body.layers)


def watch_llama(body, watch):
    """A block is two layers: what its second norm reads, and what it gives."""
    watch(body.embed_tokens, lambda o, x: o.hidden.__setitem__(0, x[0]))
    for i, block in enumerate(body.layers):
        watch(block.post_attention_layernorm, lambda o, x, i=i: o.hidden.__setitem__(2 * i + 1, x[0]), before=True)
        watch(block, lambda o, x, i=i: o.hidden.__setitem__(2 * i + 2, (x[0] if isinstance(x, tuple) else x)[0]))
    return 2 * len(body.layers)


@torch.no_grad()
def prefill(folder, prompts, dtype):
    """Every prompt at once through the whole model."""
    model = load(folder, dtype)
    found, hooks = [], []
    body = model.model

    def watch(module, put, before=False):
        if before:
            hooks.append(module.register_forward_pre_hook(lambda _m, given: put(found[-1], given[0])))
        else:
            hooks.append(module.register_forward_hook(lambda _m, _i, out: put(found[-1], out)))

    layers = watch_llama(body, watch) if is_llama(model) else watch_nemotron(body, watch)
    with arithmetic(dtype):
        for ids in prompts:
            found.append(Outputs(layers))
            found[-1].done(model(torch.tensor([ids]), use_cache=False).logits[0])
    for hook in hooks:
        hook.remove()
    return found


class _Folder:
    """Tensors of a folder by name."""

    def __init__(self, folder):
        self.files = [safe_open(f, "pt") for f in sorted(glob.glob(os.path.join(folder, "*.safetensors")))]
        self.where = {name: f for f in self.files for name in f.keys()}

    def get(self, name, dtype):
        return self.where[name].get_tensor(name).to(dtype)

    def block(self, config, i, dtype):
        """Layer i as transformers' module, with its weights."""
        with torch.device("meta"):
            block = modeling.NemotronHBlock(config, i)
        prefix, state = f"backbone.layers.{i}.", {}
        for name, empty in block.state_dict().items():
            own = torch.float32 if name.endswith("e_score_correction_bias") and dtype == torch.bfloat16 else dtype
            if ".experts." not in name:
                state[name] = self.get(prefix + name, own)
                continue
            state[name] = torch.empty(empty.shape, dtype=own)       # the module stacks what the folder has one by one
            head, leaf = name.rsplit(".", 1)
            for e in range(len(empty)):
                state[name][e] = self.get(f"{prefix}{head}.{e}.{leaf}.weight", own)
        block.load_state_dict(state, assign=True)
        return block.eval()


@torch.no_grad()
def prefill_by_layer(folder, prompts, dtype):
    """The same as `prefill` with one layer in memory at a time: real shapes in float64 need it. The layers are transformers'; the
    way from one to the next is repeated here, and logits.py checks on small models that nothing differs."""
    config, tensors = AutoConfig.from_pretrained(folder), _Folder(folder)
    config._attn_implementation = config._experts_implementation = "eager"
    layers = config.layers_block_type
    found = [Outputs(len(layers)) for _ in prompts]
    with arithmetic(dtype):
        table = tensors.get("backbone.embeddings.weight", dtype)
        for o, ids in zip(found, prompts):
            o.hidden[0] = table[ids]
        for i, kind in enumerate(layers):
            block = tensors.block(config, i, dtype)
            for o, ids in zip(found, prompts):
                causal = torch.full((1, 1, len(ids), len(ids)), torch.finfo(dtype).min, dtype=dtype).triu(1)
                gate = block.mixer.gate if kind == "moe" else torch.nn.Identity()
                hook = gate.register_forward_hook(lambda _m, _i, out, o=o, i=i: o.routing(i, out))
                o.hidden[i + 1] = block(o.hidden[i][None], attention_mask=causal if kind == "full_attention" else None)[0]
                hook.remove()
            del block, gate     # before the next layer is read
        norm = modeling.NemotronHRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        norm.weight = torch.nn.Parameter(tensors.get("backbone.norm_f.weight", dtype))
        head = table if config.tie_word_embeddings else tensors.get("lm_head.weight", dtype)
        for o in found:
            o.done(torch.nn.functional.linear(norm(o.hidden[-1]), head).float())
    return found


@torch.no_grad()
def steps(folder, prompts, dtype):
    """Logits [T, V] of every prompt, token by token through the cache (the recurrent form), without the bound on time steps."""
    model, found = load(folder, dtype, clamp=False), []
    for ids in prompts:
        cache, rows = None, []
        for token in ids:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
        found.append(torch.stack(rows))
    return found


@torch.no_grad()
def greedy(folder, prompts, count, dtype):
    """`count` most likely tokens after every prompt, with the cache, and their log probabilities."""
    model, found = load(folder, dtype), []
    for ids in prompts:
        cache, tokens, logprobs, new = None, [], [], list(ids)
        for _ in range(count):
            out = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1].double().log_softmax(-1)
            new = [int(row.argmax())]
            tokens += new
            logprobs.append(float(row[new[0]]))
        found.append((tokens, logprobs))
    return found
