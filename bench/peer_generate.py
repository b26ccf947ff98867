#!/usr/bin/env python3
"""Generation with a model folder by transformers, as make bench times it.

    peer_generate.py FOLDER --prompt 512 --new 128 --batch 1 --dtype fp32|bf16 --threads 2

The decoding loop is written out, which is at least as fast as generate(). One round to warm up with a few tokens, one that counts.
Prints one JSON object: tokens a second of prefill and of decoding."""
import argparse, json, os, time

p = argparse.ArgumentParser()
p.add_argument("folder")
p.add_argument("--prompt", type=int, default=512)
p.add_argument("--new", type=int, default=128)
p.add_argument("--batch", type=int, default=1)
p.add_argument("--dtype", default="fp32")
p.add_argument("--threads", type=int, default=1)
a = p.parse_args()
os.environ.update(OMP_NUM_THREADS=str(a.threads), CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import torch
from transformers.models.nemotron_h import NemotronHForCausalLM

torch.set_num_threads(a.threads)
model = NemotronHForCausalLM.from_pretrained(a.folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype]).eval()
x = torch.randint(3, model.config.vocab_size, (a.batch, a.prompt), generator=torch.Generator().manual_seed(1))


def round(new):
    began = time.perf_counter()
    out = model(x, use_cache=True, logits_to_keep=1)
    filled = time.perf_counter()
    for _ in range(new - 1):
        word = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(word, past_key_values=out.past_key_values, use_cache=True)
    return filled - began, time.perf_counter() - filled


with torch.inference_mode():
    round(4)
    prefill, decode = round(a.new)
print(json.dumps({"prefill": a.batch * a.prompt / prefill, "decode": a.batch * (a.new - 1) / decode}))
