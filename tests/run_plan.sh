#!/bin/bash
# The plan's memory is the measured peak of the arenas, to the byte, on every rank.
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
    if [ -n "$planned" ] && [ "$planned" = "$measured" ] && [ "$(echo "$planned" | wc -w)" = "$n" ]; then ok "$name"
    else fail "$name" "planned '$planned', measured '$measured'"; fi
}

for d in dense threes; do
    try "$TMP/$d.yaml" 1
    try "$TMP/$d.yaml" 1 memory.recompute=full train.micro_batch=4
    try "$TMP/$d.yaml" 2 train.micro_batch=2
done
try "$TMP/dense.yaml" 2 parallel.tensor=2
try "$TMP/dense.yaml" 4 parallel.tensor=2 parallel.sequence=true
try "$TMP/dense.yaml" 8 parallel.tensor=4 parallel.sequence=true memory.recompute=full
try "$TMP/dense.yaml" 8 parallel.tensor=8
try "$TMP/threes.yaml" 3 parallel.tensor=3 parallel.sequence=true
try "$TMP/threes.yaml" 6 parallel.tensor=6 run.debug=true
try "$TMP/moe.yaml" 1
try "$TMP/moe.yaml" 4 parallel.tensor=2 parallel.sequence=true
finish
