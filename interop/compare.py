"""Reads safetensors folders and torch_dist files and compares them, with the Python standard library only.

It shares no code with Longshore and none with mapping.py, so that an agreement between them means something.
"""
import io
import json
import os
import pickle
import struct
import zipfile

WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "U8": 1}


def safetensors_folder(folder):
    """{name: (dtype, shape, path, start, end)} of all tensors; raises ValueError when files and index disagree."""
    tensors, of_file = {}, {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        path = os.path.join(folder, name)
        with open(path, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            head = json.loads(f.read(n))
        head.pop("__metadata__", None)
        end = 8 + n
        for key, t in sorted(head.items(), key=lambda kv: kv[1]["data_offsets"]):
            lo, hi = (8 + n + x for x in t["data_offsets"])
            size = WIDTH[t["dtype"]]
            for d in t["shape"]:
                size *= d
            if key in tensors or lo != end or hi - lo != size:
                raise ValueError(f"{path}: `{key}` is doubled, out of place or of a wrong length")
            tensors[key], of_file[key], end = (t["dtype"], t["shape"], path, lo, hi), name, hi
        if end != os.path.getsize(path):
            raise ValueError(f"{path}: {os.path.getsize(path) - end} bytes behind the last tensor")
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        listed = json.load(open(index))["weight_map"]
        if listed != of_file:
            raise ValueError(f"{index} does not list what the files hold")
    elif set(of_file.values()) - {"model.safetensors"}:
        raise ValueError(f"{folder}: several files and no index")
    return tensors


def payload(t):
    with open(t[2], "rb") as f:
        f.seek(t[3])
        return f.read(t[4] - t[3])


def round_bf16(data):
    """float32 bytes to bfloat16 bytes, to nearest even (finite values)."""
    words = struct.unpack(f"<{len(data) // 4}I", data)
    return struct.pack(f"<{len(words)}H", *(((w + 0x7FFF + (w >> 16 & 1)) >> 16) & 0xFFFF for w in words))


def widen(data):
    """bfloat16 bytes to float32 bytes."""
    return b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))


def folders(want_dir, got_dir, rounded=()):
    """(tensors equal, tensors equal to the rounded source, problems). Order: names, dtypes, shapes, bytes.

    `rounded`: last name components of float32 tensors that the reference itself stored as bfloat16; these must equal the
    source rounded to bfloat16, stored in either dtype.
    """
    try:
        want, got = safetensors_folder(want_dir), safetensors_folder(got_dir)
    except (ValueError, KeyError, struct.error) as e:
        return 0, 0, [str(e)]
    bad = [f"`{k}` is missing" for k in want if k not in got] + [f"`{k}` is surplus" for k in got if k not in want]
    equal = lossy = 0
    for key in sorted(want.keys() & got.keys()):
        (dtype, shape, *_), (dtype2, shape2, *_) = want[key], got[key]
        if shape != shape2:
            bad.append(f"`{key}`: shape {shape2}, expected {shape}")
        elif dtype == "F32" and key.split(".")[-1] in rounded:
            low = round_bf16(payload(want[key]))
            if payload(got[key]) == {"BF16": low, "F32": widen(low)}.get(dtype2):
                lossy += 1
            else:
                bad.append(f"`{key}`: differs from the source rounded to bfloat16")
        elif dtype != dtype2:
            bad.append(f"`{key}`: dtype {dtype2}, expected {dtype}")
        elif payload(want[key]) != payload(got[key]):
            bad.append(f"`{key}`: bytes differ")
        else:
            equal += 1
    return equal, lossy, bad


class _Opaque:
    """Stands for every class that a .metadata pickle names."""

    def __new__(cls, *args):
        self = object.__new__(cls)
        self.args, self.state = args, {}
        return self

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.state = state

    def __hash__(self):
        return id(self)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return type(name, (_Opaque,), {})


def inner_folder(root):
    tracker = os.path.join(root, "latest_checkpointed_iteration.txt")
    if not os.path.exists(tracker):
        return root
    it = open(tracker).read().strip()
    return os.path.join(root, it if it == "release" else f"iter_{int(it):07d}")


def keys(root):
    """(tensor keys, object keys) of a checkpoint, from its .metadata."""
    with open(os.path.join(inner_folder(root), ".metadata"), "rb") as f:
        entries = _Unpickler(f).load().state["state_dict_metadata"]
    kind = lambda name: sorted(k for k, v in entries.items() if type(v).__name__ == name)
    return kind("TensorStorageMetadata"), kind("BytesStorageMetadata")


def items(root):
    """[(file, offset, length, key)] of a checkpoint, from its .metadata."""
    with open(os.path.join(inner_folder(root), ".metadata"), "rb") as f:
        storage = _Unpickler(f).load().state["storage_data"]
    return sorted((i.state["relative_path"], i.state["offset"], i.state["length"], m.state["fqn"]) for m, i in storage.items())


def zip_items(root):
    """Problems of the data files: gaps, overlaps, and items that are no intact zip archive (every CRC is checked)."""
    bad, folder, rows = [], inner_folder(root), items(root)
    for name in sorted(x for x in os.listdir(folder) if x.endswith(".distcp")):
        end, path = 0, os.path.join(folder, name)
        with open(path, "rb") as f:
            for _, offset, length, key in (r for r in rows if r[0] == name):
                if offset != end:
                    bad.append(f"{name}: `{key}` begins at {offset}, the item before it ends at {end}")
                f.seek(offset)
                try:
                    broken = zipfile.ZipFile(io.BytesIO(f.read(length))).testzip()
                except (zipfile.BadZipFile, OSError) as e:
                    broken = str(e)
                if broken:
                    bad.append(f"{name}: `{key}` at {offset}: {broken}")
                end = offset + length
        if end != os.path.getsize(path):
            bad.append(f"{name}: {os.path.getsize(path)} bytes, the items end at {end}")
    return len(rows), bad
