#!/bin/bash
# A sequence on several ranks is another way to do the same computation. Meshes are drawn over context x tensor x sequence x pipeline x
# data, with both ways of attention and of Mamba, packed documents, recomputing, experts, three formats. Against one rank losses of three
# steps, every gradient of the first and its norm agree; planned memory, work and messages are those measured. Messages along context are
# the algorithm's volume to the byte; handing on states takes the same however long the sequence. LONG=1: 30 meshes, and sequences of
# 262,144 tokens. SEED.
. tests/lib.sh
begin
draws=${DRAWS:-$([ -n "$LONG" ] && echo 30 || { [ -n "$SHORT" ] && echo 3 || echo 10; })}
RANDOM=${SEED:-7}
set -f # patterns are full of stars
pick() { shift $((RANDOM % $#)); picked=$1; }
patterns=("M*" "M-*EM" "*M*-" "EM-M")

# deck NAME PATTERN HEADS KV: heads of Mamba and attention alike, and what shares them
deck() {
    { model "$2" | sed -E "s/(num_attention_heads|mamba_num_heads): .*/\1: $3/; s/(num_key_value_heads|n_groups): .*/\1: $4/; s/head_dim: .*/head_dim: 4/"
      printf 'train:\n  steps: 3\n  global_batch: 4\noptimizer:\n  learning_rate: 0.003\nmoe:\n  balance: bias\ncheckpoint:\n  interval: 1\n'; } >"$TMP/$1.yaml"
}

# base NAME N arguments...: that run, once
base() { [ -d "$TMP/$1" ] || go "$@"; }
# values FOLDER: loss and norm of the first step, losses of the others
values() { echo "$(metric "$1" 1 loss) $(metric "$1" 1 grad_norm) $(metric "$1" 2 loss) $(metric "$1" 3 loss)"; }

# alike A B LOSS GRADIENT LATER
alike() {
    set -- "$1" "$2" "$3" "$4" "$5" $(values "$TMP/$1") $(values "$TMP/$2")
    near "$6" "${10}" "$3" && near "$7" "${11}" "$4" && near "$8" "${12}" "$5" && near "$9" "${13}" "$5" || { echo "loss, norm, losses $6 $7 $8 $9, want ${10} ${11} ${12} ${13}"; return 1; }
    "$TENSORS" ending "$TMP/$1/checkpoints/step-00000001/resume" "$TMP/$2/checkpoints/step-00000001/resume" .moment1 "$4"
}

memory_alone=
# planned NAME N deck overrides...: memory, work, traffic and messages of every rank are those of run NAME
planned() {
    plan_name=$1; plan_n=$2; shift 2
    go "$plan_name-plan" 0 1 plan "$@" --json run.ranks="$plan_n" || return 1
    want=$(grep -o '"arena_bytes": *[0-9]*' "$TMP/$plan_name-plan.log" | sed 's/.*: *//' | tr '\n' ' ')
    got=$(sed -n '/^peak_bytes:/,/^[a-z_]*:/p' "$TMP/$plan_name/summary.yaml" | sed -e '1s/^peak_bytes://' -e '/^[a-z_]*:/d' | tr -c '0-9\n' ' ' | tr -s ' \n' ' ' | sed 's/^ //')
    [ -n "$got" ] && [ "$want" = "$got" ] || { echo "memory planned '$want', measured '$got'"; return 1; }
    [ -z "$memory_alone" ] || return 0  # a first step finds no gradients to clear and is no step as planned
    want=$(sed -n 's/.*"step": \({.*}}\)}.*/\1/p' "$TMP/$plan_name-plan.log")
    got=$(sed -n '/^step:/,/^[a-z]/s/^  - //p' "$TMP/$plan_name/summary.yaml")
    [ -n "$got" ] && [ "$want" = "$got" ] || { echo "step planned '$want', did '$got'"; return 1; }
}

deck24=1
i=0
while [ $i -lt "$draws" ]; do
    i=$((i + 1))
    pick "${patterns[@]}"; pattern=$picked
    pick 2 2 3 4; c=$picked; pick 1 1 2; t=$picked; pick 1 1 2; p=$picked; pick 1 1 2; d=$picked
    [ $((c * t * p * d)) -le 8 ] || d=1
    [ $((c * t * p * d)) -le 8 ] || p=1
    pick "24 12" "24 1" "24 24"; read -r heads kv <<<"$picked"; [ $((c * t)) != 8 ] || kv=1
    pick true false; sequence=$picked; [ $t = 2 ] || sequence=false
    pick ring heads auto; attention=$picked; pick state heads auto; mamba=$picked
    # exchanged heads must come out even on every rank
    own=$((kv > t ? kv / t : 1)); [ $((own % c)) = 0 ] || [ $((c % own)) = 0 ] || { attention=ring; mamba=state; }
    pick none none selective full; recompute=$picked; pick fp64 fp64 fp32 bf16; recipe=$picked; pick 24 72; length=$picked; pick 1 2; micro=$picked
    [ $((4 % (micro * d))) = 0 ] || micro=1
    [ $p = 1 ] && kind=1f1b || { pick 1f1b zero-bubble zbv; kind=$picked; }
    pick true false false; debug=$picked
    name=$(printf '%02d' $i)-c$c-t$t-p$p-d$d-$attention-$mamba-$recipe-$recompute-$length
    dk=$(echo "$pattern" | tr '*-' 'sd')-$heads-$kv; deck "$dk" "$pattern" "$heads" "$kv"
    set -- train.sequence_length=$length precision.recipe=$recipe
    one=one-$dk-$length-$recipe
    base "$one" 0 1 "$TMP/$dk.yaml" "$@" || continue
    set -- "$@" train.micro_batch=$micro memory.recompute=$recompute parallel.context=$c parallel.context_attention=$attention \
        parallel.context_mamba=$mamba parallel.tensor=$t parallel.sequence=$sequence parallel.pipeline=$p parallel.schedule=$kind parallel.data=$d
    go "$name" 0 $((c * t * p * d)) "$TMP/$dk.yaml" "$@" run.debug=$debug || continue
    case $recipe in fp64) bounds="1e-13 1e-9 1e-8" ;; fp32) bounds="1e-6 2e-4 1e-4" ;; *) bounds="3e-3 0.2 3e-2" ;; esac
    said=$(alike "$name" "$one" $bounds) || { fail "$name" "off one rank: $said [$*]"; continue; }
    ok "$name ($said)"
    [ $debug = true ] || { said=$(planned "$name" $((c * t * p * d)) "$TMP/$dk.yaml" "$@") && ok "$name-plan" || fail "$name-plan" "$said"; }
    rm -rf "${TMP:?}/$name"
