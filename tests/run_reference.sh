#!/bin/bash
# The folders of tests/reference, written by transformers: logits, loss and every gradient are the same on every legal mesh. The verdict is
# mestar's (exit code) and, on what it dumped, that of tests/tensors.c.
. tests/lib.sh
begin
cat >"$TMP/compare.yaml" <<'YAML'
run:
  mode: compare
YAML

# try CASE TENSOR DATA SEQUENCE [override...]
try() {
    c=$1; t=$2; d=$3; s=$4; shift 4
    name=$c-t$t-d$d-$s$(printf %s "$*" | tr -c 'a-z0-9\n' _); f=tests/reference/$c
    go "$name" 0 $((t * d)) "$TMP/compare.yaml" "model.from=$f" "compare.reference=$f/reference.safetensors" \
        "compare.dump=$TMP/$name.safetensors" parallel.tensor="$t" parallel.data="$d" parallel.sequence="$s" "$@" || return
    if said=$("$TENSORS" close "$TMP/$name.safetensors" "$f/reference.safetensors" 1e-4 1e-5 1e-3); then
        ok "$name ($said)"
    else fail "$name" "the dump is off: $said"; fi
    rm -rf "$TMP/$name.safetensors" "${TMP:?}/$name"
}

meshes="1 2 3 4"; [ -z "$SHORT" ] || meshes="1 2"
for f in tests/reference/*/; do
    c=$(basename "$f")
    [ -f "$f/reference.safetensors" ] || continue
    rows=$("$TENSORS" list "$f/reference.safetensors" | sed -n 's/^input_ids I64 \([0-9]*\)x.*/\1/p')
    for t in $meshes; do
        legal "$f" "$t" || continue
        try "$c" "$t" 1 false
        [ "$t" = 1 ] || try "$c" "$t" 1 true run.debug=true
        [ $((rows % 2)) = 0 ] && [ -z "$SHORT" ] || continue
        if [ "$t" -le 2 ] || [ -n "$LONG" ]; then try "$c" "$t" 2 "$([ "$t" = 1 ] && echo false || echo true)"; fi
    done
done
# heads shared by two and by four ranks, experts narrower than the ranks are many, rows split unevenly
[ -n "$SHORT" ] || for m in "groups3 6 1" "groups3 12 1" "latent 12 1" "moe_group 6 1" "gqa 8 1" "dense 6 2"; do
    set -- $m
    try "$1" "$2" "$3" true
done
for c in dense moe_group latent; do
    try "$c" 1 1 false memory.recompute=full run.debug=true
    try "$c" 1 1 false precision.recipe=fp64
    try "$c" 1 1 false train.micro_batch=2
    t=2; legal "tests/reference/$c" 2 || t=3
    try "$c" $t 1 true memory.recompute=full train.micro_batch=2
done
finish
