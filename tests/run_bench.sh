#!/bin/bash
# Mode bench: every kind of layer once, a step, every operation in it; on one rank and on several; numbers that programs can read.
. tests/lib.sh
begin
{ model "MM-E*"; cat <<'YAML'; } >"$TMP/deck.yaml"
run:
  mode: bench
train:
  micro_batch: 2
  sequence_length: 24
YAML
for n in 1 2; do
    go "ranks$n" 0 "$n" "$TMP/deck.yaml" parallel.tensor="$n" || continue
    json=$TMP/ranks$n/bench.json
    kinds=$(sed -n 's/^    "\([M*E-]\)": {"layers": \([0-9]*\), "forward": {"seconds": [0-9.e-]*, "work": [1-9].*"backward": {"seconds": [0-9.e-]*, "work": [1-9].*/\1\2/p' "$json" | tr '\n' ' ')
    if [ "$kinds" = "M2 -1 E1 *1 " ]; then ok "layers, $n ranks"; else fail "layers, $n ranks" "$kinds"; fi
    if grep -q '"adamw": {"calls": [1-9]' "$json" && grep -q '"step": {"seconds": ' "$json"; then ok "step, $n ranks"; else fail "step, $n ranks" "not in $json"; fi
done
finish
