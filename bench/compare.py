#!/usr/bin/env python3
"""make bench-compare REV=...: what another revision did faster.

    bench/compare.py REVISION [--rounds 5] [--threads N] [--configs a,b,c] [--recipes fp32,bf16]

Builds the revision in a folder of its own, runs both in turns (all operations; training steps and generation of the configurations; in each recipe), and
prints what differs by more than the rounds do: the median and the best of the rounds must both say so."""
import argparse, json, os, re, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measure import Failed, median, race, run
from tables import Report

LEAST = 0.05  # what differs by less is no difference on a machine that others use

p = argparse.ArgumentParser()
p.add_argument("revision")
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
p.add_argument("--configs", default="a,b,c")
p.add_argument("--recipes", default="fp32,bf16")
p.add_argument("--out", default="build/bench")
a = p.parse_args()
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"): os.environ.pop(name, None)  # the other revision's make is nobody's child
env = {"OMP_NUM_THREADS": str(a.threads)}


def build():
    """The folder of the revision, built."""
    try: commit = run(["git", "rev-parse", "--verify", "--short=12", a.revision + "^{commit}"])[0].strip()
    except Failed as why:
        print(f"REV: '{a.revision}' is no commit of this folder ({str(why).split(': ')[-1]})", file=sys.stderr)
        sys.exit(2)
    folder = os.path.abspath(os.path.join(a.out, "revision-" + commit))
    if not os.path.exists(folder): run(["git", "worktree", "add", "--force", "--detach", folder, commit])
    print(f"building {commit} in {folder}", flush=True)
    run(["make", "-C", folder, "all", "build/tests/test_ops"])
    return folder


def ops(folder, recipe):
    """Milliseconds of each row of its own `test_ops bench`: revisions may differ in rows. What takes less than a microsecond is left out."""
    out, _, _ = run(["build/tests/test_ops", "bench", *([recipe] if recipe == "bf16" else [])], env=env, cwd=folder)
    times, seen = {}, {}
    for line in out.splitlines():
        m = re.match(r"([a-z]\w*(?::\S+)?) +([0-9.]+) ", line)
        if not m or m[1] == "operation" or float(m[2]) < 0.001: continue
        seen[m[1]] = seen.get(m[1], 0) + 1
        times[f"{m[1]}{f' #{seen[m[1]]}' if seen[m[1]] > 1 else ''} {recipe}"] = float(m[2])
    return times


def step(folder, config, recipe):
    out = os.path.join(folder, "build/bench", f"compare-{config}")
    shutil.rmtree(out, ignore_errors=True)
    run(["./mestar", os.path.abspath(f"inputs/bench-{config}.yaml"), f"run.output={out}", "train.global_batch=4", f"precision.recipe={recipe}"], env=env, cwd=folder)
    steps = [json.loads(line) for line in open(out + "/metrics.jsonl")][1:]
    return {f"step {config} {recipe}, ms": 1e3 * median([s["step_seconds"] for s in steps])}


def generation(folder, config, recipe):
    """Milliseconds of reading 512 tokens and of making one."""
    base = os.path.join(folder, "build/bench")
    os.makedirs(base, exist_ok=True)
    deck, prompts, model, out = (os.path.join(base, x) for x in ("compare.yaml", "compare.jsonl", f"compare-model-{config}", "compare-generate"))
    if not os.path.exists(model): run(["./mestar", os.path.abspath(f"inputs/bench-{config}.yaml"), f"run.output={model}", "train.steps=0", "checkpoint.interval=1"], cwd=folder)
    with open(prompts, "w") as f: f.write(json.dumps({"ids": [1 + i * 7919 % 4000 for i in range(512)]}) + "\n")
    with open(deck, "w") as f: f.write(f"run:\n  mode: generate\nmodel:\n  from: {model}\ngenerate:\n  prompts: {prompts}\n  max_new_tokens: 64\n")
    run(["./mestar", deck, f"run.output={out}", f"precision.recipe={recipe}"], env=env, cwd=folder)
    summary = dict(re.findall(r"^(\w+): *([^ \n]+)", open(out + "/summary.yaml").read(), re.M))
    return {f"prefill {config} {recipe}, ms": 512e3 / float(summary["prefill_tokens_per_second"]), f"decode {config} {recipe}, ms": 1e3 / float(summary["decode_tokens_per_second"])}


def everything(folder):
    figures = {}
    for recipe in a.recipes.split(","):
        figures.update(ops(folder, recipe))
        for config in a.configs.split(","):
            figures.update(step(folder, config, recipe))
            figures.update(generation(folder, config, recipe))
    return figures


try:
    old, new = build(), os.getcwd()
    if os.path.realpath(old) == os.path.realpath(new): sys.exit("that is this folder")
    got = race([(a.revision, lambda: everything(old)), ("now", lambda: everything(new))], a.rounds)
except Failed as why:
    sys.exit(str(why))
if len(got) < 2: sys.exit("one of the two did not run")
before, now = got[a.revision], got["now"]
rows = {"slower": [], "faster": []}
for name in now:
    if name not in before or len(before[name]) != len(now[name]): continue
    ratio, best = median(now[name]) / median(before[name]), min(now[name]) / min(before[name])
    if min(ratio, best) > 1 + LEAST: rows["slower"].append([name, median(before[name]), median(now[name]), ratio, best])
    if max(ratio, best) < 1 - LEAST: rows["faster"].append([name, median(before[name]), median(now[name]), ratio, best])
report = Report(a.out + "-compare.md")
for which in ("slower", "faster"):
    report.heading(f"{which.capitalize()} than {a.revision}: {len(rows[which])} of {len(now)}")
    if rows[which]: report.table(["", "then, ms", "now, ms", "of medians", "of bests"], sorted(rows[which], key=lambda r: -abs(r[3] - 1)))
    report.end()
sys.exit(1 if rows["slower"] else 0)
