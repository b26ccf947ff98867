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

# Documents that cross a border between the tokens of tensor ranks and none between pieces; and data ranks with other numbers of padding.
for how in "4 parallel.tensor=4 parallel.expert=4" "2 parallel.tensor=2 parallel.sequence=true" "8 parallel.tensor=4 parallel.context=2 parallel.expert=2" "3 parallel.tensor=1 parallel.expert=1 parallel.data=3 train.global_batch=3"; do
    set -- $how; n=$1; shift; name=borders-$n-$(echo "$*" | tr -dc '0-9'); one=one-sequence-0
    [ $n != 3 ] || { one=one-3; go $one 0 1 "$TMP/deck.yaml" train.global_batch=3 train.micro_batch=3 || continue; }
    go "$name" 0 "$n" "$TMP/deck.yaml" train.micro_batch=1 "$@" || continue
    why=$(like "$name" $one) && ok "$name" || fail "$name" "$why"
done

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

# One normalised expert a token: all weights are the same number, so whoever comes first has the room. Where the text is one letter, all
# tokens of the first layer come to one expert.
printf '{"text": "%s"}\n' "$(printf 'a%.0s' $(seq 3000))" >"$TMP/alike.jsonl"
single() { echo "$TMP/deck.yaml" model.num_experts_per_tok=1 model.norm_topk_prob=true model.routed_scaling_factor=2.7 moe.capacity=1 train.micro_batch=1 "data.path=[$TMP/$1.jsonl]"; }
for text in documents alike; do
    go single-$text 0 1 $(single $text) || continue
    for how in "4 parallel.expert=4" "4 parallel.tensor=2 parallel.expert=4 parallel.expert_tensor=1" "8 parallel.tensor=2 parallel.context=2 parallel.expert=2 parallel.expert_tensor=2 parallel.sequence=true memory.recompute=full" \
        "4 parallel.context=4"; do
        set -- $how; n=$1; shift; name=single-$text-$(echo "${*#parallel.}" | tr ' ' '-')
        go "$name" 0 "$n" $(single $text) "$@" || continue
        why=$(like "$name" single-$text) && ok "$name" || fail "$name" "$why"
    done
done
grep -q '"loads": \[\[\(0, \)*256\(, 0\)*\]' "$TMP/single-alike/metrics.jsonl" && ok single-alike || fail single-alike "$(grep -o '"loads".*' "$TMP/single-alike/metrics.jsonl" | head -n 1)"
go single-roomy 0 1 $(single documents) moe.capacity=0 && differ single-documents single-roomy loss

# ---- plans ----

