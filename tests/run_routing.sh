#!/bin/bash
# Balance is counted over the right tokens: of a document wherever it lies and whatever it is packed with, of a micro-batch, of a step so
# far; and the room of an expert is that for a whole sequence. In double, where drawn meshes must give the losses, norms and loads of one
# rank, all to the last digits. LONG=1: 24 meshes. SEED, DRAWS.
. tests/lib.sh
begin
set -f
draws=${DRAWS:-8}; [ -z "$LONG" ] || draws=${DRAWS:-24}; [ -z "$SHORT" ] || draws=3
RANDOM=${SEED:-11}
pick() { shift $((RANDOM % $#)); picked=$1; }

# Documents of a few tokens and of many, which are packed into sequences of 64 and cross every border there is.
i=0
while [ $i -lt 60 ]; do
    i=$((i + 1)); pick 1 5 9 14 30 47 120; length=$picked
    printf '{"text": "'; n=0; while [ $n -lt "$length" ]; do n=$((n + 1)); pick a b c d ' ' e f; printf '%s' "$picked"; done; printf '"}\n'
done >"$TMP/documents.jsonl"

# deck PATTERN: of fp64; texts as bytes.
deck() {
    model "$1" | sed 's/vocab_size: .*/vocab_size: 257/'
    cat <<YAML
  tokenizer: bytes
precision:
  recipe: fp64
train:
  steps: 3
  global_batch: 4
  sequence_length: 64
optimizer:
  learning_rate: 0.003
schedule:
  kind: constant
data:
  kind: text
  path: [$TMP/documents.jsonl]
  cache: $TMP/cache
moe:
  aux_coefficient: 0.1
  z_coefficient: 0.05
checkpoint:
  interval: 0
log:
  loads: true
YAML
}
deck "E*ME" >"$TMP/deck.yaml"

# like A B: the numbers of three steps.
like() {
    local key step
    for step in 1 2 3; do
        for key in loss grad_norm loss_balance loss_z; do
            near "$(metric "$TMP/$1" $step $key)" "$(metric "$TMP/$2" $step $key)" 1e-12 || { echo "$key of step $step: $(metric "$TMP/$1" $step $key), want $(metric "$TMP/$2" $step $key)"; return 1; }
        done
    done
    [ "$(sed 's/.*"loads": //' "$TMP/$1/metrics.jsonl")" = "$(sed 's/.*"loads": //' "$TMP/$2/metrics.jsonl")" ] || { echo "other loads"; return 1; }
}

for kind in sequence batch global; do
    for capacity in 0 1; do
        micro=4; [ $kind != batch ] || micro=2
        go one-$kind-$capacity 0 1 "$TMP/deck.yaml" train.micro_batch=$micro moe.aux_kind=$kind moe.capacity=$capacity || finish
    done
done
go one-batch 0 1 "$TMP/deck.yaml" train.micro_batch=4 moe.aux_kind=batch || finish
differ() { [ "$(metric "$TMP/$1" 1 "$3")" != "$(metric "$TMP/$2" 1 "$3")" ] && ok "differ-$1-$2" || fail "differ-$1-$2" "both $(metric "$TMP/$1" 1 "$3")"; }
differ one-sequence-0 one-batch-0 loss_balance
differ one-sequence-0 one-sequence-1 loss
[ "$(exact "$TMP/one-batch")" = "$(exact "$TMP/one-global-0")" ] && ok global-of-one || fail global-of-one "$(metric "$TMP/one-global-0" 1 loss_balance), want $(metric "$TMP/one-batch" 1 loss_balance)"

# Drawn meshes. `batch` is of as many sequences as are computed at once, on however many data ranks; `global` of as many micro-batches.
i=0
while [ $i -lt "$draws" ]; do
    i=$((i + 1))
    pick 1 2 4; t=$picked; pick 1 2 4 4; c=$picked; pick 1 1 2; d=$picked; pick 1 1 2; p=$picked
    pick sequence sequence batch global; kind=$picked; pick 0 1; capacity=$picked; pick true false; sequence=$picked; [ $t -gt 1 ] || sequence=false
    [ $((t * c * d * p)) -le 16 ] || p=1
    pick 1 2; micro=$picked; [ $((micro * d)) -le 4 ] || micro=1
    case $kind in batch) micro=2 ;; global) micro=$((4 / d)) ;; esac
    all=; for e in 1 2 4 8; do for y in 1 2; do [ $((t * c * d % (e * y))) != 0 ] || all="$all $e:$y"; done; done
    pick $all; e=${picked%:*} y=${picked#*:}; [ $picked != 1:1 ] || y=$t; pick none full; recompute=$picked
    name=$(printf '%02d' $i)-$kind-room$capacity-t$t-c$c-d$d-p$p-e$e-y$y-$recompute-$sequence
    go "$name" 0 $((t * c * d * p)) "$TMP/deck.yaml" train.micro_batch=$micro moe.aux_kind=$kind moe.capacity=$capacity parallel.tensor=$t parallel.context=$c parallel.data=$d \
        parallel.pipeline=$p parallel.expert=$e parallel.expert_tensor=$y parallel.sequence=$sequence memory.recompute=$recompute || continue
    why=$(like "$name" one-$kind-$capacity) && ok "$name" || fail "$name" "$why"
done
finish
