#!/bin/bash
# Loading and saving changes nothing: every tensor of every folder comes back bit for bit, tensors nobody computes with included.
. tests/lib.sh
begin
cat >"$TMP/convert.yaml" <<'YAML'
run:
  mode: convert
YAML

# convert NAME N FROM override...: to $TMP/NAME-out
convert() {
    name=$1; n=$2; from=$3; shift 3
    go "$name" 0 "$n" "$TMP/convert.yaml" "model.from=$from" "convert.to=$TMP/$name-out" "$@"
}
same() { if said=$("$TENSORS" same "$2" "$3"); then ok "$1"; else fail "$1" "$(echo "$said" | tr '\n' ' ')"; fi; }

for f in tests/reference/*/; do
    c=$(basename "$f"); [ -f "$f/model.safetensors" ] || continue
    convert "$c" 1 "$f" && same "$c" "$TMP/$c-out" "$f/model.safetensors"
done
for n in 2 3; do convert "mtp-$n" $n tests/reference/mtp && same "mtp-$n" "$TMP/mtp-$n-out" tests/reference/mtp/model.safetensors; done
convert mesh 4 tests/reference/latent parallel.tensor=2 && same mesh "$TMP/mesh-out" tests/reference/latent/model.safetensors

# the spelling of transformers and back; as it has fused experts, fewer tensors in between
for c in latent mtp; do
    convert "$c-there" 1 tests/reference/$c convert.names=transformers && convert "$c-back" 2 "$TMP/$c-there-out" convert.names=hub &&
        same "$c-names" "$TMP/$c-back-out" tests/reference/$c/model.safetensors
done
"$TENSORS" list "$TMP/latent-there-out" >"$TMP/names" 2>/dev/null
grep -q '^model.layers.1.mixer.experts.up_proj F32 12x19x14$' "$TMP/names" && ! grep -q '^backbone' "$TMP/names" && ok fused-names ||
    fail fused-names "$(grep -m 2 experts "$TMP/names" | tr '\n' ' '), want model.layers.1.mixer.experts.up_proj F32 12x19x14"

# wider formats hold what narrower ones held
for t in bf16 fp16; do
    convert "$t-up" 1 tests/reference/stored_$t convert.dtype=fp32 && convert "$t-down" 1 "$TMP/$t-up-out" convert.dtype=$t &&
        same "$t-there-and-back" "$TMP/$t-down-out" tests/reference/stored_$t/model.safetensors
done

# tensors nobody computes with take the format too, correction biases theirs never
convert mtp-bf16 2 tests/reference/mtp convert.dtype=bf16 && convert mtp-wide 1 "$TMP/mtp-bf16-out" convert.dtype=fp32 &&
    convert mtp-again 3 "$TMP/mtp-wide-out" convert.dtype=bf16 && same mtp-bf16-there-and-back "$TMP/mtp-again-out" "$TMP/mtp-bf16-out"
said=$("$TENSORS" list "$TMP/mtp-bf16-out" 2>&1 | grep '^[a-z]' | sed -E 's/^(mtp)?[^ ]*(correction_bias) /\1 \2 /; s/^(mtp)?[^ ]*\.[^ ]* /\1 weight /' | cut -d' ' -f1-3 | sort -u | tr '\n' '|')
[ "$said" = " correction_bias F32| weight BF16|mtp correction_bias F32|mtp weight BF16|" ] && ok mtp-bf16 || fail mtp-bf16 "$said"

# keys of config.json that we do not read stay
grep -q '"use_mamba_kernels": true' "$TMP/dense-out/config.json" && ok unknown-keys || fail unknown-keys "use_mamba_kernels is gone from config.json"

# a model that was loaded and trained for 0 steps is the model that was loaded
printf 'train:\n  steps: 0\n  sequence_length: 16\n' >"$TMP/zero.yaml"
go zero 0 2 "$TMP/zero.yaml" model.from=tests/reference/biases &&
    same zero-steps "$TMP/zero/checkpoints/step-00000000" tests/reference/biases/model.safetensors
finish
