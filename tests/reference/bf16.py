#!/usr/bin/env python3
"""The recipe bf16 against transformers in bf16 (model.to(torch.bfloat16)): whose logits are nearer to the fp32 answer?

    bf16.py [--seeds N] [--program ./mestar]

For random models of two kinds, dense and with experts, prints for each seed the root mean square of either error, relative to that of the
logits. The median of mestar's over the seeds must not be larger. Single seeds say little where there are experts: rounding makes a token
choose another one, in either program, and then its logits are off by a tenth."""
import argparse, copy, math, os, sys, tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_reference as mr
import live
import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

WIDE = dict(vocab_size=256, hidden_size=96, num_attention_heads=8, num_key_value_heads=2, head_dim=16, intermediate_size=256,
            mamba_num_heads=12, mamba_head_dim=16, n_groups=2, ssm_state_size=16, chunk_size=16, n_routed_experts=16,
            num_experts_per_tok=4, moe_intermediate_size=64, moe_shared_expert_intermediate_size=96)
KINDS = {"dense": mr.case("M-M*-M-M*-", T=96, **WIDE), "experts": mr.case("MEM*EME*E", T=96, moe_latent_size=48, **WIDE)}


def off(x, truth):
    return math.sqrt(np.mean((x.astype(np.float64) - truth) ** 2) / np.mean(truth.astype(np.float64) ** 2))


def one(kind, spec, seed, program, work):
    g = torch.Generator().manual_seed(seed)
    model = mr.make_model(spec["config"])
    mr.draw_parameters(model, g)
    mr.clamp_time_step(model, 0.0, math.inf)
    folder, reference, dump = (os.path.join(work, f) for f in ("model", "reference.safetensors", "dump.safetensors"))
    model.save_pretrained(folder)
    ids = torch.randint(3, spec["config"]["vocab_size"], (spec["B"], spec["T"]), generator=g)
    truth = live.logits(model, ids)
    save_file(dict(input_ids=ids, labels=ids.clone(), logits=truth.contiguous()), reference)
    low = copy.deepcopy(model).to(torch.bfloat16)
    mr.clamp_time_step(low, 0.0, math.inf)
    theirs = live.logits(low, ids).float().numpy()
    code, said = live.Mestar(program, work)("compare", model__from=folder, compare__reference=reference, compare__dump=dump,
                                            compare__tolerance="[1e5, 1e5, 1e5]", precision__recipe="bf16")
    if code: raise SystemExit(f"{kind} {seed}: exit code {code}: {said[-600:]}")
    return off(load_file(dump)["logits"], truth.numpy()), off(theirs, truth.numpy())


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seeds", type=int, default=8)
    a.add_argument("--program", default="./mestar")
    a = a.parse_args()
    torch.set_num_threads(1)
    bad = 0
    for kind, spec in KINDS.items():
        pairs = []
        for seed in range(1, a.seeds + 1):
            with tempfile.TemporaryDirectory() as work: pairs.append(one(kind, spec, seed, a.program, work))
            print(f"   {kind} seed {seed}: mestar {pairs[-1][0]:.5f}, transformers {pairs[-1][1]:.5f}", flush=True)
        ours, theirs = np.median(np.array(pairs), 0)
        good = ours <= theirs
        bad += not good
        print(f"{'ok' if good else 'FAIL'} bf16 {kind}: median of {a.seeds}: mestar {ours:.5f}, transformers {theirs:.5f}")
    sys.exit(bad != 0)


if __name__ == "__main__": main()
