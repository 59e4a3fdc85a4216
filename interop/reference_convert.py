"""Times the reference importer on CPU, one rank: builds the megatron-core model, runs ModelOpt's import, saves torch_dist.

    reference_convert.py HF_DIR OUT        prints the seconds of build, import and save
"""
import os
import sys
import time
os.environ.setdefault("RANK", "0"); os.environ.setdefault("WORLD_SIZE", "1"); os.environ.setdefault("LOCAL_RANK", "0")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1"); os.environ.setdefault("MASTER_PORT", "29791")
t = [time.time()]
import megatron_cpu as m
m.init()
import torch
c = m.load_hf_config(sys.argv[1])
model = m.build(c, spec="te")
model = model[0] if isinstance(model, (tuple, list)) else model
t.append(time.time())
from modelopt.torch.export import import_mcore_gpt_from_hf
import_mcore_gpt_from_hf(model, sys.argv[1], dtype=torch.bfloat16, moe_router_dtype="fp32")
t.append(time.time())
from megatron.core import dist_checkpointing
os.makedirs(sys.argv[2] + "/release", exist_ok=True)
dist_checkpointing.save(model.sharded_state_dict(metadata=m.content_metadata()), sys.argv[2] + "/release")
os.sync(); t.append(time.time())
print("build %.1f s, import %.1f s, save %.1f s" % (t[1] - t[0], t[2] - t[1], t[3] - t[2]))
