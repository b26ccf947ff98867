"""Running programs in turn and measuring them: time, peak memory, medians.

A contender is a name and a function that runs one program once and returns its figures, a dict of numbers. Contenders of a race run one
after the other, round by round, so that a busy minute hurts all of them alike; what is compared are medians over the rounds."""
import os, re, statistics, subprocess, sys, tempfile, time


class Failed(Exception):
    pass


class Interrupted(Exception):
    """Somebody ended a race; `figures` are those of its rounds until then."""

    def __init__(self, figures):
        self.figures = figures


def run(command, env=None, cwd=None, until=None):
    """Runs a command to its end. Returns (its standard output, seconds, its peak resident memory in bytes). until: a function of a line of
    output; the seconds are those up to the first line that it accepts. Interrupted, it ends the command too."""
    env = dict(os.environ, **(env or {}))
    errors = tempfile.TemporaryFile("w+")
    began = time.perf_counter()
    try: process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=cwd, stdin=subprocess.DEVNULL)
    except OSError as why: raise Failed(f"{command[0]}: {why.strerror}") from None
    lines, took = [], None
    try:
        for line in process.stdout:
            lines.append(line)
            if until and took is None and until(line): took = time.perf_counter() - began
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began if took is None else took
    if process.returncode:
        errors.seek(0)
        said = errors.read().strip().splitlines() or lines  # what went wrong is on standard error; make ends with less than it began with
        told = [x.strip() for x in said if re.search(r"error|\.yaml:|command line:|FAIL", x)][:3] or [x.strip() for x in said[-3:]]
        raise Failed(f"{' '.join(map(str, command))}: left with {process.returncode}: {' | '.join(told)}")
    return "".join(lines), took, usage.ru_maxrss * 1024


def race(contenders, rounds):
    """{name: {figure: [one value a round]}}. A contender that fails is left out from then on, and says why. Ctrl-C raises Interrupted."""
    figures, out = {name: {} for name, _ in contenders}, set()
    line = "\r\033[K" if sys.stderr.isatty() else ""
    there = lambda: {name: f for name, f in figures.items() if f}
    try:
        for n in range(rounds):
            for name, once in contenders:
                if name in out: continue
                if line: print(f"{line}  round {n + 1} of {rounds}: {name}", end="", file=sys.stderr, flush=True)
                try:
                    for key, value in once().items(): figures[name].setdefault(key, []).append(value)
                except Failed as why:
                    out.add(name)
                    print(f"{line}  {name}: {why}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        raise Interrupted(there()) from None
    finally:
        print(line, end="", file=sys.stderr, flush=True)
    return there()


def median(values):
    return statistics.median(values) if values else float("nan")


def spread(values):
    """How far apart the rounds were: the range over the median."""
    return (max(values) - min(values)) / median(values) if values and median(values) else 0.0
