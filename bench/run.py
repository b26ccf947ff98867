#!/usr/bin/env python3
"""make bench: how fast mestar is, beside what else there is on this machine.

    bench/run.py [GOAL ...] [--configs a,b,c] [--recipes fp32,bf16] [--threads N] [--rounds N] [--python PYTHON] [--llama LLAMA_BENCH] [--before COMMAND] [--out FOLDER]

Goals: ops layers steps generation starts ranks lengths; all of them if none is named. Called from the top folder, after make.
bench/README.md says what each of them measures."""
import argparse, json, os, re, shlex, shutil, signal, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from measure import Failed, Interrupted, median, race, run, spread
from tables import Report

GOALS = "ops layers steps generation starts ranks lengths".split()
RECIPES = ["fp32", "bf16"]
PYTHON = "build/venv/bin/python"
PROMPT, NEW, STEPS = 512, 128, 6


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("goals", nargs="*", metavar="GOAL", help=" ".join(GOALS))
    p.add_argument("--configs", default="a,b,c")
    p.add_argument("--recipes", default="fp32,bf16")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--python", default=PYTHON, help="a Python with torch and transformers")
    p.add_argument("--llama", default="", help="llama-bench, within its folder of sources")
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: time training steps by the processor time of one thread, "
                   "which programs of other people disturb less")
    p.add_argument("--before", default="", help="a command that starts every program that is raced: taskset, numactl, a lock")
    p.add_argument("--out", default="build/bench")
    p.add_argument("--program", default="./mestar")
    p.add_argument("--build", default="build")
    a = p.parse_args()
    for g in a.goals:
        if g not in GOALS: p.error(f"{g} is none of {' '.join(GOALS)}")
    a.goals, a.configs, a.recipes = a.goals or GOALS, a.configs.split(","), a.recipes.split(",")
    for c in a.configs:
        if not os.path.exists(f"inputs/bench-{c}.yaml"): p.error(f"configuration '{c}': there is no inputs/bench-{c}.yaml")
    for r in a.recipes:
        if r not in RECIPES: p.error(f"recipe '{r}' is none of {' '.join(RECIPES)}")
    if a.rounds < 1 or a.threads < 1: p.error("rounds and threads are at least 1")
    for name, given in (("PYTHON", a.python if a.python != PYTHON else ""), ("LLAMA_BENCH", a.llama), ("BEFORE", (shlex.split(a.before) or [""])[0])):
        if given and not shutil.which(given): p.error(f"{name}: {given} is no program")
    if a.clock == "cpu": a.threads = 1
    return a


