"""Reads quantized checkpoints without Megatron and compares them: what must be equal, and how nearly the rest must be.

A calibrated input depends on the arithmetic of the forward pass, so it has a tolerance. Everything else has none.
"""
import io
import json
import os
import pickle
import re

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import compare
from checking import Failed

NUMBERED = re.compile(r"weight_quantizer\.\d+")
INPUTS = ("input_quantizer._amax", "k_bmm_quantizer._amax", "v_bmm_quantizer._amax")
WIDER = ("A_log", "D", "dt_bias", "expert_bias", "e_score_correction_bias")    # float32 here, the model's type in ModelOpt's model


class Checkpoint:
    """A torch_dist folder: `tensors` whole, `objects` as what they hold, `common` and `modelopt` the two common states."""

    def __init__(self, root):
        self.folder = compare.inner_folder(root)
        metadata = FileSystemReader(self.folder).read_metadata()
        self.tensors, self.objects = {}, {}
        for index, info in metadata.storage_data.items():
            with open(os.path.join(self.folder, info.relative_path), "rb") as f:
                f.seek(info.offset)
                raw = f.read(info.length)
            about = metadata.state_dict_metadata[index.fqn]
            if isinstance(about, BytesStorageMetadata):
                self.objects[index.fqn] = unpacked(raw)
                continue
            part = torch.load(io.BytesIO(raw), weights_only=True)
            whole = self.tensors.setdefault(index.fqn, torch.empty(about.size, dtype=about.properties.dtype))
            at = index.offset if index.offset is not None else [0] * part.dim()
            whole[tuple(slice(o, o + n) for o, n in zip(at, part.shape))] = part
        self.modelopt = torch.load(os.path.join(self.folder, "modelopt_state", "common.pt"), weights_only=True)
        self.content = torch.load(os.path.join(self.folder, "common.pt"), weights_only=False).get("content_metadata")

    def part(self, sh):
        """What a ShardedTensor of Megatron asks for."""
        p = sh.prepend_axis_num
        at = tuple(sh.global_offset[:p]) + tuple(slice(o, o + n) for o, n in zip(sh.global_offset[p:], sh.local_shape))
        return self.tensors[sh.key][at]


def unpacked(raw):
    """An extra state as the dict that ModelOpt put in; None where it is empty."""
    value = torch.load(io.BytesIO(raw), weights_only=False)
    if isinstance(value, io.BytesIO):
        value = torch.load(value, weights_only=False)
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, torch.Tensor):
        value = torch.load(io.BytesIO(value.numpy().tobytes()), weights_only=False) if value.numel() else None
    return value


def problems(bad, limit=4):
    if bad:
        first = {}          # of every sort, the first: names of a sort differ by numbers only
        for line in bad:
            first.setdefault(re.sub(r"[0-9.e+-]+", "", line), line)
        raise Failed(f"{len(bad)} differences: " + "; ".join(list(first.values())[:limit]))


def near(ours, theirs):
    """Largest relative difference."""
    a, b = ours.double(), theirs.double()
    return float(((a - b).abs() / b.abs().clamp(min=1e-30)).max()) if a.numel() else 0.0


