#!/usr/bin/env python3
"""Random nemotron_h models by Hugging Face transformers, with what they compute: the truth that mestar is compared with.

    make_reference.py OUT [--case NAME,NAME|all] [--seed N] [--only-greedy]

For every case OUT/<case>/ receives
    config.json, model.safetensors    as save_pretrained writes them
    reference.safetensors             input_ids, labels [B,T] int64 (shifted inside the loss, -100 ignored), attention_mask [B,T]
                                      where there is padding, logits [B,T,V], loss, grad.<tensor name in model.safetensors>
    greedy.jsonl                      for some cases: {"ids": prompt, "tokens": the 16 likeliest tokens, one after the other} a line,
                                      for prompts of different lengths (--only-greedy makes it anew for the models that are in OUT)

Every parameter is drawn so that it matters (norms, biases, A_log, D, dt_bias, router bias too), and token ids are drawn again until
no routing decision is a near tie, so that rounding cannot choose another expert. The time step is clamped to the configuration's
time_step_limit, as NVIDIA's code does, and not to [time_step_min, inf) as transformers does by itself.

The committed folders beside this file are `make_reference.py tests/reference --seed 1`; live.py draws new configurations.
"""
import argparse, copy, json, math, os, shutil, tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from safetensors.torch import load_file, save_file
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

# 12 heads of either kind can be split over 2, 3, 4 and 6 ranks; the widths (37, 19, 23) and the vocabulary divide by none.
BASE = dict(
    vocab_size=101, hidden_size=30, num_attention_heads=12, num_key_value_heads=1, head_dim=4, intermediate_size=37,
    ssm_state_size=6, mamba_num_heads=12, mamba_head_dim=4, n_groups=1, conv_kernel=4, chunk_size=8,
    max_position_embeddings=256, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=19,
    moe_shared_expert_intermediate_size=23, routed_scaling_factor=2.5, norm_topk_prob=True, n_group=1, topk_group=1,
    layer_norm_epsilon=1e-5, initializer_range=0.02, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    tie_word_embeddings=False)


def case(pattern, B=2, T=37, **keys):
    """pad: masked positions at the start of each row; lengths: real tokens of each row, the rest masked at the end; ignore: leave
    some labels out; store: dtype of the saved model; mtp: add an MTP head's tensors; dt_shift: smaller time steps."""
    own = {k: keys.pop(k) for k in ("pad", "lengths", "ignore", "store", "mtp", "dt_shift", "limit") if k in keys}
    return dict(config={**BASE, "hybrid_override_pattern": pattern, **keys}, B=B, T=T, **own)


