#!/bin/bash
# The command line: what is printed, with which exit code, and that every released model has exactly its tensors.
. tests/lib.sh
begin
# says NAME PATTERN: the words of run NAME contain it
says() { grep -q -E -- "$2" "$TMP/$1.log" && ok "$1" || fail "$1" "no '$2' in: $(head -c 300 "$TMP/$1.log" | tr '\n' '|')"; }

{ model "M-*E"; printf 'train:\n  steps: 2\n  sequence_length: 16\n'; } >"$TMP/small.yaml"
go help 0 1 --help && says help 'mestar'
go version 0 1 --version && says version 'gcc|clang'
go no-argument 2 1 && says no-argument '.'
go no-such-deck 2 1 check "$TMP/nowhere.yaml" && says no-such-deck 'nowhere.yaml'
go no-such-command 2 1 fly && says no-such-command 'fly'
go keys 0 1 keys && says keys 'sequence_length'
go keys-section 0 1 keys train && says keys-section 'micro_batch'
go keys-key 0 1 keys train.clip && says keys-key 'clip'
go keys-typo 2 1 keys train.clap && says keys-typo 'clip'
go typo 2 1 check "$TMP/small.yaml" train.sequence_lenght=8 && says typo 'sequence_length'
go check 0 1 check "$TMP/small.yaml" && says check '^parameters: [0-9]+$'
go check-ranks 0 1 check "$TMP/small.yaml" parallel.tensor=4 && says check-ranks '^ranks: 4$'
go illegal-mesh 2 1 check "$TMP/small.yaml" parallel.tensor=3 && says illegal-mesh 'tensor'
go run 0 1 "$TMP/small.yaml" && says run '.'
for f in used.yaml provenance.txt log.txt metrics.jsonl summary.yaml checkpoints/latest checkpoints/step-00000002/config.json; do
    [ -s "$TMP/run/$f" ] && ok "leaves-$f" || fail "leaves-$f" "absent or empty"
done
for k in step loss grad_norm learning_rate tokens tokens_per_second mfu step_seconds peak_bytes; do
    [ "$(grep -c "\"$k\":" "$TMP/run/metrics.jsonl")" = 2 ] && ok "metric-$k" || fail "metric-$k" "not in each of 2 lines"
done
go used-again 0 1 check "$TMP/run/used.yaml" && says used-again '^parameters:'
# a mistake leaves nothing behind
go mistake 2 2 "$TMP/small.yaml" train.global_batch=3 train.clip=-1 &&
    { [ ! -e "$TMP/mistake" ] && ok nothing-written || fail nothing-written "$TMP/mistake exists"; }
says mistake 'clip'
OMP_NUM_THREADS=many go threads 2 1 "$TMP/small.yaml" train.clip=-1 &&
    { [ ! -e "$TMP/threads" ] && grep -q '^2 mistakes' "$TMP/threads.log" && ok threads || fail threads "not beside the deck's mistake: $(tail -n 3 "$TMP/threads.log")"; }

# what cannot be written to, and a model's folder that is none, are told before anything is made; a pipe holds nobody
touch "$TMP/file"
for o in "$TMP/file" "$TMP/file/below" "$TMP/$(head -c 300 /dev/zero | tr '\0' x)" "$(head -c 9000 /dev/zero | tr '\0' /)" "$(printf 'a\377b')"; do
    "$MESTAR" "$TMP/small.yaml" "run.output=$o" >"$TMP/place.log" 2>&1
    [ $? = 2 ] && [ "$(grep -c 'run.output: ' "$TMP/place.log")" = 1 ] && ok "place-${#o}" || fail "place-${#o}" "$(head -c 300 "$TMP/place.log")"
done
mkdir -p "$TMP/no-model/folder/config.json" "$TMP/no-model/loop" "$TMP/no-model/pipe" "$TMP/no-model/latest/checkpoints"
ln -s config.json "$TMP/no-model/loop/config.json"
mkfifo "$TMP/no-model/pipe/config.json" "$TMP/no-model/latest/checkpoints/latest"
while read -r f words; do
    printf 'model:\n  from: %s\n' "$TMP/no-model/$f" >"$TMP/no-model.yaml"
    go "no-model-$f" 2 1 check "$TMP/no-model.yaml" && says "no-model-$f" "$words"
done <<'WORDS'
folder config.json: is a folder, not a file
loop config.json: cannot be opened: Too many levels of symbolic links
pipe config.json: is not a regular file
latest checkpoints/latest is not a regular file
WORDS
go tables 2 1 "$TMP/small.yaml" train.sequence_length=4096 train.global_batch=16777216 && says tables 'the tokens of a step alone take 1.25 TiB'

# compare says no with exit code 4
printf 'run:\n  mode: compare\nmodel:\n  from: tests/reference/dense\n' >"$TMP/compare.yaml"
go verdict-no 4 1 "$TMP/compare.yaml" model.from=tests/reference/dt_free compare.reference=tests/reference/dt_limit/reference.safetensors &&
    ok verdict-no
go verdict-tight 4 1 "$TMP/compare.yaml" compare.reference=tests/reference/dense/reference.safetensors \
    "compare.tolerance=[1e-12, 1e-12, 1e-12]" && ok verdict-tight

while read -r name parameters tensors; do
    printf 'model:\n  preset: %s\n' "$name" >"$TMP/$name.yaml"
    began=$(date +%s%N)
    go "preset-$name" 0 1 check "$TMP/$name.yaml" || continue
    took=$((($(date +%s%N) - began) / 1000000))
    got="$(words "$TMP/preset-$name.log" parameters) $(words "$TMP/preset-$name.log" tensors)"
    if [ "$got" != "$parameters $tensors" ]; then fail "preset-$name" "$got, want $parameters $tensors"
    elif [ -z "${SANITIZE:-}$SHORT" ] && [ "$took" -ge 1000 ]; then fail "preset-$name" "$took ms, want less than 1000"
    else ok "preset-$name"; fi
done <<'COUNTS'
h-4b 4489223040 311
h-8b 8100852736 311
h-47b 46791554816 577
h-56b 56324350464 701
nano-9b-v2 8888227328 341
nano-12b-v2 12310001152 369
nano-4b 3973556832 263
nano-30b 31577940288 6243
lightning-30b 32913266240 6513
super-120b 123611033088 42683
ultra-550b 560524603904 51023
COUNTS
finish
