#!/bin/bash
# A model's first weights are a function of seed, name and place, not of the mesh: train.steps=0 saves the same bits everywhere.
. tests/lib.sh
begin

# first DECK, then each "TENSOR DATA SEQUENCE" must save the same file
compare_meshes() {
    deck=$1; shift
    base=$(basename "$deck" .yaml)
    go "$base" 0 1 "$deck" || return
    want=$TMP/$base/checkpoints/step-00000000/model.safetensors
    for m in "$@"; do
        set -- $m
        name=$base-t$1-d$2-$3
        go "$name" 0 $(($1 * $2)) "$deck" parallel.tensor="$1" parallel.data="$2" parallel.sequence="$3" || continue
        if cmp -s "$want" "$TMP/$name/checkpoints/step-00000000/model.safetensors"; then ok "$name"
        else fail "$name" "$("$TENSORS" same "$TMP/$base/checkpoints/step-00000000" "$TMP/$name/checkpoints/step-00000000" | tr '\n' ' ')"; fi
    done
}

rest='
train:
  steps: 0
  sequence_length: 24
'
{ model "M*-EM"; echo "$rest"; } >"$TMP/twos.yaml"
{ model "M*-E" | sed -E 's/(num_attention_heads|mamba_num_heads): .*/\1: 12/; s/(num_key_value_heads|n_groups): .*/\1: 3/'
  echo "  use_bias: true"; echo "  mlp_bias: true"; echo "  moe_latent_size: 13"; echo "  initialization: megatron"; echo "$rest"; } >"$TMP/threes.yaml"
{ model "M*-E"; echo "  tie_word_embeddings: true"; echo "$rest"; echo "precision:"; echo "  parameters: bf16"; } >"$TMP/tied.yaml"
compare_meshes "$TMP/twos.yaml" "2 1 false" "4 1 true" "8 1 true" "1 2 false" "2 2 true" "4 2 false"
compare_meshes "$TMP/threes.yaml" "3 1 false" "3 2 true" "6 1 true" "12 1 false"
compare_meshes "$TMP/tied.yaml" "2 1 true" "1 3 false"
if go "seed" 0 1 "$TMP/twos.yaml" run.seed=4321; then
    cmp -s "$TMP/twos/checkpoints/step-00000000/model.safetensors" "$TMP/seed/checkpoints/step-00000000/model.safetensors" &&
        fail other-seed "another seed gave the same weights" || ok other-seed
fi
finish
