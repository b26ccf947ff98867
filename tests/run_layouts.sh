#!/bin/bash
# A mesh is another way to do the same computation: the first loss and gradient norm agree to rounding, and training stays together.
. tests/lib.sh
begin
steps=30; [ -z "$LONG" ] || steps=100
train="
train:
  steps: $steps
  global_batch: 8
  sequence_length: 31
optimizer:
  learning_rate: 0.003
schedule:
  warmup_steps: 5
checkpoint:
  interval: 0
"

# meshes DECK BOUND "TENSOR DATA SEQUENCE"...: the last loss within BOUND of one rank's
meshes() {
    deck=$1; bound=$2; shift 2
    base=$(basename "$deck" .yaml)
    go "$base" 0 1 "$deck" || return
    for m in "$@"; do
        set -- $m
        name=$base-t$1-d$2-$3
        go "$name" 0 $(($1 * $2)) "$deck" parallel.tensor="$1" parallel.data="$2" parallel.sequence="$3" || continue
        got="$(metric "$TMP/$name" 1 loss) $(metric "$TMP/$name" 1 grad_norm) $(metric "$TMP/$name" '$' loss)"
        want="$(metric "$TMP/$base" 1 loss) $(metric "$TMP/$base" 1 grad_norm) $(metric "$TMP/$base" '$' loss)"
        set -- $got $want
        if near "$1" "$4" 1e-6 && near "$2" "$5" 2e-5 && near "$3" "$6" "$bound"; then ok "$name"
        else fail "$name" "first loss, norm, last loss $got, want $want"; fi
    done
}

{ model "M-*M-"; echo "$train"; } >"$TMP/dense.yaml"
{ model "M-*M-" | sed -E 's/(num_attention_heads|mamba_num_heads): .*/\1: 6/; s/(num_key_value_heads|n_groups): .*/\1: 3/'; echo "$train"; } >"$TMP/threes.yaml"
{ model "ME*-"; echo "  n_group: 4"; echo "  topk_group: 2"; echo "  moe_latent_size: 13"; echo "$train"
  echo "moe:"; echo "  balance: bias"; } >"$TMP/moe.yaml"
meshes "$TMP/dense.yaml" 1e-3 "1 2 false" "2 1 false" "2 1 true" "4 1 true" "2 2 true" "1 4 false" "8 1 true" "4 2 false" "2 4 true" "1 8 false"
meshes "$TMP/threes.yaml" 1e-3 "3 1 true" "3 2 false" "6 1 false"
# Experts: one decision taken otherwise is a different path, so the ends only resemble each other.
meshes "$TMP/moe.yaml" 2e-2 "1 2 false" "2 1 false" "2 1 true" "4 2 true" "1 8 false"
finish
