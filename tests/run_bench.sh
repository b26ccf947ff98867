#!/bin/bash
# Mode bench: every kind of layer once, a step, every operation in it; on one rank and on several; numbers that programs can read. And what
# the scripts of make bench refuse.
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

# The scripts of make bench and bench-compare: what they cannot do is one line, and no success.
refused() {
    name=$1 want=$2; shift 2
    if python3 "$@" >"$TMP/$name.log" 2>&1 </dev/null; then fail "$name" "left with 0"
    elif grep -q -- "$want" "$TMP/$name.log" && ! grep -q Traceback "$TMP/$name.log"; then ok "$name"
    else fail "$name" "no '$want': $(tail -n 3 "$TMP/$name.log" | tr '\n' '|')"; fi
}
if command -v python3 >/dev/null; then
    options="--program $MESTAR --build $B --out $TMP/bench"
    refused configuration "there is no inputs/bench-z.yaml" bench/run.py steps --configs a,z $options
    refused recipe "recipe 'fp17' is none of" bench/run.py steps --recipes fp32,fp17 $options
    refused rounds "at least 1" bench/run.py steps --rounds 0 $options
    refused before "BEFORE: .*is no program" bench/run.py layers --before "$TMP/nowhere -c 0" $options
    refused python "PYTHON: .*is no program" bench/run.py steps --python "$TMP/nowhere" $options
    refused one-thread "did not come to their end: ranks" bench/run.py ranks --threads 1 $options
    refused not-run "mestar itself did not run" bench/run.py steps --configs a --recipes fp32 --rounds 1 --program "$(command -v false)" --build "$B" --out "$TMP/bench"
    refused revision "'nonsense' is no commit" bench/compare.py --out "$TMP/bench" -- nonsense
fi
finish
