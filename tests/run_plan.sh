#!/bin/bash
# The plan's memory is the measured peak of the arenas, to the byte, on every rank; its work, memory traffic and messages by group are
# those of a step.
. tests/lib.sh
begin
train="
train:
  steps: 3
  global_batch: 8
  sequence_length: 29
checkpoint:
  interval: 0
"
{ model "M-*M-"; echo "$train"; } >"$TMP/dense.yaml"
{ model "M-*M-" | sed -E 's/(num_attention_heads|mamba_num_heads): .*/\1: 6/; s/(num_key_value_heads|n_groups): .*/\1: 3/'; echo "$train"; } >"$TMP/threes.yaml"

{ model "ME*-"; echo "$train"; } >"$TMP/moe.yaml"

numbers() { tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //; s/ $//'; }

# try DECK N override...
try() {
    deck=$1; n=$2; shift 2
    name=$(basename "$deck" .yaml)-$n$(printf -- '-%s' "$@" | tr -c 'a-z0-9\n' _)
    go "plan-$name" 0 1 plan "$deck" --json run.ranks="$n" "$@" || return
    planned=$(tr -d '\n' <"$TMP/plan-$name.log" | grep -o '"arena_bytes": *[0-9]*' | sed 's/.*: *//' | numbers)
    go "$name" 0 "$n" "$deck" "$@" || return
    measured=$(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$TMP/$name/summary.yaml" | sed -e '1s/^peak_bytes://' -e '/^[a-z_]*:/d' | numbers)
    steps=$(sed -n 's/.*"step": \({.*}}\)}.*/\1/p' "$TMP/plan-$name.log")
    did=$(sed -n '/^step:/,/^[a-z]/s/^  - //p' "$TMP/$name/summary.yaml")
    case $* in *run.debug=true*) did=$steps ;; esac  # guards keep arrays apart, so sums over all of them are more calls
    if [ -n "$steps" ] && [ "$steps" = "$did" ]; then ok "step-$name"; else fail "step-$name" "planned '$steps', did '$did'"; fi
    if [ -n "$planned" ] && [ "$planned" = "$measured" ] && [ "$(echo "$planned" | wc -w)" = "$n" ]; then ok "$name"
    else fail "$name" "planned '$planned', measured '$measured'"; fi
}

for d in dense threes; do
    try "$TMP/$d.yaml" 1
    try "$TMP/$d.yaml" 1 memory.recompute=full train.micro_batch=4
    try "$TMP/$d.yaml" 2 train.micro_batch=2 memory.recompute=selective
done
try "$TMP/dense.yaml" 2 parallel.tensor=2
try "$TMP/dense.yaml" 4 parallel.tensor=2 parallel.sequence=true
try "$TMP/dense.yaml" 8 parallel.tensor=4 parallel.sequence=true memory.recompute=full
try "$TMP/dense.yaml" 8 parallel.tensor=8
try "$TMP/threes.yaml" 3 parallel.tensor=3 parallel.sequence=true
try "$TMP/threes.yaml" 6 parallel.tensor=6 run.debug=true
try "$TMP/moe.yaml" 1
try "$TMP/moe.yaml" 2 parallel.tensor=2 parallel.sequence=true memory.recompute=selective memory.recompute_ops='[scan, attention, linear, grouped_linear]'
try "$TMP/moe.yaml" 4 parallel.tensor=2 parallel.sequence=true moe.balance=bias

# Thousands of micro-batches: planned in seconds of the processor (10 times what is needed), on a page.
for how in "zbv 2" "interleaved 3" "zero-bubble 1"; do
    set -- $how
    ( ulimit -t 10; go "many-$1" 0 1 plan "$TMP/dense.yaml" --json run.ranks=8 parallel.pipeline=8 parallel.schedule="$1" parallel.virtual_stages="$2" train.global_batch=4099 ) || continue
    [ "$(wc -c <"$TMP/many-$1.log")" -lt 16000 ] && grep -q '"micro_batches": 4099' "$TMP/many-$1.log" && ok "many-$1" || fail "many-$1" "$(wc -c <"$TMP/many-$1.log") bytes"
done

# Nor does their number need memory: also with empty stages, which take no time.
most() { grep -o '"activations_bytes": *[0-9]*' "$TMP/$1.log" | sed 's/.*: *//' | sort -n | tail -n 1; }
go many-few 0 1 plan "$TMP/dense.yaml" --json run.ranks=8 parallel.pipeline=8 parallel.schedule=zbv train.global_batch=64 &&
    { near "$(most many-zbv)" "$(most many-few)" 0.1 && ok many-memory || fail many-memory "$(most many-zbv) bytes, with 64 micro-batches $(most many-few)"; }

# What share of the peak a step reached: work of the model over what the ranks could have done meanwhile.
go mfu 0 2 "$TMP/dense.yaml" machine.peak_fp32=1e9 memory.recompute=full
work=$("$MESTAR" plan "$TMP/dense.yaml" --json run.ranks=2 memory.recompute=full | sed -n 's/.*"model_work": \([0-9]*\).*/\1/p' | awk '{ s += $1 } END { print s }')
want=$(awk -v w="$work" -v s="$(metric "$TMP/mfu" 2 step_seconds)" 'BEGIN { print w / (s * 2e9) }')
if near "$(metric "$TMP/mfu" 2 mfu)" "$want" 1e-4; then ok mfu; else fail mfu "$(metric "$TMP/mfu" 2 mfu), want $want"; fi
if "$MESTAR" plan "$TMP/dense.yaml" machine.peak_fp32=1e9 | grep -q 'no step is shorter than .* at these speeds'; then ok "least time"; else fail "least time" "not printed"; fi
finish