# A router that knows no difference sends every token to the first experts: what the run leaves in routing.json is then how every rank
# chooses, and memory, work and messages are planned to the byte; with even loads they are not.
one_sided() { echo "$TMP/deck.yaml" precision.recipe=fp32 model.initializer_range=0 optimizer.learning_rate=0 moe.aux_coefficient=0 moe.z_coefficient=0 "$@"; }
facts() { grep -o '"arena_bytes": *[0-9]*\|"step": {"work[^}]*}}' "$1" | sed 's/"arena_bytes": *//; s/^"step": //'; }
measured() {
    paste -d '\n' <(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$1/summary.yaml" | sed -n 's/^  - //p') <(sed -n '/^step:/,/^[a-z]/s/^  - //p' "$1/summary.yaml")
}
for how in "4 parallel.expert=4" "4 parallel.tensor=2 parallel.expert=2 parallel.expert_tensor=2" "8 parallel.context=2 parallel.expert=4 parallel.pipeline=2"; do
    set -- $how; n=$1; shift; name=one-sided-$n-$(echo "$*" | tr -dc '0-9')
    go "$name" 0 "$n" $(one_sided "$@") && go "$name-plan" 0 1 plan $(one_sided "$@") --json run.ranks="$n" plan.routing="$TMP/$name" && go "$name-even" 0 1 plan $(one_sided "$@") --json run.ranks="$n" || continue
    [ "$(facts "$TMP/$name-plan.log")" = "$(measured "$TMP/$name")" ] && ok "$name" || fail "$name" "planned $(facts "$TMP/$name-plan.log" | head -n 2 | tr '\n' ' '), measured $(measured "$TMP/$name" | head -n 2 | tr '\n' ' ')"
    [ "$(facts "$TMP/$name-even.log")" != "$(measured "$TMP/$name")" ] && ok "$name-even" || fail "$name-even" "the same"
    grep -q '"routes": "recorded"' "$TMP/$name-plan.log" && grep -q '"routes": "assumed even"' "$TMP/$name-even.log" &&
        grep -q '"imbalance": \[{"layer": 0, "expert": 4, "rank": '$(echo "$*" | grep -o 'expert=[0-9]' | head -n 1 | tr -dc 0-9)', "fullest_rank": 0}' "$TMP/$name-plan.log" && ok "$name-said" || fail "$name-said" "$(grep -o '"imbalance.*\|"routes.*' "$TMP/$name-plan.log" | head -n 3 | tr '\n' ' ')"
done

# What a router chooses by itself, rank by rank and micro-batch by micro-batch, where the run noted it: memory of a run of one step, and
# work, traffic and messages of a second one, whose gradients' memory is there already. The same from a run on one stage with its experts at
# home.
learned() { echo "$TMP/deck.yaml" precision.recipe=fp32 model.initializer_range=0.3 model.num_experts_per_tok=3 train.global_batch=8 log.routing=true "$@"; }
for how in "4 parallel.expert=4" "4 parallel.tensor=2 parallel.expert=2 parallel.expert_tensor=2 parallel.sequence=true train.micro_batch=2" "4 parallel.expert=2 memory.recompute=full moe.capacity=1" \
    "8 parallel.context=2 parallel.expert=4 parallel.pipeline=2 parallel.schedule=zbv moe.aux_kind=global"; do
    set -- $how; n=$1; shift; name=learned-$n-$(echo "$*" | tr -dc '0-9'); home= stages=1
    for key; do case $key in parallel.expert*|parallel.schedule*) ;; parallel.pipeline=*) stages=${key#*=} ;; *) home="$home $key" ;; esac; done
    for steps in 1 2; do
        go "$name-home-$steps" 0 $((n / stages)) $(learned $home) train.steps=$steps && go "$name-home-plan-$steps" 0 1 plan $(learned "$@") --json run.ranks="$n" plan.routing="$TMP/$name-home-$steps" || continue 2
        go "$name-$steps" 0 "$n" $(learned "$@") train.steps=$steps && go "$name-plan-$steps" 0 1 plan $(learned "$@") --json run.ranks="$n" plan.routing="$TMP/$name-$steps" || continue 2
    done
    go "$name-even" 0 1 plan $(learned "$@") --json run.ranks="$n" || continue
    memory() { grep -v '^{'; }; costs() { grep '^{'; }
    for plan in $name-plan $name-home-plan; do
        [ "$(facts "$TMP/$plan-1.log" | memory)" = "$(measured "$TMP/$name-1" | memory)" ] && ok "$plan-memory" || fail "$plan-memory" "planned $(facts "$TMP/$plan-1.log" | memory | tr '\n' ' '), measured $(measured "$TMP/$name-1" | memory | tr '\n' ' ')"
        [ "$(facts "$TMP/$plan-2.log" | costs)" = "$(measured "$TMP/$name-2" | costs)" ] && ok "$plan-step" || fail "$plan-step" "planned $(facts "$TMP/$plan-2.log" | costs | head -n 1), measured $(measured "$TMP/$name-2" | costs | head -n 1)"
    done
    [ "$(facts "$TMP/$name-even.log")" != "$(measured "$TMP/$name-2")" ] && ok "$name-even" || fail "$name-even" "the same"
done
# Choices are those of training, like the loads beside them, whatever was measured after the step.
for every in 0 1; do
    go validation-$every 0 2 $(learned parallel.expert=2) train.steps=1 data.split=0.3 train.validation_interval=$every || finish
done
grep -q '"validation"' "$TMP/validation-1/metrics.jsonl" && grep -q '"choices"' "$TMP/validation-0/routing.json" && cmp "$TMP/validation-0/routing.json" "$TMP/validation-1/routing.json" && ok validation || fail validation "other choices, or nothing to compare"
# Of ranks with other tokens: in proportion.
go elsewhere 0 1 plan $(learned parallel.tensor=2 parallel.expert=2) run.ranks=4 plan.routing="$TMP/learned-4-4-2" && { grep -q 'in these proportions on every rank' "$TMP/elsewhere.log" && ok elsewhere || fail elsewhere "$(grep recorded "$TMP/elsewhere.log")"; }
go same 0 1 plan $(learned parallel.expert=4) run.ranks=4 plan.routing="$TMP/learned-4-4-2" && { grep -q 'step 2), of every rank' "$TMP/same.log" && ok same || fail same "$(grep recorded "$TMP/same.log")"; }
# Of as many choices a token, and as much room, as noted; else in proportion.
for other in model.num_experts_per_tok=2 moe.capacity=1; do
    go "other-$other" 0 1 plan $(learned parallel.expert=4 $other) run.ranks=4 plan.routing="$TMP/learned-4-4-2" && { grep -q 'in these proportions on every rank' "$TMP/other-$other.log" && ok "other-$other" || fail "other-$other" "$(grep recorded "$TMP/other-$other.log")"; }
done
# Generation has other micro-batches on the same mesh; and a run expects the memory that such a plan says.
set -- $(learned parallel.expert=2 parallel.tensor=2)
go noted 0 2 "$@" train.steps=1 && go generation 0 1 plan "$@" run.ranks=2 plan.routing="$TMP/noted" run.mode=generate generate.prompt_ids="[1,2,3]" &&
    { grep -q 'in these proportions' "$TMP/generation.log" && ok generation || fail generation "$(cat "$TMP/generation.log")"; }
go expecting 0 2 "$@" train.steps=1 plan.routing="$TMP/noted" && ok expecting
sed '/choices/,/^  {/{s/\[\([0-9]*\), /[9\1, /}' "$TMP/learned-4-4-2/routing.json" >"$TMP/too-many.json"
go bad-choices 2 1 plan $(learned parallel.expert=4) run.ranks=4 plan.routing="$TMP/too-many.json" && { grep -q 'the choices of layer 0 are not what 4 ranks make of 2 micro-batches' "$TMP/bad-choices.log" && ok bad-choices || fail bad-choices "$(cat "$TMP/bad-choices.log")"; }

# sent LOG GROUP: bytes of rank 0's step, 0 where there is no such group.
sent() { sent_is=$(grep -o '"step": {"work[^}]*}}' "$TMP/$1.log" | head -n 1 | sed -n "s/.*\"$2\": \([0-9]*\).*/\1/p"); echo "${sent_is:-0}"; }

# Room for an expert: what is beyond it does not travel.
go roomy 0 1 plan $(one_sided parallel.expert=4) --json run.ranks=4 plan.routing="$TMP/one-sided-4-4" moe.capacity=1 &&
    { [ "$(sent roomy expert)" -lt "$(sent one-sided-4-4-plan expert)" ] && ok roomy || fail roomy "$(sent roomy expert) bytes"; }

# Records that are none.
record() { # NAME WORDS RECORD: one message
    printf '%s' "$3" >"$TMP/$1.json"
    go "bad-$1" 2 1 plan "$TMP/deck.yaml" parallel.expert=4 run.ranks=4 plan.routing="$TMP/$1.json" run.output="$TMP/unused" || return
    grep -q "plan.routing: .*$2" "$TMP/bad-$1.log" && [ "$(grep -c plan.routing "$TMP/bad-$1.log")" = 1 ] && ok "bad-$1" || fail "bad-$1" "$(cat "$TMP/bad-$1.log")"
}
full='[1, 2, 3, 4, 5, 6, 7, 8]'
record text 'is not JSON' 'what?'
record empty 'is not JSON' ''
record list 'has no list "layers"' '[1, 2]'
record fewer 'has 1 layers with experts, and the model 2' "{\"layers\": [{\"layer\": 0, \"loads\": $full}]}"
record other 'entry 2 of "layers" must be of layer 3' "{\"layers\": [{\"layer\": 0, \"loads\": $full}, {\"layer\": 2, \"loads\": $full}]}"
record experts 'layer 3 has 7 loads, and the model 8 experts' "{\"layers\": [{\"layer\": 0, \"loads\": $full}, {\"layer\": 3, \"loads\": [1, 2, 3, 4, 5, 6, 7]}]}"
record below 'the load of expert 1 is no number of tokens' "{\"layers\": [{\"layer\": 0, \"loads\": $full}, {\"layer\": 3, \"loads\": [1, -2, 3, 4, 5, 6, 7, 8]}]}"
record words 'the load of expert 7 is no number of tokens' "{\"layers\": [{\"layer\": 0, \"loads\": [1, 2, 3, 4, 5, 6, 7, \"8\"]}, {\"layer\": 3, \"loads\": $full}]}"
record huge 'the load of expert 0 is no number of tokens' "{\"layers\": [{\"layer\": 0, \"loads\": [9000000000000000000, 2, 3, 4, 5, 6, 7, 8]}, {\"layer\": 3, \"loads\": $full}]}"
record step 'has no number "step"' "{\"step\": -1, \"layers\": [{\"layer\": 0, \"loads\": $full}, {\"layer\": 3, \"loads\": $full}]}"
record nobody 'layer 0 has no token at all' "{\"layers\": [{\"layer\": 0, \"loads\": [0, 0, 0, 0, 0, 0, 0, 0]}, {\"layer\": 3, \"loads\": $full}]}"
set -- plan "$TMP/deck.yaml" parallel.expert=4 run.ranks=4
go bad-absent 2 1 "$@" plan.routing="$TMP/nowhere" && { grep -q 'plan.routing: .*nowhere' "$TMP/bad-absent.log" && ok bad-absent || fail bad-absent "$(cat "$TMP/bad-absent.log")"; }
go bad-check 2 1 check "$TMP/deck.yaml" parallel.expert=4 run.ranks=4 plan.routing="$TMP/nowhere" && { grep -q 'plan.routing: .*nowhere' "$TMP/bad-check.log" && ok bad-check || fail bad-check "$(cat "$TMP/bad-check.log")"; }
go bad-folder 2 1 "$@" plan.routing="$TMP/cache" && { grep -q 'has no routing.json' "$TMP/bad-folder.log" && ok bad-folder || fail bad-folder "$(cat "$TMP/bad-folder.log")"; }
go bad-forced 2 1 "$@" plan.routing="$TMP/one-sided-4-4" moe.balance=forced && { grep -q 'experts are taken in turn; one of the two' "$TMP/bad-forced.log" && ok bad-forced || fail bad-forced "$(cat "$TMP/bad-forced.log")"; }

# What a way would cost is what a plan of it says: of the ways across context ranks, the taken one and the other; of meshes of experts.
set -- "$TMP/deck.yaml" --json parallel.context=4 run.ranks=4 model.num_key_value_heads=8
for attention in ring heads; do
    for mamba in state heads; do
        go ways-$attention-$mamba 0 1 plan "$@" parallel.context_attention=$attention parallel.context_mamba=$mamba
    done
done
for taken in ring heads; do
    for other in ring heads; do
        got=$(grep '"context_attention"' "$TMP/ways-$taken-state.log" | sed "s/.*\"$other\": {\"sent\": \([0-9]*\).*/\1/"); want=$(sent ways-$other-state context)
        [ "$got" = "$want" ] && ok "cost-of-$other-beside-$taken" || fail "cost-of-$other-beside-$taken" "'$got', want '$want'"
    done
done
got=$(grep '"context_mamba"' "$TMP/ways-ring-state.log" | sed 's/.*"heads": {"sent": \([0-9]*\).*/\1/'); want=$(sent ways-ring-heads context)
[ "$got" = "$want" ] && ok cost-of-mamba-heads || fail cost-of-mamba-heads "'$got', want '$want'"
for length in 16 64 4096; do # auto takes what sends least
    shared=8; [ $length != 64 ] || shared=1
    go auto-$length 0 1 plan "$@" train.sequence_length=$length model.num_key_value_heads=$shared parallel.context_attention=auto parallel.context_mamba=auto || continue
    for key in context_attention context_mamba; do
        line=$(grep "\"$key\": {" "$TMP/auto-$length.log"); way=$(echo "$line" | sed 's/.*"taken": "\([a-z]*\)".*/\1/')
        mine=$(echo "$line" | sed "s/.*\"$way\": {\"sent\": \([0-9]*\).*/\1/"); least=$(echo "$line" | grep -o '"sent": [0-9]*' | tr -dc '0-9\n' | sort -n | head -n 1)
        [ "$(echo "$line" | grep -o '"sent"' | wc -l)" = 2 ] && [ "$mine" = "$least" ] && ok "auto-$length-$key-$way" || fail "auto-$length-$key" "$line"
    done
done
set -- $(one_sided) --json run.ranks=4 parallel.tensor=2 plan.routing="$TMP/one-sided-4-4"
go meshes 0 1 plan "$@" parallel.expert=2 parallel.expert_tensor=1
[ "$(grep -c '"tokens_sent"' "$TMP/meshes.log")" = 5 ] && [ "$(grep '"taken": true' "$TMP/meshes.log" | grep -c '"expert": 2, "expert_tensor": 1')" = 1 ] && ok meshes || fail meshes "$(grep tokens_sent "$TMP/meshes.log")"
for mesh in "1 1" "1 2" "2 1" "2 2" "4 1"; do
    read -r e y <<<"$mesh"; go mesh-$e-$y 0 1 plan "$@" parallel.expert=$e parallel.expert_tensor=$y || continue
    line=$(grep "\"expert\": $e, \"expert_tensor\": $y, .*tokens_sent" "$TMP/meshes.log")
    want="$(($(sent mesh-$e-$y expert) + $(sent mesh-$e-$y expert_tensor))) $(grep -o '"arena_bytes": [0-9]*' "$TMP/mesh-$e-$y.log" | head -n 1 | tr -dc 0-9)"
    got="$(echo "$line" | sed 's/.*"tokens_sent": \([0-9]*\).*/\1/') $(echo "$line" | sed 's/.*"bytes": \([0-9]*\).*/\1/')"
    [ "$got" = "$want" ] && ok mesh-$e-$y || fail mesh-$e-$y "'$got', want '$want'"
done
finish