def equal_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def states(ours, theirs, tolerance, surplus_objects=False):
    """Tensors, extra states and modelopt_state of two checkpoints. MTP is only in ours: no released Megatron model holds it.

    Returns (weight amaxes that are equal, input amaxes, their largest relative difference, extra states that are equal).
    """
    bad, weights, inputs, worst = [], 0, 0, 0.0
    mine = {k: t for k, t in ours.tensors.items() if not k.startswith("mtp.")}
    bad += [f"`{k}` is missing" for k in theirs.tensors if k not in mine] + [f"`{k}` is surplus" for k in mine if k not in theirs.tensors and ".core_attention." not in k]
    for k in sorted(mine.keys() & theirs.tensors.keys()):
        a, b = mine[k], theirs.tensors[k]
        if k.endswith(INPUTS):
            if a.dtype != b.dtype or a.shape != b.shape:
                bad.append(f"`{k}`: {a.dtype} {list(a.shape)}, expected {b.dtype} {list(b.shape)}")
            else:
                inputs, worst = inputs + 1, max(worst, near(a, b))
                if tolerance is not None and not near(a, b) <= tolerance:
                    bad.append(f"`{k}`: {float(a.flatten()[0]):.6g}, expected {float(b.flatten()[0]):.6g}")
        elif "quantizer" in k:
            weights += 1
            if not equal_bits(a, b):
                bad.append(f"`{k}`: {a.dtype} {list(a.shape)} {a.flatten()[:2].tolist()}, expected {b.dtype} {list(b.shape)} {b.flatten()[:2].tolist()}")
        elif k.split(".")[-1] in WIDER and a.dtype == torch.float32 or a.dim() == 1 and b.dtype == torch.float32:
            if not torch.equal(a.to(b.dtype), b):       # the torch norms of the model that computes are float32
                bad.append(f"`{k}`: values differ")
        elif not equal_bits(a, b):
            bad.append(f"`{k}`: differs")
    objects = extra_states(ours, theirs, bad, surplus_objects)
    if ours.modelopt != theirs.modelopt:
        bad.append("modelopt_state: " + first_difference(ours.modelopt, theirs.modelopt))
    if ours.content != theirs.content:
        bad.append("content_metadata: " + first_difference(ours.content, theirs.content))
    problems(bad)
    return weights, inputs, worst, objects


def extra_states(ours, theirs, bad, surplus):
    mine = {k: v for k, v in ours.objects.items() if not k.startswith("mtp.")}
    bad += [f"`{k}` is missing" for k in theirs.objects if k not in mine]
    # Models that compute on CPU have a local attention core, which has no state; the Transformer Engine's has one.
    known = lambda k, v: (surplus and v is None) or ".core_attention." in k
    bad += [f"`{k}` is surplus" for k, v in mine.items() if k not in theirs.objects and not known(k, v)]
    same = 0
    for k in sorted(mine.keys() & theirs.objects.keys()):
        if plain(mine[k]) == plain(theirs.objects[k]):
            same += 1
        else:
            bad.append(f"`{k}`: " + first_difference(plain(mine[k]), plain(theirs.objects[k])))
    return same


def without_leftovers(quantizer):
    """The state of a quantizer without what its last forward pass left there: the type of what passed, and for one that scales
    every token the axes that it had."""
    quantizer = {k: v for k, v in quantizer.items() if k != "_input_dtype"}
    if quantizer.get("_dynamic") and (quantizer.get("_block_sizes") or {-1: None}) == {-1: None}:
        quantizer = {k: v for k, v in quantizer.items() if k not in ("_axis", "_block_sizes")}
    return quantizer


def plain(value):
    """An extra state in values that can be compared; a tensor as its type, shape and numbers.

    ModelOpt puts the states of all experts of a rank into that of each; the loader takes the first one's for one that is
    not there, and that is all that is written here. They must be alike.
    """
    if isinstance(value, dict) and "_num_bits" in value:
        value = without_leftovers(value)
    if isinstance(value, dict) and "weight_quantizer.0" in value and "weight_quantizer" not in value:
        first = value["weight_quantizer.0"]
        value = {k: v for k, v in value.items() if not (NUMBERED.fullmatch(k) and k != "weight_quantizer.0" and v == first)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return ("tensor", str(value.dtype), list(value.shape), value.flatten().tolist())
    return value


def first_difference(a, b, where=""):
    if type(a) is not type(b):
        return f"{where or 'it'} is {str(a)[:80]}, expected {str(b)[:80]}"
    if isinstance(a, dict):
        if list(a) != list(b) and set(a) != set(b):
            return f"{where} has keys {sorted(map(str, set(a) - set(b)))} too many, {sorted(map(str, set(b) - set(a)))} too few"
        return next((first_difference(a[k], b[k], f"{where}.{k}") for k in a if a[k] != b[k]), "nothing")
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return next((first_difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b)) if x != y), "nothing")
    return f"{where or 'it'} is {str(a)[:80]}, expected {str(b)[:80]}"


# ---- unified Hugging Face folders
def folder(path):
    """{name: tensor} of all files."""
    out = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            out.update(load_file(os.path.join(path, name)))
    return out


