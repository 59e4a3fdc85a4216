#!/usr/bin/env python3
"""Writes the checkpoint that docs/torch_dist.md takes apart, and checks that the page shows its bytes and that Megatron loads it.

    worked_example.py OUT        one bfloat16 tensor `w` [2, 3] and one empty extra state
"""
import argparse
import os
import struct
import sys

import handmade as h

HERE = os.path.dirname(os.path.abspath(__file__))


def dump(data):
    """The hex dump as the page shows it."""
    rows = []
    for i in range(0, len(data), 16):
        row = data[i:i + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        rows.append(f"{i:03x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text}")
    return "\n".join(rows)


def write(out):
    """Returns the two items of the data file."""
    options = argparse.Namespace(minimal=True, align=64)
    values = b"".join(struct.pack(">f", x)[1::-1] for x in (1, 2, 3, 4, 5, 6))       # bfloat16, little-endian
    state = h.torch_save(h.p_list([b"N"]), [], options)
    tensor = h.torch_save(h.p_tensor("bfloat16", [2, 3]), [("0", values)], options)
    chunk = h.p_inst(h.M, "ChunkStorageMetadata", [("offsets", h.p_size([0, 0])), ("sizes", h.p_size([2, 3]))])
    tensors = [(h.p_str("a._extra_state/shard_0_1"), h.p_glob(h.M, "BytesStorageMetadata") + b")\x81"),
               (h.p_str("w"), h.p_inst(h.M, "TensorStorageMetadata", [
                   ("properties", h.properties("bfloat16")), ("size", h.p_size([2, 3])), ("chunks", h.p_list([chunk]))]))]
    storage = []
    for index, offset, length in (([("fqn", h.p_str("a._extra_state/shard_0_1"))], 0, len(state)),
                                  ([("fqn", h.p_str("w")), ("offset", h.p_size([0, 0]))], len(state), len(tensor))):
        info = [("relative_path", h.p_str("__0_0.distcp")), ("offset", h.p_int(offset)), ("length", h.p_int(length))]
        storage.append((h.p_inst(h.M, "MetadataIndex", index), h.p_inst("torch.distributed.checkpoint.filesystem", "_StorageInfo", info)))
    files = {"__0_0.distcp": state + tensor, "common.pt": h.torch_save(h.p_dict([]), [], options),
             ".metadata": h.finish(h.p_inst(h.M, "Metadata", [("state_dict_metadata", h.p_dict(tensors)), ("storage_data", h.p_dict(storage))])),
             "metadata.json": b'{"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}'}
    os.makedirs(out, exist_ok=True)
    for name, data in files.items():
        with open(os.path.join(out, name), "wb") as f:
            f.write(data)
    return state, tensor


def main(out):
    state, tensor = write(out)
    page = open(os.path.join(HERE, "..", "docs", "torch_dist.md")).read()
    for name, item in (("extra state", state), ("tensor", tensor)):
        if dump(item) not in page:
            print(f"docs/torch_dist.md does not show the {name} item:\n{dump(item)}")
            return 1
    import megatron_cpu as M
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
    M.init()
    request = {"w": ShardedTensor.from_rank_offsets("w", torch.zeros(2, 3, dtype=torch.bfloat16)),
               "a": ShardedObject("a._extra_state", 0, (1,), (0,))}
    got = M.dc.load(request, out, strict="raise_all")
    if got["w"].tolist() != [[1, 2, 3], [4, 5, 6]] or got["a"] is not None:
        print(f"loaded {got}")
        return 1
    print("worked example: shown as written, loaded with every value equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
