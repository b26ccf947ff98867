#!/usr/bin/env python3
"""New random models, made by transformers from a seed, against mestar as it is now (make test-reference SEED=n).

    live.py [--seed N] [--count N] [--program ./mestar] [--keep FOLDER]

For each configuration: mestar's `compare` on every legal mesh must say yes, and what it dumps is checked here again; its logits must be
no further from its fp64 evaluation than twice transformers' own error (root mean squares); and what mestar writes must be loaded by
transformers without a missing or unexpected tensor and give the same logits, bit for bit."""
import argparse, math, os, random, shutil, subprocess, sys, tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_reference as mr
import numpy as np
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from transformers import NemotronHForCausalLM

passed = failed = 0


def verdict(good, name, why=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print(f"ok {name}" if good else f"FAIL {name}: {why}", flush=True)
    return good


def draw(seed):
    """A configuration that make_reference.build understands, and how its folder shall be spelled."""
    r = random.Random(seed)
    pick = r.choice
    divisor = lambda n: pick([d for d in range(1, n + 1) if n % d == 0])
    kinds = list("M*-E") + [pick("MM*-EE") for _ in range(r.randint(0, 3))]
    r.shuffle(kinds)
    heads, mamba = pick([4, 6, 8, 12]), pick([6, 8, 12])
    experts = pick([4, 6, 8, 12])
    groups = pick([1, 1] + [g for g in range(2, experts // 2 + 1) if experts % g == 0])
    kept = r.randint(1, groups)
    biased = r.random() < 0.25
    keys = dict(
        vocab_size=r.randint(50, 140), hidden_size=r.randint(18, 44), num_attention_heads=heads, num_key_value_heads=divisor(heads),
        head_dim=pick([3, 4, 8, 11]), intermediate_size=r.randint(20, 70), mamba_num_heads=mamba, mamba_head_dim=pick([3, 4, 8]),
        n_groups=divisor(mamba), ssm_state_size=pick([4, 7, 16]), conv_kernel=pick([2, 3, 4]), chunk_size=pick([4, 8, 13, 64]),
        n_routed_experts=experts, n_group=groups, topk_group=kept, num_experts_per_tok=r.randint(1, min(5, kept * experts // groups)),
        moe_intermediate_size=r.randint(9, 30), moe_shared_expert_intermediate_size=r.randint(9, 40),
        moe_latent_size=pick([None, r.randint(7, 20)]), norm_topk_prob=r.random() < 0.7, routed_scaling_factor=pick([1.0, 2.5, 5.0]),
        use_bias=biased, mlp_bias=r.random() < 0.25, use_conv_bias=r.random() < 0.8, layer_norm_epsilon=pick([1e-5, 1e-6]))
    B, T = pick([1, 2, 2, 4]), pick([1, 2, 3, 7, 17, 31, 37, 50, 65]) + 1
    spec = mr.case("".join(kinds), B=B, T=T, **keys)
    padding = pick(["none", "none", "left", "right", "ignore"])
    if padding == "left" and not biased: spec["pad"] = [r.randint(0, T - 2) for _ in range(B)]
    if padding == "right": spec["lengths"] = [r.randint(2, T) for _ in range(B)]
    if padding == "ignore" and T > 8: spec["ignore"] = True
    if r.random() < 0.2: spec["limit"] = (0.01, 0.3)
    if r.random() < 0.4: spec["store"] = pick([torch.bfloat16, torch.float16])
    return spec, pick(["hub", "shards", "transformers", "singular"])


def steady(folder, spec, ref):
    """Whether the reference is worth its digits: weights changed in the last bit must not move a gradient by a third of the tolerance. It is
    not where, say, a norm over four numbers meets almost nothing, or one expert's weight is normalised to 1 and its true gradient is 0."""
    model, _ = load(folder)
    clamp = spec.get("limit", (0.0, math.inf))
    mr.clamp_time_step(model, *clamp)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1 + 2.0**-24 * torch.randn(p.shape, generator=g))
    t = {k: torch.from_numpy(v) for k, v in ref.items() if k in ("input_ids", "labels", "attention_mask")}
    lg, loss, grads = mr.evaluate(model, t["input_ids"], t["labels"], t.get("attention_mask"))
    moved = dict(logits=lg.numpy(), loss=loss.numpy()) | {"grad." + k: v.numpy() for k, v in grads.items()}
    return distances(moved, ref)[2] < 3e-4


def respell(folder, spelling):
    path = os.path.join(folder, "model.safetensors")
    if spelling in ("hub",): return
    if spelling == "singular":
        t = load_file(path)
        t["backbone.embedding.weight"] = t.pop("backbone.embeddings.weight")
        save_file(t, path, metadata={"format": "pt"})
        return
    model = NemotronHForCausalLM.from_pretrained(folder, dtype="auto")
    os.remove(path)
    if spelling == "shards": model.save_pretrained(folder, max_shard_size="40KB")
    else: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, metadata={"format": "pt"})


class Mestar:
    def __init__(self, program, folder):
        found = dict(l.strip().split(" := ", 1) for l in open("build/found.mk") if " := " in l)
        self.launch = [os.environ.get("MPIRUN") or found["MPIRUN"]]
        if found["MPI_KIND"] == "openmpi": self.launch += ["--oversubscribe", "--bind-to", "none"]
        self.program, self.folder = program, folder
        self.env = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        if not shutil.which("ssh"): self.env["OMPI_MCA_plm_rsh_agent"] = ""

    def __call__(self, mode, ranks=1, deck="", **keys):
        path = os.path.join(self.folder, "deck.yaml")
        with open(path, "w") as f: f.write(f"run:\n  mode: {mode}\n{deck}")
        command = [self.program, path, "run.output=" + os.path.join(self.folder, "output")]
        command += [f"{k.replace('__', '.')}={str(v).lower() if isinstance(v, bool) else v}" for k, v in keys.items()]
        p = subprocess.run((self.launch + ["-n", str(ranks)] if ranks > 1 else []) + command, env=self.env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=300)
        shutil.rmtree(os.path.join(self.folder, "last"), ignore_errors=True)
        if os.path.isdir(os.path.join(self.folder, "output")):
            os.rename(os.path.join(self.folder, "output"), os.path.join(self.folder, "last"))
        return p.returncode, p.stdout


def legal(c, n):
    share = lambda k: k % n == 0 or n % k == 0
    return c["num_attention_heads"] % n == 0 and c["mamba_num_heads"] % n == 0 and share(c["num_key_value_heads"]) and share(c["n_groups"])


def distances(got, ref):
    """Worst logit, loss and gradient, each relative to its tensor's largest entry (gradients: at least 1e-6 of the largest of all)."""
    keep = ref["attention_mask"].astype(bool) if "attention_mask" in ref else np.ones(ref["input_ids"].shape, bool)
    far = lambda a, b, scale: float(np.abs(a.astype(np.float64) - b).max() / scale) if np.isfinite(a).all() else math.inf
    logits = far(got["logits"][keep], ref["logits"][keep], np.abs(ref["logits"]).max())
    loss = far(got["loss"], ref["loss"], abs(float(ref["loss"])))
    names = {k for k in ref if k.startswith("grad.")}
    if names != {k for k in got if k.startswith("grad.")}: return logits, loss, math.inf
    least = 1e-6 * max(np.abs(ref[k]).max() for k in names)
    return logits, loss, max(far(got[k], ref[k], max(np.abs(ref[k]).max(), least)) for k in names)


def load(folder):
    """A folder as transformers loads it, computing in fp32; and what it missed or did not expect. The weights are copied away from the
    mapped file, because torch rounds otherwise for addresses of another alignment."""
    model, info = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       experts_implementation="eager", output_loading_info=True)
    for p in [*model.parameters(), *model.buffers()]: p.data = p.data.clone()
    return model.eval(), {k: v for k, v in info.items() if v}


def logits(model, ids):
    with torch.no_grad(): return model(ids, use_cache=False).logits


def check_compare(name, mestar, folder, spec, reference, work):
    ref = load_numpy(reference)
    dump = os.path.join(work, "dump.safetensors")
    keys = dict(model__from=folder, compare__reference=reference, compare__dump=dump)
    meshes = [(t, d, s) for t in (1, 2, 3, 4) if legal(spec["config"], t) for s in ((False, True) if t > 1 else (False,))
              for d in ((1, 2) if spec["B"] % 2 == 0 else (1,))]
    ours = {}
    for t, d, s in meshes:
        code, said = mestar("compare", t * d, parallel__tensor=t, parallel__data=d, parallel__sequence=s, **keys)
        mesh = f"{name} tensor {t} data {d} sequence {str(s).lower()}"
        if not verdict(code == 0, mesh, f"exit code {code}: {said[-600:]}"): continue
        got = load_numpy(dump)
        far = distances(got, ref)
        verdict(far[0] <= 1e-4 and far[1] <= 1e-5 and far[2] <= 1e-3, mesh + " dump", f"logits, loss, gradients {far}")
        ours[t, d, s] = got["logits"]
        os.remove(dump)
    code, said = mestar("compare", precision__recipe="fp64", **keys)
    if not verdict(code == 0, f"{name} fp64", f"exit code {code}: {said[-600:]}"): return
    truth = load_numpy(dump)["logits"].astype(np.float64)
    keep = ref["attention_mask"].astype(bool) if "attention_mask" in ref else np.ones(ref["input_ids"].shape, bool)
    off = lambda x: math.sqrt(np.mean(((x - truth)[keep]) ** 2))
    for mesh, got in ours.items():
        verdict(off(got) <= 2 * off(ref["logits"]), f"{name} near the truth {mesh}",
                f"{off(got):.1e} from the fp64 evaluation, transformers {off(ref['logits']):.1e}")


def check_saved(name, mestar, folder, before, spec, work):
    """before: the folder as transformers loaded it under the hub's names."""
    ids = torch.randint(3, spec["config"]["vocab_size"], (2, 23), generator=torch.Generator().manual_seed(5))
    want, state = logits(before, ids), before.state_dict()
    out = os.path.join(work, "saved")
    for what, ranks, keys in (("hub names", 1, {}), ("transformers names", 2, dict(convert__names="transformers")), ("two ranks", 2, {})):
        shutil.rmtree(out, ignore_errors=True)
        code, said = mestar("convert", ranks, model__from=folder, convert__to=out, **keys)
        if not verdict(code == 0, f"{name} convert, {what}", f"exit code {code}: {said[-600:]}"): continue
        after, info = load(out)
        same = torch.equal(logits(after, ids), want)
        verdict(same and not info, f"{name} loaded by transformers, {what}", f"logits {'same' if same else 'differ'}, {info}")
    for dtype, torch_dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        shutil.rmtree(out, ignore_errors=True)
        code, said = mestar("convert", 1, model__from=folder, convert__to=out, convert__dtype=dtype)
        if not verdict(code == 0, f"{name} convert to {dtype}", f"exit code {code}: {said[-600:]}"): continue
        stored = load_file(os.path.join(out, "model.safetensors"))
        off = [k for k, v in stored.items() if v.dtype != (torch.float32 if k.endswith("correction_bias") else torch_dtype)]
        after, info = load(out)
        now = after.state_dict()
        off += [k for k, v in state.items() if not torch.equal(now[k], v if k.endswith("correction_bias") else v.to(torch_dtype).float())]
        verdict(not off and not info, f"{name} rounded to {dtype} as torch does", f"{off[:3]} {info}")
    code, said = mestar("train", 2, deck="train:\n  steps: 0\n  sequence_length: 16\n", model__from=folder)
    if verdict(code == 0, f"{name} train.steps=0", f"exit code {code}: {said[-600:]}"):
        after, info = load(os.path.join(work, "last/checkpoints/step-00000000"))
        verdict(torch.equal(logits(after, ids), want) and not info, f"{name} saved by train.steps=0", f"logits differ or {info}")


def check_new(name, mestar, spec, work, seed):
    """A model that mestar made: transformers loads it, and compare agrees on it."""
    c = spec["config"]
    text = "".join(f"  {k}: {str(v).lower() if isinstance(v, bool) else repr(v) if not isinstance(v, str) else chr(34) + v + chr(34)}\n"
                   for k, v in c.items() if v is not None and not k.endswith("token_id"))
    code, said = mestar("train", 2, deck=f"model:\n{text}train:\n  steps: 0\n  sequence_length: 16\n", run__seed=seed)
    if not verdict(code == 0, f"{name} new model", f"exit code {code}: {said[-600:]}"): return
    folder = os.path.join(work, "new")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(os.path.join(work, "last/checkpoints/step-00000000"), folder)
    model, info = load(folder)
    verdict(not info, f"{name} new model loaded by transformers", str(info))
    mr.clamp_time_step(model, 0.0, math.inf)
    ids, labels, mask, _ = mr.draw_inputs(model, dict(B=2, T=19), torch.Generator().manual_seed(seed))
    lg, loss, grads = mr.evaluate(model, ids, labels, mask)
    ref = os.path.join(folder, "reference.safetensors")
    save_file(dict(input_ids=ids, labels=labels, logits=lg.contiguous(), loss=loss) | {"grad." + k: v.contiguous() for k, v in grads.items()}, ref)
    code, said = mestar("compare", 1, model__from=folder, compare__reference=ref)
    verdict(code == 0, f"{name} new model compared", f"exit code {code}: {said[-600:]}")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--count", type=int, default=6)
    a.add_argument("--program", default="./mestar")
    a.add_argument("--keep", help="make the folders here and leave them")
    a = a.parse_args()
    torch.set_num_threads(2)
    top = a.keep or tempfile.mkdtemp()
    try:
        for i in range(a.count):
            name = f"{a.seed}.{i}"
            work = os.path.join(top, name)
            folder, reference = os.path.join(work, "model"), os.path.join(work, "reference.safetensors")
            for attempt in range(20):
                number = 100000 * attempt + 1000 * a.seed + i
                spec, spelling = draw(number)
                os.makedirs(work, exist_ok=True)
                mr.build("model", spec, number, work)
                os.replace(os.path.join(folder, "reference.safetensors"), reference)
                if steady(folder, spec, load_numpy(reference)): break
                shutil.rmtree(work)
            mestar = Mestar(a.program, work)
            shown = {k: v for k, v in spec["config"].items() if mr.BASE.get(k) != v}
            print(f"-- {name}: {spelling}, {({k: v for k, v in spec.items() if k != 'config'})}, {shown}", flush=True)
            before, _ = load(folder)
            respell(folder, spelling)
            check_compare(name, mestar, folder, spec, reference, work)
            check_saved(name, mestar, folder, before, spec, work)
            check_new(name, mestar, spec, work, a.seed + i)
    finally:
        if not a.keep: shutil.rmtree(top)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__": main()
