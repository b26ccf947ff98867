#!/bin/bash
# Any mesh goes on from what any other saved: the loss and the gradient norm of the next steps are those of the run that stayed on its
# mesh, to rounding. Weights, moments, the experts' corrections and the place in the text all have to arrive for that; the second step
# shows the moments. Tensor 4 shares two groups of Mamba heads, two key and value heads, and splits widths that do not divide.
. tests/lib.sh
begin
{ model "ME*-M"
  printf '  n_group: 4\n  topk_group: 2\n  moe_latent_size: 13\n'
  printf 'train:\n  steps: 6\n  global_batch: 4\n  sequence_length: 31\noptimizer:\n  learning_rate: 0.003\nschedule:\n  kind: constant\n'
  printf 'moe:\n  balance: bias\n'; } >"$TMP/moe.yaml"
deck=$TMP/moe.yaml
meshes="1x1 2x1 2x1s 1x2 2x2s 4x1s"
pairs="2x1:4x1s 2x1s:1x2 2x2s:1x1 4x1s:2x2s 1x2:4x1s 1x1:2x2s 4x1s:1x1 1x2:2x1"

# keys MESH: tensor x data, s with sequence parallelism; sets $ranks and $keys
keys() {
    set -- "${1%%x*}" "${1##*x}"
    ranks=$(($1 * ${2%s})) keys="parallel.tensor=$1 parallel.data=${2%s}"
    [ "$2" = "${2%s}" ] || keys="$keys parallel.sequence=true"
}

for m in $meshes; do
    keys "$m"
    go "$m" 0 $ranks "$deck" $keys && cp -r "$TMP/$m" "$TMP/$m-six" && go "$m" 0 $ranks "$deck" $keys train.steps=9
done
[ -z "$LONG" ] || pairs=$(for a in $meshes; do for b in $meshes; do [ "$a" = "$b" ] || echo "$a:$b"; done; done)
for p in $pairs; do
    from=${p%:*} name=${p%:*}-then-${p#*:}
    keys "${p#*:}"
    cp -r "$TMP/$from-six" "$TMP/$name"
    go "$name" 0 $ranks "$deck" $keys train.steps=9 || continue
    got="$(metric "$TMP/$name" 7 loss) $(metric "$TMP/$name" 7 grad_norm) $(metric "$TMP/$name" 8 loss) $(metric "$TMP/$name" 9 loss)"
    want="$(metric "$TMP/$from" 7 loss) $(metric "$TMP/$from" 7 grad_norm) $(metric "$TMP/$from" 8 loss) $(metric "$TMP/$from" 9 loss)"
    set -- $got $want
    if near "$1" "$5" 1e-6 && near "$2" "$6" 2e-5 && near "$3" "$7" 1e-5 && near "$4" "$8" 1e-4; then ok "$name"
    else fail "$name" "loss and norm of step 7, losses of 8 and 9: $got, want $want"; fi
done
finish
