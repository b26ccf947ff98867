#!/bin/bash
# Any mesh goes on from what any other saved: the loss and the gradient norm of the next steps are those of the run that stayed on its
# mesh, to rounding. Weights, moments, the experts' corrections and the place in the text all have to arrive for that; the second step
# shows the moments. LONG=1: all pairs of these meshes, and 20 drawn ones with pipelines, virtual stages and every schedule; those that
# differ in the pipeline alone go on bit for bit, weights and moments too. SEED, DRAWS. Tensor 4 shares two groups of Mamba heads, two key and value heads, and splits widths that do not divide.
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

# Drawn pairs over pipeline, virtual stages, schedules, tensor and data. `mesh` sets $ranks, $flat (what decides the bits) and $keys.
RANDOM=${SEED:-5}
pick() { shift $((RANDOM % $#)); picked=$1; }
mesh() {
    pick 1 1 2; t=$picked; pick 1 1 2; d=$picked; pick 1 2 2 3 4; p=$picked; v=1
    [ $((p * t * d)) -le 8 ] || d=1
    pick 1f1b interleaved zero-bubble zbv; kind=$picked
    [ $kind != interleaved ] || { pick 2 3; v=$picked; }
    [ $kind != zbv ] || v=2
    [ $p != 1 ] || { kind=1f1b; v=1; }
    ranks=$((t * d * p)) flat=t$t-d$d keys="parallel.tensor=$t parallel.data=$d parallel.pipeline=$p parallel.schedule=$kind parallel.virtual_stages=$v"
    name=$flat-p$p-$kind-v$v
}
draws=${DRAWS:-4}; [ -z "$LONG" ] || draws=${DRAWS:-20}; [ -z "$SHORT" ] || draws=1
sed 's/ME\*-M/M-*EM-E*M/; s/global_batch: 4/global_batch: 8/' "$TMP/moe.yaml" >"$TMP/deep.yaml"
last=checkpoints/step-00000009
i=0
while [ $i -lt "$draws" ]; do
    i=$((i + 1))
    mesh; from=$name from_flat=$flat from_ranks=$ranks from_keys=$keys
    mesh; to=$name; while [ "$to" = "$from" ]; do mesh; to=$name; done
    [ $((RANDOM % 3)) != 0 ] || { while [ "$flat" != "$from_flat" ] || [ "$name" = "$from" ]; do mesh; done; to=$name; }  # a third differ in the pipeline alone
    pair=$(printf '%02d' $i)-$from-then-$to
    [ -d "$TMP/$from" ] || { go "$from" 0 $from_ranks "$TMP/deep.yaml" $from_keys || continue; cp -r "$TMP/$from" "$TMP/$from-six"
        go "$from" 0 $from_ranks "$TMP/deep.yaml" $from_keys train.steps=9 || continue; }
    cp -r "$TMP/$from-six" "$TMP/$pair"
    go "$pair" 0 $ranks "$TMP/deep.yaml" $keys train.steps=9 || continue
    if [ "$flat" = "$from_flat" ]; then
        { [ "$(exact "$TMP/$pair")" = "$(exact "$TMP/$from")" ] && "$TENSORS" same "$TMP/$pair/$last" "$TMP/$from/$last" >/dev/null 2>&1 &&
            "$TENSORS" same "$TMP/$pair/$last/resume" "$TMP/$from/$last/resume" >/dev/null 2>&1; } && ok "$pair-exact" ||
            fail "$pair-exact" "$(diff <(exact "$TMP/$pair") <(exact "$TMP/$from") | head -n 4 | tr '\n' ' ')"
    elif near "$(metric "$TMP/$pair" 7 loss)" "$(metric "$TMP/$from" 7 loss)" 1e-6 && near "$(metric "$TMP/$pair" 7 grad_norm)" "$(metric "$TMP/$from" 7 grad_norm)" 2e-5 &&
        near "$(metric "$TMP/$pair" 8 loss)" "$(metric "$TMP/$from" 8 loss)" 1e-5 && near "$(metric "$TMP/$pair" 9 loss)" "$(metric "$TMP/$from" 9 loss)" 1e-4; then ok "$pair"
    else fail "$pair" "$(exact "$TMP/$pair" | tail -n 3 | tr '\n' ' '), want $(exact "$TMP/$from" | tail -n 3 | tr '\n' ' ')"; fi
done
finish
