#!/usr/bin/env python3
"""Prints what Megatron would find in common.pt, as JSON: read with torch.load(weights_only=True) after importing megatron.core.

    common_state.py CKPT/release/common.pt
"""
import argparse
import json
import sys


def main():
    import megatron_cpu                                                                         # noqa: F401
    import torch
    state = torch.load(sys.argv[1], weights_only=True)
    args = state["args"]
    if type(args) is not argparse.Namespace:
        sys.exit(f"FAIL: args is {type(args)}")
    rest = {k: v for k, v in state.items() if k != "args"}
    print(json.dumps({"args": vars(args), "rest": rest}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