done

# Logits, loss and every gradient on folders that another program wrote, whose sequences must be filled up to be shared.
printf 'run:\n  mode: compare\n' >"$TMP/compare.yaml"
for what in "dense 2 1 ring state" "dense 3 1 ring state" "dense 2 2 auto heads" "right_pad 2 1 ring state" "left_pad 5 1 ring state" "moe_group 2 1 ring state" "short_conv 3 1 auto state"; do
    set -- $what
    [ -z "$SHORT" ] || [ "$2" = 2 ] || continue
    name=compare-$1-c$2-t$3; f=tests/reference/$1
    go "$name" 0 $(($2 * $3)) "$TMP/compare.yaml" model.from=$f compare.reference=$f/reference.safetensors compare.dump="$TMP/$name.safetensors" \
        parallel.context="$2" parallel.tensor="$3" parallel.context_attention="$4" parallel.context_mamba="$5" train.micro_batch=2 || continue
    said=$("$TENSORS" close "$TMP/$name.safetensors" "$f/reference.safetensors" 1e-4 1e-5 1e-3) && ok "$name ($said)" || fail "$name" "$said"
done

# Evaluation; refusals in one line.
deck plain "M*-" 24 12
go start 0 1 "$TMP/plain.yaml" train.steps=0 train.sequence_length=48
printf 'run:\n  mode: evaluate\nmodel:\n  from: %s\ntrain:\n  sequence_length: 48\nevaluate:\n  samples: 13\n' "$TMP/start" >"$TMP/evaluate.yaml"
go evaluated 0 1 "$TMP/evaluate.yaml" && go evaluated4 0 4 "$TMP/evaluate.yaml" parallel.context=2 parallel.data=2 train.global_batch=4 &&
    { near "$(sed 's/.*"loss": \([^,]*\),.*/\1/' "$TMP/evaluated4/evaluation.json")" "$(sed 's/.*"loss": \([^,]*\),.*/\1/' "$TMP/evaluated/evaluation.json")" 1e-6 &&
        [ "$(sed 's/.*tokens//' "$TMP/evaluated4/evaluation.json")" = "$(sed 's/.*tokens//' "$TMP/evaluated/evaluation.json")" ] && ok evaluate || fail evaluate "$(cat "$TMP"/evaluated*/evaluation.json)"; }
