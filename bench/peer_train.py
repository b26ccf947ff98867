#!/usr/bin/env python3
"""Training steps of a model folder by transformers, as make bench times them.

    peer_train.py FOLDER --length 512 --batch 4 --steps 6 --dtype fp32|bf16 --threads 2

Weights and optimiser (AdamW, clipping) in fp32; bf16 is autocast over them, as transformers is used. Prints a line after the first
step, and at the end one JSON object: seconds of each step."""
import argparse, json, os, time

p = argparse.ArgumentParser()
p.add_argument("folder")
p.add_argument("--length", type=int, default=512)
p.add_argument("--batch", type=int, default=4)
p.add_argument("--steps", type=int, default=6)
p.add_argument("--dtype", default="fp32")
p.add_argument("--threads", type=int, default=1)
p.add_argument("--clock", default="wall", help="cpu: processor time")
a = p.parse_args()
os.environ.update(OMP_NUM_THREADS=str(a.threads), CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import torch
from transformers.models.nemotron_h import NemotronHForCausalLM

torch.set_num_threads(a.threads)
model = NemotronHForCausalLM.from_pretrained(a.folder, dtype=torch.float32).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
words = model.config.vocab_size
draw = torch.Generator().manual_seed(1)
seconds, now = [], time.process_time if a.clock == "cpu" else time.perf_counter
for step in range(a.steps):
    began = now()
    x = torch.randint(0, words, (a.batch, a.length + 1), generator=draw)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
        logits = model(input_ids=x[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.float().view(-1, words), x[:, 1:].reshape(-1)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(now() - began)
    if step == 0: print("first step done", flush=True)
print(json.dumps({"step_seconds": seconds}))
