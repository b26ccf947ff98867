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
while read -r n what mesh; do
    go "$what" 0 "$n" "$TMP/deck.yaml" $mesh || continue
    json=$TMP/$what/bench.json
    kinds=$(sed -n 's/^    "\([M*E-]\)": {"layers": \([0-9]*\), "forward": {"seconds": [0-9.e-]*, "work": [1-9].*"backward": {"seconds": [0-9.e-]*, "work": [1-9].*/\1\2/p' "$json" | tr '\n' ' ')
    if [ "$kinds" = "M2 -1 E1 *1 " ]; then ok "layers, $what"; else fail "layers, $what" "$kinds"; fi
    if grep -q '"adamw": {"calls": [1-9]' "$json" && grep -q '"step": {"seconds": ' "$json"; then ok "step, $what"; else fail "step, $what" "not in $json"; fi
done <<'MESHES'
1 alone
2 tensor parallel.tensor=2
3 pipeline parallel.pipeline=3
2 interleaved parallel.pipeline=2 parallel.virtual_stages=2 precision.recipe=bf16
2 tied parallel.pipeline=2 model.tie_word_embeddings=true memory.recompute=full
4 context parallel.context=2 parallel.pipeline=2 parallel.schedule=zbv train.global_batch=8
MESHES

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