def exports(ours, theirs, tolerance, differ=None, shapes=True):
    """Tensors of two exports: names, types, shapes, bytes. Calibrated scales of inputs, keys and values within the tolerance.

    `differ(name)`: tensors that differ for a reason; `shapes`: whether those of calibrated scales must agree, `[]` or `[1]`. Returns (quantized bytes, equal tensors, input scales, worst, excused).
    """
    a, b = folder(ours), folder(theirs)
    bad = [f"`{k}` is missing" for k in b if k not in a] + [f"`{k}` is surplus" for k in a if k not in b]
    packed = same = inputs = excused = 0
    worst = 0.0
    for k in sorted(a.keys() & b.keys()):
        x, y = a[k], b[k]
        if differ and differ(k):
            excused += not equal_bits(x, y)
        elif k.endswith(("input_scale", "k_scale", "v_scale")):
            inputs, worst = inputs + 1, max(worst, near(x.reshape(-1), y.reshape(-1)))
            if x.dtype != y.dtype or (shapes and x.shape != y.shape):
                bad.append(f"`{k}`: {x.dtype} {list(x.shape)}, expected {y.dtype} {list(y.shape)}")
            elif not near(x.reshape(-1), y.reshape(-1)) <= tolerance:
                bad.append(f"`{k}`: {float(x):.6g}, expected {float(y):.6g}")
        elif x.shape != y.shape or (x.dtype != y.dtype and k.split(".")[-1] not in WIDER):
            bad.append(f"`{k}`: {x.dtype} {list(x.shape)}, expected {y.dtype} {list(y.shape)}")
        elif not (equal_bits(x, y) or x.dtype != y.dtype and torch.equal(x.float(), y.float())):
            n = int((x.flatten().view(torch.uint8) != y.flatten().view(torch.uint8)).sum()) if x.dtype == y.dtype else -1
            bad.append(f"`{k}`: {n} bytes differ")
        else:
            same += 1
            packed += x.numel() if x.dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn) else 0
    problems(bad)
    return packed, same, inputs, worst, excused


def configs(ours, theirs):
    """hf_quant_config.json and config.json's quantization_config, as JSON. Returns whether the reference wrote them."""
    bad, load = [], lambda d, name: json.load(open(os.path.join(d, name)))
    if not os.path.exists(os.path.join(theirs, "hf_quant_config.json")):
        return False
    pairs = [(load(d, "hf_quant_config.json"), load(d, "config.json").get("quantization_config")) for d in (ours, theirs)]
    for name, a, b in zip(("hf_quant_config.json", "quantization_config"), *pairs):
        if a != b:
            bad.append(f"{name}: " + first_difference(a, b))
    problems(bad)
    return True


def damaged(root, out, key, change):
    """A copy of a torch_dist folder with one item replaced: `change` maps the tensor, or the dict of an extra state."""
    import shutil
    shutil.copytree(root, out)
    folder_ = compare.inner_folder(out)
    metadata = FileSystemReader(folder_).read_metadata()
    index = next(i for i in metadata.storage_data if i.fqn == key)
    info, about = metadata.storage_data[index], metadata.state_dict_metadata[key]
    with open(os.path.join(folder_, info.relative_path), "rb") as f:
        f.seek(info.offset)
        raw = f.read(info.length)
    if change is None:              # drop it
        del metadata.storage_data[index], metadata.state_dict_metadata[key]
    else:
        buffer = io.BytesIO()
        if isinstance(about, BytesStorageMetadata):
            inner = io.BytesIO()
            torch.save(change(unpacked(raw)), inner)
            torch.save(torch.frombuffer(bytearray(inner.getvalue()), dtype=torch.uint8), buffer)
        else:
            torch.save(change(torch.load(io.BytesIO(raw), weights_only=True)), buffer)
        with open(os.path.join(folder_, info.relative_path), "r+b") as f:
            info.offset, info.length = f.seek(0, 2), len(buffer.getvalue())
            f.write(buffer.getvalue())
    write_metadata(folder_, metadata)
    return out


def write_metadata(folder_, metadata):
    with open(os.path.join(folder_, ".metadata"), "wb") as f:
        pickle.dump(metadata, f)
