#!/bin/bash
# Training learns: on invented data and on the bytes of real files, with all four kinds of layers, on one rank and on four.
. tests/lib.sh
begin
rest='
train:
  steps: 60
  global_batch: 4
  sequence_length: 64
optimizer:
  learning_rate: 0.01
schedule:
  kind: linear
  warmup_steps: 5
checkpoint:
  interval: 0
'
{ model "ME-M*-"; echo "$rest"; } >"$TMP/mock.yaml"
{ model "ME-M*-" | sed 's/vocab_size: .*/vocab_size: 257/'; echo '  tokenizer: bytes'; echo "$rest"; printf 'data:\n  kind: text\n  path: [src, Makefile]\n'; } >"$TMP/text.yaml"

# falls NAME N DECK BY override...: the loss begins near that of a guess and falls by BY
falls() {
    name=$1; n=$2; deck=$3; by=$4; shift 4
    go "$name" 0 "$n" "$deck" "$@" || return
    first=$(metric "$TMP/$name" 1 loss); last=$(metric "$TMP/$name" '$' loss)
    awk -v a="$first" -v b="$last" -v by="$by" 'BEGIN { exit !(a > 4 && a < 7 && b > 0.1 && b < a - by) }' && ok "$name" ||
        fail "$name" "loss from $first to $last, want it to fall by $by"
}
falls mock 1 "$TMP/mock.yaml" 0.3
falls text 1 "$TMP/text.yaml" 1.5
falls text-mesh 4 "$TMP/text.yaml" 1.5 parallel.tensor=2 parallel.sequence=true moe.balance=bias
finish
