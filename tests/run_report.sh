#!/bin/bash
# What a run shows and leaves: the first screen, a line a step, where the time went, summary, TensorBoard's file, report.html.
. tests/lib.sh
begin
{ model "M*-E" | sed 's/vocab_size: .*/vocab_size: 257/'; cat <<'YAML'; } >"$TMP/deck.yaml"
  tokenizer: bytes
train:
  steps: 12
  global_batch: 2
  sequence_length: 32
  validation_interval: 6
data:
  kind: text
  path: [src, kernels]
  split: 0.1
  validation: 4
moe:
  balance: bias
checkpoint:
  interval: 6
log:
  interval: 3
YAML
check() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1" "$2, want $3"; fi; }
has() { if grep -q -E -- "$3" "$2"; then ok "$1"; else fail "$1" "no '$3' in $2"; fi; }

go run 0 2 "$TMP/deck.yaml" optimizer.learning_rate=0.002
log=$TMP/run/log.txt
cmp -s "$TMP/run.log" "$log" && ok "log.txt is what the terminal showed" || fail log "$(diff "$TMP/run.log" "$log" | head -n 3 | tr '\n' '|')"
widest=$(awk '{ if (length($0) > w) w = length($0) } END { print w }' "$log")
[ "$widest" -le 100 ] && ok "lines fit 100 columns" || fail "lines fit 100 columns" "$widest: $(awk 'length($0) > 100' "$log" | head -n 1)"
[ "$(sed '/^s\/step/q' "$log" | wc -l)" -le 48 ] && ok "one screen before the first step" || fail "one screen" "$(sed '/^s\/step/q' "$log" | wc -l) lines"
has "first line" "$log" '^mestar [0-9.]+ trains .*deck.yaml on 2 ranks$'
has "a key with its line" "$log" '^  train.steps +12 +100 +line [0-9]+$'
has "a key of the command line" "$log" '^  optimizer.learning_rate +0.002 +3e-4 +command line$'
has "layers by kind" "$log" '^  M +mamba, .* 1 +[0-9.]+K? +[0-9.]+K? +[0-9.]+K?$'
has "planned memory" "$log" '^  ranks 0-1 +([0-9.]+ +){5}[0-9.]+$'
has "host's memory" "$log" '^  host .*: 2 ranks plan [0-9.]+ [KMG]iB of its '
has "what decays" "$log" '^Decay +0.1 on all but norm .*A_log'

# A line for step 1, each third, and those where something happened; all columns end where the heads do.
lines=$(sed -n '/^ *step  /,/^$/p' "$log" | sed '1d;$d')
check "steps with a line" "$(echo "$lines" | awk '{ printf "%s ", $1 }')" "1 3 6 9 12 "
check "columns" "$(echo "$lines" | cut -c 1-83 | awk '{ print length($0) }' | sort -u)" 83
check "what happened" "$(echo "$lines" | awk 'NF > 11 { printf "%s:%s ", $1, $12 }')" "6:ec 12:ec "
check "load of the fullest of 8 experts" "$(echo "$lines" | awk '!($11 >= 1 && $11 <= 8)')" ""

