#!/bin/bash
# What must change no bit: recompute, threads, NaN-filled memory and guards. What changes rounding only: the size of a micro-batch.
. tests/lib.sh
begin
train="
train:
  steps: 6
  global_batch: 4
  sequence_length: 37
optimizer:
  learning_rate: 0.003
"
{ model "M-*EM"; echo "$train"; } >"$TMP/base.yaml"
deck=$TMP/base.yaml
final=checkpoints/step-00000006/model.safetensors

# same NAME REFERENCE: every metric and the saved weights, bit for bit
same() {
    if [ "$(exact "$TMP/$1")" != "$(exact "$TMP/$2")" ]; then
        fail "$1" "metrics: $(diff <(exact "$TMP/$1") <(exact "$TMP/$2") | head -n 4 | tr '\n' ' ')"
    elif ! cmp -s "$TMP/$1/$final" "$TMP/$2/$final"; then fail "$1" "$("$TENSORS" same "$TMP/$1/$(dirname $final)" "$TMP/$2/$(dirname $final)" | head -n 3 | tr '\n' ' ')"
    else ok "$1"; fi
}

go base 0 1 "$deck" run.threads=1 || finish
[ "$(exact "$TMP/base" | wc -l)" = 6 ] && ok six-lines || fail six-lines "$(wc -l <"$TMP/base/metrics.jsonl") lines of metrics, want 6"
go again 0 1 "$deck" run.threads=1 && same again base
go recompute 0 1 "$deck" run.threads=1 memory.recompute=full && same recompute base
go selective 0 1 "$deck" run.threads=2 memory.recompute=selective && same selective base
go threads2 0 1 "$deck" run.threads=2 && same threads2 base
go threads3 0 1 "$deck" run.threads=3 memory.recompute=full && same threads3 base
go debug 0 1 "$deck" run.threads=1 run.debug=true && same debug base
go debug-recompute 0 1 "$deck" run.threads=2 run.debug=true memory.recompute=full && same debug-recompute base
go mesh 0 4 "$deck" parallel.tensor=2 parallel.sequence=true &&
    go mesh-recompute 0 4 "$deck" parallel.tensor=2 parallel.sequence=true memory.recompute=full run.debug=true && same mesh-recompute mesh &&
    go mesh-selective 0 4 "$deck" parallel.tensor=2 parallel.sequence=true memory.recompute=selective run.debug=true && same mesh-selective mesh
go used 0 1 "$TMP/base/used.yaml" && same used base
for n in 2 4; do
    go "micro$n" 0 1 "$deck" train.micro_batch=$n || continue
    got="$(metric "$TMP/micro$n" 1 loss) $(metric "$TMP/micro$n" 1 grad_norm) $(metric "$TMP/micro$n" '$' loss)"
    want="$(metric "$TMP/base" 1 loss) $(metric "$TMP/base" 1 grad_norm) $(metric "$TMP/base" '$' loss)"
    set -- $got $want
    near "$1" "$4" 1e-6 && near "$2" "$5" 1e-5 && near "$3" "$6" 1e-3 && ok "micro$n" || fail "micro$n" "$got, want $want"
done
finish