# refuse NAME WORDS arguments...
refuse() { r_name=$1; r_words=$2; shift 2; go "$r_name" 2 1 check "$TMP/plain.yaml" "$@" && { grep -q "$r_words" "$TMP/$r_name.log" && ok "$r_name" || fail "$r_name" "$(cat "$TMP/$r_name.log")"; }; }
refuse refuse-length "sequence_length: 50 is no multiple of 2 x parallel.context = 2 x 2; 48 or 52 would do" train.sequence_length=50 parallel.context=2
refuse refuse-heads "context_attention: heads: 8 ranks" train.sequence_length=64 parallel.context=8 parallel.context_attention=heads
refuse refuse-mamba "context_mamba: heads: 5 ranks" train.sequence_length=60 parallel.context=5 parallel.context_mamba=heads

# What rank r of C sends along context in a step, from the sizes alone: B sequences of L tokens, H heads of P (Mamba and attention), G that
# they share, states of S, K-1 columns of halo; numbers of 4 bytes.
volume() {
    awk -v way="$1" -v C="$2" -v r="$3" -v B="$4" -v L="$5" 'BEGIN { H = 24; P = 4; G = 12; S = 8; K = 4
        T = B * L / C; R = H * P; mine = int((r + 1) * R / C) - int(r * R / C)
        if (way == "ring") n = (C - 1) * 2 * T * G * P * 3                            # keys and values; and again with their gradients
        if (way == "heads") n = 2 * (C - 1) * T * (2 * H + 2 * G) / C * P             # q, k, v there and o back; forward and back
        if (way == "mamba heads") n = 2 * (C - 1) * T * (2 * H * P + 2 * G * S + H) / C
        if (way == "state") {
            n = (C - 1) * 2 * B * H                                                   # decays
            n += 2 * 2 * B * S * ((R - mine) + (C - 1) * mine)                        # there and back, forward and back
            n += 2 * B * (K - 1) * (H * P + 2 * G * S) * ((r < C - 1) + (r > 0))      # halo of the next piece and of its gradient
        }
        print 4 * n }'
}
sent() { sed -n '/^step:/,/^[a-z]/s/.*"context": \([0-9]*\).*/\1/p' "$1" | tr '\n' ' '; }
deck states "M" 24 12; deck keys "*" 24 12
for what in "states state x 2" "states state x 3" "states mamba_heads x 2" "keys x ring 2" "keys x ring 4" "keys x heads 3"; do
    set -- $what; c=$4
    case $2 in mamba_heads) way="mamba heads" set="parallel.context_mamba=heads" ;; state) way=state; set="parallel.context_mamba=state" ;;
    *) way=$3; set="parallel.context_attention=$3" ;; esac
    name=volume-$1-$(echo "$way" | tr ' ' -)-$c; want=
    go "$name" 0 "$c" "$TMP/$1.yaml" train.steps=2 checkpoint.interval=0 train.sequence_length=48 train.micro_batch=4 parallel.context="$c" $set || continue
    for r in $(seq 0 $((c - 1))); do want="$want$(volume "$way" "$c" "$r" 4 48) "; done
    [ "$(sent "$TMP/$name/summary.yaml")" = "$want" ] && ok "$name (bytes $want)" || fail "$name" "sent $(sent "$TMP/$name/summary.yaml"), the algorithm $want"