# The table adds up in the digits that are printed, and is the same everywhere.
adds() { awk -v c="$2" '/^Where the time went/ { on = 1; next } on && /^  total/ { t = $0; exit } on { sub(/^  (start-up|[a-z]+( [a-z]+)?) +/, ""); n = split($0, f, " "); if ($0 ~ /^[0-9]+ /) i = c; else i = c - 1; s += f[i] * 1000 }
        END { sub(/^  total +/, "", t); split(t, f, " "); d = s - f[c - 1] * 1000; exit !(s > 0 && d * d < 0.01) }' "$1"; }
adds "$log" 3 && ok "means add up to the total" || fail "means add up to the total" "$(sed -n '/^Where the time/,/total/p' "$log" | tr '\n' '|')"
sums=$(awk '/^  [a-z_]+: \{calls/ { name = $1; match($0, /mean: [0-9.]+/); m = substr($0, RSTART + 6, RLENGTH - 6) * 1000
    match($0, /percent: [0-9.]+/); p = substr($0, RSTART + 9, RLENGTH - 9) * 10
    if (name == "total:") { tm = m; tp = p } else { sm += m; sp += p } } END { printf "%.0f %.0f", sm - tm, sp - tp }' "$TMP/run/summary.yaml")
check "summary adds up" "$sums" "0 0"
for k in stopped exit_code ranks steps tokens loss validation skipped_updates seconds tokens_per_second time peak_bytes; do
    has "summary $k" "$TMP/run/summary.yaml" "^$k:"
done
check "validations among the metrics" "$(grep -c '"validation": ' "$TMP/run/metrics.jsonl")" 2

# The report needs nothing from outside, and holds the run.
page=$TMP/run/report.html
has "report ends" "$page" '^</main></html>$'
grep -q -E 'https?:|<script|<link|@import|src=|url\(' "$page" && fail "report is self-contained" "it names something outside" || ok "report is self-contained"
for word in Loss Throughput 'Gradient norm' 'Learning rate' 'Where the time went' 'Memory of each rank' Provenance 'learning_rate: 0.002'; do
    has "report: $word" "$page" "$word"
done
undefined=$(grep -o 'var(--[a-z0-9]*)' "$page" | sort -u | tr -d '()' | sed 's/^var//' | while read -r c; do grep -q -- "$c:" "$page" || echo "$c"; done)
check "colours that are used and not there" "$undefined" ""
check "figures" "$(grep -c '<svg ' "$page")" "$(grep -c '</svg>' "$page")"

# TensorBoard: one file, which a continued run adds to as if it had never stopped.
events() { find "$TMP/$1" -name 'events.out.tfevents.*'; }
check "one file of events" "$(events run | wc -l)" 1
go part 0 2 "$TMP/deck.yaml" train.steps=6 schedule.decay_steps=12
go part 0 2 "$TMP/deck.yaml" train.steps=12 schedule.decay_steps=12
check "one file when continued" "$(events part | wc -l)" 1
check "events of all steps, once" "$(wc -c <"$(events part)")" "$(wc -c <"$(events run)")"
has "a ruler in the log" "$TMP/part/log.txt" '^---.* continued after step 6'
check "both parts in the log" "$(grep -c '^mestar ' "$TMP/part/log.txt")" 2
go quiet 0 1 "$TMP/deck.yaml" log.tensorboard=false train.steps=1
check "no events when not wanted" "$(events quiet | wc -l)" 0

# More memory than there is: refused before anything is taken or written.
printf 'model:\n  preset: ultra-550b\n' >"$TMP/huge.yaml"
began=$(date +%s)
go huge 2 2 "$TMP/huge.yaml" && has "too little memory" "$TMP/huge.log" 'ranks of host .* need .*TiB of memory, and it has'
[ ! -e "$TMP/huge" ] && [ $(($(date +%s) - began)) -le 20 ] && ok "refused at once" || fail "refused at once" "$(($(date +%s) - began)) s, or the folder exists"

# Thousands of steps: the page stays small.
{ model "-"; printf 'train:\n  steps: 2000\n  sequence_length: 8\nlog:\n  interval: 1000\ncheckpoint:\n  interval: 0\n'; } >"$TMP/long.yaml"
go long 0 1 "$TMP/long.yaml"
[ "$(wc -c <"$TMP/long/report.html")" -lt 150000 ] && ok "long run, small report" || fail "long run, small report" "$(wc -c <"$TMP/long/report.html") bytes"

# Threads wait briefly, unless the person says otherwise. (Another compiler's OpenMP has other means.)
if ldd "$MESTAR" | grep -q libgomp; then
    has "threads wait briefly" "$TMP/run/provenance.txt" "^GOMP_SPINCOUNT=1000$"
    OMP_WAIT_POLICY=active go waits 0 1 "$TMP/deck.yaml" train.steps=1
    if grep -q GOMP_SPINCOUNT "$TMP/waits/provenance.txt"; then fail "waiting is the person's" "overruled"; else ok "waiting is the person's"; fi
    # OpenMP that binds threads binds the first one before main: its place is not all that the process may use, also after the program
    # has started itself anew.
    cores() { sed -n -E 's/.* cores  +//p' "$TMP/$1/log.txt" | head -n 1; }
    threads() { sed -n -E 's/.* cpu, ([0-9]+) threads? .*/\1/p' "$TMP/$1/log.txt" | head -n 1; }
    (unset OMP_NUM_THREADS; go free 0 1 "$TMP/deck.yaml" train.steps=1; OMP_PROC_BIND=true go bound 0 1 "$TMP/deck.yaml" train.steps=1)
    if [ -n "$(cores free)" ] && [ "$(cores free) $(threads free)" = "$(cores bound) $(threads bound)" ]; then ok "bound by OpenMP"
    else fail "bound by OpenMP" "cores '$(cores bound)', threads '$(threads bound)', want '$(cores free)', '$(threads free)'"; fi
    OMP_PROC_BIND=true go shared 0 2 "$TMP/deck.yaml" train.steps=1 && has "ranks bound alike" "$TMP/shared/log.txt" "OMP_PROC_BIND binds the threads of 2 ranks"
    OMP_THREAD_LIMIT=1 go limited 0 1 "$TMP/deck.yaml" train.steps=1 run.threads=2
    [ "$(threads limited)" = 1 ] && ok "limited by OpenMP" || fail "limited by OpenMP" "$(threads limited) threads"
fi

# Which cores ranks have, and that two of three have the same one while the third has others.
has "cores are told" "$log" "^  .* cores +(all [0-9]+|[0-9]+) of the host"
if [ "$(nproc)" -gt 1 ] && command -v taskset >/dev/null; then
    core=$(taskset -cp $$ | sed 's/.*: *//; s/[-,].*//')
    cat >"$TMP/bind.sh" <<'SH'
core=$1; shift
[ "${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-}}" -gt 1 ] || exec taskset -c "$core" "$@"
exec "$@"
SH
    mpi 3 sh "$TMP/bind.sh" "$core" "$MESTAR" "$TMP/deck.yaml" run.output="$TMP/bound" train.global_batch=3 train.steps=1 >"$TMP/bound.log" 2>&1 </dev/null
    has "ranks bound to one core are told" "$TMP/bound.log" "is one of 2 ranks x 1 threads that are bound to"
else
    echo "ok (ranks bound to one core: not tried, there is only one)"
fi
finish