CASES = {
    # Nemotron-H: dense hybrid, several chunks and an incomplete one, MQA, one SSM group (shared by every tensor rank)
    "dense": case("M-M*-M-"),
    # GQA 4:1, fewer SSM groups than heads; tensor 4 shares both between two ranks
    "gqa": case("M*-M*", num_attention_heads=8, num_key_value_heads=2, mamba_num_heads=8, n_groups=2),
    # three KV heads and three SSM groups: tensor 3 splits them, tensor 6 and 12 share them
    "groups3": case("M*-M", num_key_value_heads=3, n_groups=3, mamba_num_heads=12, T=41),
    # as many groups and KV heads as heads: each split alone; exact multiple of the chunk, one row, norm groups of four numbers
    "full12": case("M*M", B=1, T=48, n_groups=12, num_key_value_heads=12, chunk_size=16),
    # routing limited to groups of experts
    "moe_group": case("ME*E", n_group=4, topk_group=2, n_groups=3, mamba_num_heads=6),
    # Super and Ultra: experts work in a latent width, large scaling
    "latent": case("MEM*E", moe_latent_size=14, n_routed_experts=12, num_experts_per_tok=5, routed_scaling_factor=5.0),
    # Nano 30B: no groups of experts, no latent, chunk longer than the sequence
    "moe_nano": case("MEM*EME", T=29, n_groups=4, mamba_num_heads=8, chunk_size=64, num_attention_heads=8, vocab_size=97),
    # weights as the router gives them, one expert a token
    "moe_nonorm": case("E*E", norm_topk_prob=False, n_group=4, topk_group=1, num_experts_per_tok=1, routed_scaling_factor=1.0),
    # every bias there can be, and none in the convolution
    "biases": case("M-*E", use_bias=True, mlp_bias=True, use_conv_bias=False, moe_latent_size=11),
    # short sequence, short convolution
    "short_conv": case("MM*", T=13, conv_kernel=3, mamba_num_heads=4, mamba_head_dim=9, num_attention_heads=4),
    "mamba_only": case("MM-", T=23, conv_kernel=2),
    # fewer tokens than the convolution is wide
    "tiny_T": case("M*E", B=4, T=2),
    # time steps well below time_step_min, which is no limit
    "dt_free": case("M*M-", time_step_min=0.05, dt_shift=-2.0),
    # and a real limit on both sides
    "dt_limit": case("M*M-", limit=(0.05, 0.2)),
    "left_pad": case("M*E-", B=4, T=21, pad=[0, 4, 9, 1]),
    "right_pad": case("M*ME", B=4, T=19, lengths=[11, 7, 19, 1]),
    # labels left out here and there, as in finetuning
    "ignore": case("M*-E", ignore=True),
    # tensors of an MTP head, which are kept and not computed
    "mtp": case("ME*E", T=19, moe_latent_size=10, n_routed_experts=4, num_experts_per_tok=2, mtp=True, num_nextn_predict_layers=1,
                mtp_hybrid_override_pattern="*E"),
    # stored in bf16 (router bias fp32) and fp16, computed in fp32
    "stored_bf16": case("M-*E", store=torch.bfloat16),
    "stored_fp16": case("M-*E", store=torch.float16),
}


def draw_parameters(model, g, dt_shift=0.0):
    """Every parameter random and effective, activations of order one."""
    normal = lambda p: torch.randn(p.shape, generator=g)
    uniform = lambda p, a, b: a + (b - a) * torch.rand(p.shape, generator=g)
    with torch.no_grad():
        for name, p in list(model.named_parameters()) + list(model.named_buffers()):
            leaf = name.removesuffix(".weight").split(".")[-1]
            if name.endswith("e_score_correction_bias"): v = 0.3 * normal(p)
            elif leaf == "A_log": v = torch.log(uniform(p, 0.5, 12.0))
            elif leaf == "D": v = 1 + 0.5 * normal(p)
            elif leaf == "dt_bias":
                dt = torch.exp(uniform(p, math.log(0.02), math.log(0.5)))
                v = dt + torch.log(-torch.expm1(-dt)) + dt_shift
            elif name.endswith("bias"): v = 0.2 * normal(p)
            elif leaf in ("norm", "norm_f", "enorm", "hnorm", "final_layernorm"): v = 1 + 0.3 * normal(p)
            elif leaf == "conv1d": v = 0.5 * normal(p)
            elif leaf == "embeddings": v = normal(p)
            elif leaf == "gate": v = 2.0 * normal(p) / math.sqrt(p.shape[-1])
            elif p.dim() >= 2: v = normal(p) * 1.2 / math.sqrt(p.shape[-1])
            else: raise SystemExit(f"no rule for {name}")
            p.copy_(v)