class Bench:
    def __init__(self, a):
        self.a, self.report = a, Report(a.out + ".md")
        self.before = shlex.split(a.before)
        self.env = {"OMP_NUM_THREADS": str(a.threads)}
        self.python = a.python if a.python and shutil.which(a.python) else None
        self.llama = a.llama if a.llama and shutil.which(a.llama) else None
        self.recipes = a.recipes
        found = open(os.path.join(a.build, "found.mk")).read()
        self.mpirun = [re.search(r"^MPIRUN := (.*)", found, re.M)[1]]
        if "MPI_KIND := openmpi" in found:
            self.mpirun += ["--oversubscribe", "--bind-to", "none"]
            self.env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        os.makedirs(a.out, exist_ok=True)

    def path(self, name):
        return os.path.join(self.a.out, name)

    # ------------------------------------------------------------------------------------ one run of each program

    def mestar(self, config, name, *more, ranks=0, threads=None, until=None):
        """Returns (output folder, seconds, peak memory in bytes of one process). ranks: 0 without mpirun."""
        folder = self.path(name)
        shutil.rmtree(folder, ignore_errors=True)
        command = self.before + (self.mpirun + ["-n", str(ranks)] if ranks else []) + [self.a.program, f"inputs/bench-{config}.yaml"]
        out, took, peak = run(command + [f"run.output={folder}", *more], env=dict(self.env, OMP_NUM_THREADS=str(threads or self.a.threads)), until=until)
        return folder, took, peak

    def model(self, config):
        """The model that all programs run: initial weights, saved as a Hugging Face folder."""
        folder = self.path(f"model-{config}/checkpoints/step-00000000")
        if not os.path.exists(folder + "/config.json"): self.mestar(config, f"model-{config}", "train.steps=0", "checkpoint.interval=1")
        return folder

    def train_cpu(self, config, recipe):
        folder, _, peak = self.mestar(config, f"train-{config}-{recipe}", "run.mode=bench", f"precision.recipe={recipe}", threads=1)
        told = json.load(open(folder + "/bench.json"))
        step, best = told["step"], told["machine"]["peak_" + recipe]
        return {"speed": 4 * 512 / step["seconds"], "memory": peak, "mfu": step["work"] / step["seconds"] / best}

    def train(self, config, recipe, *more, ranks=0, threads=None, name="train"):
        tokens = 4 * 512
        folder, _, peak = self.mestar(config, f"{name}-{config}-{recipe}", f"train.steps={STEPS}", f"precision.recipe={recipe}", *more, ranks=ranks, threads=threads)
        steps = [json.loads(line) for line in open(folder + "/metrics.jsonl")][1:]
        return {"speed": tokens / median([s["step_seconds"] for s in steps]), "memory": peak, "mfu": median([s["mfu"] for s in steps])}

    def peer_train(self, config, recipe):
        out, _, peak = run(self.before + [self.python, "bench/peer_train.py", self.model(config), "--steps", STEPS, "--dtype", recipe, "--threads", self.a.threads, "--clock", self.a.clock])
        seconds = json.loads(out.splitlines()[-1])["step_seconds"][1:]
        return {"speed": 4 * 512 / median(seconds), "memory": peak}

    def generate(self, config, recipe, batch):
        prompts = self.path(f"prompts-{config}-{batch}.jsonl")
        words = json.load(open(self.model(config) + "/config.json"))["vocab_size"]
        with open(prompts, "w") as f:
            for row in range(batch): f.write(json.dumps({"ids": [(1 + i * 7919 + row * 104729) % words for i in range(PROMPT)]}) + "\n")
        folder = self.path(f"generate-{config}-{recipe}-{batch}")
        shutil.rmtree(folder, ignore_errors=True)
        deck = self.path("generate.yaml")
        with open(deck, "w") as f: f.write(f"run:\n  mode: generate\nmodel:\n  from: {self.model(config)}\ngenerate:\n  max_new_tokens: {NEW}\n")
        _, _, peak = run(self.before + [self.a.program, deck, f"run.output={folder}", f"generate.prompts={prompts}", f"generate.batch={batch}", f"precision.recipe={recipe}"], env=self.env)
        summary = dict(re.findall(r"^(\w+): *([^ \n]+)", open(folder + "/summary.yaml").read(), re.M))
        return {"prefill": float(summary["prefill_tokens_per_second"]), "decode": float(summary["decode_tokens_per_second"]), "memory": peak}

    def peer_generate(self, config, recipe, batch):
        out, _, peak = run(self.before + [self.python, "bench/peer_generate.py", self.model(config), "--prompt", PROMPT, "--new", NEW, "--batch", batch, "--dtype", recipe, "--threads", self.a.threads])
        return dict(json.loads(out.splitlines()[-1]), memory=peak)

    def gguf(self, config, recipe):
        kind = {"fp32": "f32"}.get(recipe, recipe)
        file, folder = self.path(f"model-{config}.{kind}.gguf"), os.path.dirname(self.llama)
        while folder and folder != "/" and not os.path.exists(folder + "/convert_hf_to_gguf.py"): folder = os.path.dirname(folder)
        if not os.path.exists(file):
            if not self.python: raise Failed("making GGUF needs a Python with torch and transformers: PYTHON=")
            run([self.python, "bench/peer_gguf.py", self.model(config), file, kind, folder])
        return file

    def llama_generate(self, config, recipe, batch):
        file, threads = self.gguf(config, recipe), self.a.threads
        if batch == 1:
            out, _, peak = run(self.before + [self.llama, "-m", file, "-p", PROMPT, "-n", NEW, "-t", threads, "-r", 1, "-o", "jsonl"])
            tests = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
            speed = {("prefill" if t["n_prompt"] else "decode"): t["avg_ts"] for t in tests}
            return dict(speed, memory=peak)
        batched = os.path.join(os.path.dirname(self.llama), "llama-batched-bench")
        out, _, peak = run(self.before + [batched, "-m", file, "-c", batch * (PROMPT + NEW), "-npp", PROMPT, "-ntg", NEW, "-npl", batch, "-t", threads, "--output-format", "jsonl"])
        t = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
        return {"prefill": t["speed_pp"], "decode": t["speed_tg"], "memory": peak}

    # --------------------------------------------------------------------------------------------------------- goals

    def ops(self):
        for kind in self.recipes:
            out, _, _ = run([f"{self.a.build}/tests/test_ops", "bench", *([kind] if kind == "bf16" else [])], env=self.env)
            self.report.heading(f"Operations, {kind}")
            self.report.verbatim(out)

    def layers(self):
        for config in self.a.configs:
            for recipe in self.recipes:
                folder, _, _ = self.mestar(config, f"layers-{config}-{recipe}", "run.mode=bench", f"precision.recipe={recipe}")
                self.report.heading(f"Layers of configuration {config}, {recipe}")
                self.report.verbatim(open(folder + "/log.txt").read())

    def race(self, programs, show):
        """Races the programs and shows what came of it: of a race that is interrupted, the rounds until then."""
        try:
            got = race(programs, self.a.rounds)
            show(got)
            if programs[0][0] not in got: raise Failed("mestar itself did not run")
        except Interrupted as stop:
            show(stop.figures)
            raise

    def race_table(self, heading, entries, figures, unit):
        """entries: (what, [(program, once)]); the first program is compared with each other one. A row is told as soon as it is known."""
        self.report.heading(heading)
        self.report.say(f"Medians of {self.a.rounds} interleaved rounds on {self.a.threads} threads; {unit}. x: how many times as fast mestar is; peak MiB: of the process; "
                        "of it: mestar's memory, as a share; apart: range of the rounds over their median; % of peak: of the products this processor could do.")
        self.report.table(["", "", *[x for f in figures for x in (f, "x")], "peak MiB", "of it", "apart", "% of peak"], names=max(12, *(len(what) for what, _ in entries)))

        def rows(what, programs, got):
            own, _ = programs[0]
            for name, _ in programs:
                if name not in got or not all(got[name].get(f) for f in figures): continue
                compared = name != own and own in got
                pairs = [(median(got[name][f]), median(got[own][f]) / median(got[name][f]) if compared else None) for f in figures]
                memory = median(got[name]["memory"])
                yield [what, name, *[x for pair in pairs for x in pair], memory / 2**20, median(got[own]["memory"]) / memory if compared else None,
                       f"{100 * max(spread(got[name][f]) for f in figures):.0f} %", 100 * median(got[name]["mfu"]) if "mfu" in got[name] else None]

        for what, programs in entries: self.race(programs, lambda got: self.report.rows(rows(what, programs, got)))
        self.report.end()

    def steps(self):
        entries = []
        for config in self.a.configs:
            for recipe in self.recipes:
                one = (lambda c=config, r=recipe: self.train_cpu(c, r)) if self.a.clock == "cpu" else (lambda c=config, r=recipe: self.train(c, r, "train.global_batch=4"))
                programs = [("mestar", one)]
                if self.python: programs.append(("transformers", lambda c=config, r=recipe: self.peer_train(c, r)))
                entries.append((f"{config} {recipe}", programs))
        clock = "tokens a second" + (" of processor time" if self.a.clock == "cpu" else "")
        self.race_table("Training steps", entries, ["speed"], f"4 sequences of 512 tokens, AdamW, {clock}")

    def generation(self):
        entries = []
        for config in self.a.configs:
            for recipe in self.recipes:
                for batch in (1, 8):
                    programs = [("mestar", lambda c=config, r=recipe, b=batch: self.generate(c, r, b))]
                    if self.python: programs.append(("transformers", lambda c=config, r=recipe, b=batch: self.peer_generate(c, r, b)))
                    if self.llama: programs.append(("llama.cpp", lambda c=config, r=recipe, b=batch: self.llama_generate(c, r, b)))
                    entries.append((f"{config} {recipe}, batch {batch}", programs))
        self.race_table("Generation", entries, ["prefill", "decode"], f"{PROMPT} tokens read, {NEW} made, tokens a second")

    def starts(self):
        """From the launch to the end of the first step of the smallest configuration."""
        first = lambda line: bool(re.match(r" +1 +\d", line))

        def start(ranks):
            threads = max(1, self.a.threads // max(ranks, 1))
            more = ["train.steps=1", "train.micro_batch=1", "train.global_batch=4"]
            return {"seconds": self.mestar("a", f"start-{ranks}", *more, ranks=ranks, threads=threads, until=first)[1]}

        def peer():
            command = [self.python, "bench/peer_train.py", self.model("a"), "--steps", 1, "--threads", self.a.threads]
            return {"seconds": run(command, until=lambda line: "first step" in line)[1]}

        programs = [("mestar, no mpirun", lambda: start(0)), ("mestar, mpirun -n 1", lambda: start(1)), ("mestar, mpirun -n 4", lambda: start(4))]
        if self.python: programs.append(("transformers", peer))
        self.report.heading("From the launch to the end of step 1")
        self.report.say("Configuration a, 4 sequences of 512 tokens.")
        self.race(programs, lambda got: self.report.table(["", "seconds", "least"], [[name, median(f["seconds"]), min(f["seconds"])] for name, f in got.items()]))
        self.report.end()

    def ranks(self):
        """Threads against ranks, on the same cores and tokens."""
        n, whole = self.a.threads, "train.global_batch=4"
        if n < 2: raise Failed("one thread cannot be shared out")
        self.report.heading("Ranks and threads")
        self.report.say("The same step on the same cores, tokens a second.")
        self.report.table(["", "", "speed", "of the first"], names=28)

        def rows(config, got):
            base = next(iter(got.values()), None)
            return [[config, name, median(f["speed"]), median(f["speed"]) / median(base["speed"])] for name, f in got.items()]

        for config in self.a.configs:
            self.race([(f"1 rank x {n} threads", lambda: self.train(config, "fp32", whole, name="ranks1")),
                        (f"{n} ranks x 1 thread, data", lambda: self.train(config, "fp32", whole, f"train.micro_batch={max(1, 4 // n)}", f"train.global_batch={max(4, n)}", ranks=n, threads=1, name="data")),
                        ("2 ranks, tensor", lambda: self.train(config, "fp32", whole, "parallel.tensor=2", ranks=2, threads=max(1, n // 2), name="tensor"))],
                      lambda got: self.report.rows(rows(config, got)))
        self.report.end()

    def lengths(self):
        out, _, _ = run([f"{self.a.build}/tests/test_ops", "lengths"], env=self.env)
        self.report.heading("Short and long sequences")
        self.report.verbatim(out)
        rows, config = [], self.a.configs[0]
        for length in (512, 2048, 8192, 32768, 131072):
            plan = json.loads(run([self.a.program, "plan", f"inputs/bench-{config}.yaml", "--json", f"train.sequence_length={length}", "train.micro_batch=1"])[0])
            rank = plan["ranks"][0]
            rows.append([str(length), rank["activations_bytes"] / 2**20, rank["activations_bytes"] / length, rank["scratch_bytes"] / 2**20])
        self.report.say(f"Memory of a training step of configuration {config} on one sequence, as planned.")
        self.report.table(["tokens", "activations MiB", "bytes a token", "scratch MiB"], rows)
        self.report.end()
        whole = 32768
        self.report.say(f"Training steps of configuration {config}, fp32, {whole} tokens in rows of a length. What a step computes grows with the length as attention "
                        "does; cost grows as counted where the share of the peak stays.")
        self.report.table(["length", "ms", "tokens/s", "MFLOP a token", "% of peak"])
        for length in (512, 2048, 8192, 32768):
            rows = ["train.steps=2", f"train.sequence_length={length}", f"train.micro_batch={whole // length}", f"train.global_batch={whole // length}"]
            folder, _, _ = self.mestar(config, f"length-{length}", *rows)
            step = [json.loads(line) for line in open(folder + "/metrics.jsonl")][1:]
            work = json.loads(run([self.a.program, "plan", f"inputs/bench-{config}.yaml", "--json", *rows])[0])["ranks"][0]["model_work"]
            seconds = min(s["step_seconds"] for s in step)
            self.report.rows([[str(length), 1e3 * seconds, whole / seconds, work / whole / 1e6, 100 * max(s["mfu"] for s in step)]])
        self.report.end()


def main():
    a = arguments()
    bench = Bench(a)
    version = subprocess.run([a.program, "--version"], capture_output=True, text=True).stdout.splitlines()
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    bench.report.say(f"{version[0]}; {cpu[1] if cpu else 'processor unknown'}, {a.threads} threads; load before {os.getloadavg()[0]:.1f}")
    if not bench.python: bench.report.say("transformers: not there. `make build/venv/ready` makes a Python with it, or PYTHON=.")
    if not bench.llama: bench.report.say("llama.cpp: not there. LLAMA_BENCH= names its llama-bench (bench/README.md).")
    failed = []
    for goal in a.goals:
        try: getattr(bench, goal)()
        except Failed as why:
            failed.append(goal)
            print(f"{goal}: {why}", file=sys.stderr)
    print(f"\nas Markdown: {a.out}.md")
    if failed: sys.exit(f"did not come to their end: {' '.join(failed)}")


signal.signal(signal.SIGTERM, signal.default_int_handler)
try: main()
except (Interrupted, KeyboardInterrupt): sys.exit("interrupted: what was raced until then is in the table")