done
# States: the same for 1,024 tokens as for 4,096 (measured) and 131,072 (planned).
plan_sent() { go "$1" 0 1 plan "$TMP/states.yaml" --json run.ranks=4 train.global_batch=1 parallel.context=4 train.sequence_length="$2" && sed -n 's/.*"sent": {.*"context": \([0-9]*\).*/\1/p' "$TMP/$1.log" | tr '\n' ' '; }
a=$(plan_sent plan-1024 1024) b=$(plan_sent plan-131072 131072)
for l in 1024 4096; do go "sent-$l" 0 4 "$TMP/states.yaml" train.steps=1 checkpoint.interval=0 train.global_batch=1 parallel.context=4 train.sequence_length=$l; done
[ -n "$a" ] && [ "$a" = "$b" ] && [ "$a" = "$(sent "$TMP/sent-1024/summary.yaml")" ] && [ "$a" = "$(sent "$TMP/sent-4096/summary.yaml")" ] && ok "states-any-length (bytes $a)" ||
    fail states-any-length "planned $a and $b, sent $(sent "$TMP/sent-1024/summary.yaml") and $(sent "$TMP/sent-4096/summary.yaml")"

# Many ranks: all axes together, waiting politely.
deck many "M-*EM-*E" 24 12
go many1 0 1 "$TMP/many.yaml" train.sequence_length=64 checkpoint.interval=0
began=$(date +%s)
go many16 0 16 "$TMP/many.yaml" train.sequence_length=64 checkpoint.interval=0 parallel.context=4 parallel.tensor=2 parallel.pipeline=2 parallel.sequence=true && {
    took=$(($(date +%s) - began))
    near "$(metric "$TMP/many16" 1 loss)" "$(metric "$TMP/many1" 1 loss)" 1e-5 && near "$(metric "$TMP/many16" 1 grad_norm)" "$(metric "$TMP/many1" 1 grad_norm)" 1e-4 &&
        ok 16-ranks || fail 16-ranks "$(exact "$TMP/many16" | head -n 1), want $(exact "$TMP/many1" | head -n 1)"
    [ $took -lt 90 ] && ok 16-ranks-in-time || fail 16-ranks-in-time "$took s, want less than 90"
}

# Long sequences: the same loss, memory that is linear in the tokens of a rank, all planned. (One head of attention: its work is what
# grows with the square of the sequence.)
if [ -n "$LONG" ]; then
    { model "M-*E" | sed -E 's/(hidden_size|mamba_num_heads): .*/\1: 8/; s/(num_attention_heads|num_key_value_heads|n_groups): .*/\1: 1/; s/head_dim: .*/head_dim: 4/'
      printf 'train:\n  steps: 1\n  global_batch: 1\nmoe:\n  balance: forced\ncheckpoint:\n  interval: 0\n'; } >"$TMP/long.yaml"
    memory_alone=1
    for l in 131072 262144; do for c in 1 2 4; do
        name=long-$l-$c
        set -- train.sequence_length=$l parallel.context=$c
        go "$name" 0 $c "$TMP/long.yaml" "$@" && { said=$(planned "$name" $c "$TMP/long.yaml" "$@") && ok "$name-plan" || fail "$name-plan" "$said"; }
        near "$(metric "$TMP/$name" 1 loss)" "$(metric "$TMP/long-$l-1" 1 loss)" 1e-5 && near "$(metric "$TMP/$name" 1 grad_norm)" "$(metric "$TMP/long-$l-1" 1 grad_norm)" 1e-4 &&
            ok "$name (loss $(metric "$TMP/$name" 1 loss), $(metric "$TMP/$name" 1 step_seconds) s)" ||
            fail "$name" "$(exact "$TMP/$name"), want $(exact "$TMP/long-$l-1")"
    done; done
    peak() { sed -n '/^peak_bytes:/,/^[a-z]/s/^  - *//p' "$TMP/$1/summary.yaml" | head -n 1; }
    # Rings are compared with rings: one rank alone passes nothing on, and adds up gradients of all keys at once.
    for pair in "long-262144-1 long-131072-1 2" "long-262144-4 long-131072-2 1" "long-262144-2 long-131072-2 2" "long-262144-4 long-262144-2 0.5" "long-131072-4 long-131072-2 0.5"; do
        set -- $pair
        near "$(peak "$1")" "$(awk -v b="$(peak "$2")" -v k="$3" 'BEGIN { print b * k }')" 0.01 && ok "memory-$1-$2 ($(peak "$1"), $(peak "$2") bytes)" || fail "memory-$1-$2" "$(peak "$1") and $(peak "$2") bytes"
    done
fi
finish