class Margin:
    """The smallest difference of scores that decided a routing, over all gate calls while it is open."""
    def __init__(self, model):
        self.least = 9.0
        self.hooks = [b.mixer.gate.register_forward_hook(self.look) for b in model.model.layers if b.block_type == "moe"]

    def look(self, gate, _, out):
        score = out[0].sigmoid() + gate.e_score_correction_bias
        E, G = gate.num_experts, gate.num_group
        if G > 1 and gate.topk_group < G:
            group = score.view(-1, G, E // G).topk(2, -1)[0].sum(-1)
            s = group.sort(-1, descending=True)[0]
            self.least = min(self.least, float((s[:, gate.topk_group - 1] - s[:, gate.topk_group]).min()))
            kept = torch.zeros_like(group).scatter(1, group.topk(gate.topk_group, -1)[1], 1).bool()
            score = score.masked_fill(~kept.repeat_interleave(E // G, 1), -9)
        s = score.sort(-1, descending=True)[0]
        if gate.top_k < E: self.least = min(self.least, float((s[:, gate.top_k - 1] - s[:, gate.top_k]).min()))

    def close(self):
        for h in self.hooks: h.remove()
        return self.least


def draw_inputs(model, spec, g):
    best = (-1.0, None)
    for _ in range(80):
        ids = torch.randint(3, model.config.vocab_size, (spec["B"], spec["T"]), generator=g)
        mask = None
        if "pad" in spec or "lengths" in spec:
            mask = torch.ones_like(ids)
            for b, n in enumerate(spec.get("pad", [])): mask[b, :n] = 0
            for b, n in enumerate(spec.get("lengths", [])): mask[b, n:] = 0
            ids[mask == 0] = model.config.pad_token_id
        margin = Margin(model)
        with torch.no_grad(): model(ids, use_cache=False, **({} if mask is None else dict(attention_mask=mask)))
        least = margin.close()
        if least > best[0]: best = (least, (ids, mask))
        if least > 3e-4: break
    ids, mask = best[1]
    labels = ids.clone()
    if mask is not None:
        labels[mask == 0] = -100
        for b, n in enumerate(spec.get("pad", [])):
            if n: labels[b, n] = -100      # or the last pad would be trained to predict the first token
    if spec.get("ignore"): labels[torch.rand(labels.shape, generator=g) < 0.4] = -100
    return ids, labels, mask, best[0]


def as_saved(model, tensors):
    """{name in memory: tensor} under the names and shapes that save_pretrained writes."""
    clone = copy.deepcopy(model).float()
    with torch.no_grad():
        for n, p in clone.named_parameters(): p.copy_(tensors[n])
    folder = tempfile.mkdtemp()
    try:
        clone.save_pretrained(folder)
        return {k: v for k, v in load_file(os.path.join(folder, "model.safetensors")).items() if not k.endswith("correction_bias")}
    finally:
        shutil.rmtree(folder)


def make_model(config, attention="eager", experts="eager"):
    c = NemotronHConfig(**config)
    c._attn_implementation, c._experts_implementation = attention, experts
    return NemotronHForCausalLM(c).float().eval()


def clamp_time_step(model, low, high):
    for b in model.model.layers:
        if b.block_type == "linear_attention": b.mixer.time_step_limit = (low, high)


def evaluate(model, ids, labels, mask):
    """logits, loss, {saved name: gradient}"""
    model.zero_grad(set_to_none=True)
    out = model(ids, labels=labels, use_cache=False, **({} if mask is None else dict(attention_mask=mask)))
    out.loss.backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return out.logits.detach(), out.loss.detach(), as_saved(model, grads)


def mtp_tensors(config, g):
    """A head of one depth with pattern *E, under its hub names; nothing computes it."""
    c = dict(config, hybrid_override_pattern="*E", num_nextn_predict_layers=0)
    c.pop("mtp_hybrid_override_pattern")
    block = make_model(c)
    draw_parameters(block, g)
    folder = tempfile.mkdtemp()
    try:
        block.save_pretrained(folder)
        own = load_file(os.path.join(folder, "model.safetensors"))
    finally:
        shutil.rmtree(folder)
    H = config["hidden_size"]
    out = {k.replace("backbone.", "mtp."): v for k, v in own.items() if k.startswith("backbone.layers.")}
    out |= {f"mtp.layers.0.{n}.weight": 1 + 0.3 * torch.randn(H, generator=g) for n in ("enorm", "hnorm")}
    out["mtp.layers.0.eh_proj.weight"] = torch.randn(H, 2 * H, generator=g) / math.sqrt(H)
    out["mtp.layers.1.final_layernorm.weight"] = 1 + 0.3 * torch.randn(H, generator=g)
    return out


def store(model, folder, dtype):
    """Saves a model in a lower format and gives its parameters the values that were stored; router biases stay fp32."""
    with torch.no_grad():
        for p in model.parameters(): p.copy_(p.to(dtype).float())
    low = copy.deepcopy(model).to(dtype)
    for a, b in zip(model.model.layers, low.model.layers):
        if a.block_type == "moe": b.mixer.gate.e_score_correction_bias.data = a.mixer.gate.e_score_correction_bias.data.clone()
    low.save_pretrained(folder)


GREEDY = ("dense", "gqa", "groups3", "moe_group", "latent", "moe_nano", "biases", "short_conv", "mamba_only", "dt_free", "dt_limit")
LENGTHS, NEW = (5, 1, 23, 12), 16


@torch.no_grad()
def continue_greedily(model, prompt, cached):
    """The likeliest tokens after a prompt; and the least difference between a likeliest and a second."""
    cache, ids, given, gap, tokens = None, prompt, prompt, 9.0, []
    while True:
        out = model(given, past_key_values=cache, use_cache=cached)
        best = out.logits[0, -1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
        if len(tokens) == NEW: return tokens, gap
        ids = torch.cat((ids, best.indices[:1].view(1, 1)), 1)
        cache, given = (out.past_key_values, ids[:, -1:]) if cached else (None, ids)


def greedy(name, spec, seed, folder):
    """greedy.jsonl. Prompts are drawn again until rounding can choose neither another token nor another expert. transformers
    cannot decode step by step without an attention layer, nor with its time steps limited: then every token is a pass over all."""
    g = torch.Generator().manual_seed(7000003 * seed + sum(map(ord, name)))
    model = NemotronHForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    model.config._experts_implementation = "eager"
    clamp_time_step(model, *spec.get("limit", (0.0, math.inf)))
    end, lines = model.config.eos_token_id, []
    for n in LENGTHS:
        for _ in range(80):
            prompt = torch.randint(3, model.config.vocab_size, (1, n), generator=g)
            margin = Margin(model)
            tokens, gap = continue_greedily(model, prompt, False)
            if margin.close() > 3e-4 and gap > 3e-3 and end not in tokens: break
        else: raise SystemExit(f"{name}: no clear continuation of {n} tokens")
        if "*" in spec["config"]["hybrid_override_pattern"] and "limit" not in spec:
            again, _ = continue_greedily(model, prompt, True)
            if again != tokens: raise SystemExit(f"{name}: transformers disagrees with itself: {tokens}, step by step {again}")
        lines.append(json.dumps(dict(ids=prompt[0].tolist(), tokens=tokens)))
    with open(os.path.join(folder, "greedy.jsonl"), "w") as f: f.write("\n".join(lines) + "\n")


def build(name, spec, seed, out):
    """Makes one folder; returns {what: number} about it."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(1000003 * seed + sum(map(ord, name)))
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    limit = spec.get("limit", (0.0, math.inf))
    config = dict(spec["config"], **({"time_step_limit": list(limit)} if "limit" in spec else {}))
    model = make_model(config)
    draw_parameters(model, g, spec.get("dt_shift", 0.0))
    clamp_time_step(model, *limit)
    if "store" in spec: store(model, folder, spec["store"])
    else: model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))
    ids, labels, mask, margin = draw_inputs(model, spec, g)
    logits, loss, grads = evaluate(model, ids, labels, mask)
    ref = dict(input_ids=ids, labels=labels, logits=logits, loss=loss)
    if mask is not None: ref["attention_mask"] = mask
    ref |= {"grad." + k: v for k, v in grads.items()}
    save_file({k: v.contiguous() for k, v in ref.items()}, os.path.join(folder, "reference.safetensors"))
    if spec.get("mtp"):
        path = os.path.join(folder, "model.safetensors")
        save_file(load_file(path) | {k: v.contiguous() for k, v in mtp_tensors(config, g).items()}, path, metadata={"format": "pt"})
    return dict(loss=float(loss), routing_margin=margin, largest_logit=float(logits.abs().max()),
                bytes=sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out")
    a.add_argument("--case", default="all")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--only-greedy", action="store_true")
    a = a.parse_args()
    torch.set_num_threads(1)
    for name in CASES if a.case == "all" else a.case.split(","):
        if not a.only_greedy: print(name, json.dumps(build(name, CASES[name], a.seed, a.out)), flush=True)
        if name in GREEDY: greedy(name, CASES[name], a.seed, os.path.join(a.out, name))


if __name__ == "__main__": main()
