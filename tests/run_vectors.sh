#!/bin/bash
# run.vectors: every kind of vector instructions that this processor has, and none, give the same losses to rounding, and each the same
# bits on any number of threads; the run says which it was; what the processor lacks is refused.
. tests/lib.sh
begin
{ model "M*-EM"; printf 'train:\n  steps: 3\n  micro_batch: 2\n  global_batch: 4\n  sequence_length: 37\nprecision:\n  recipe: fp32\n'; } >"$TMP/deck.yaml"
told() { sed -n -E 's/^  kernels  (.*[^ ]) +peak .*/\1/p' "$TMP/$1/log.txt"; }
weights() { printf %s "$TMP/$1/checkpoints/step-00000003/model.safetensors"; }
last=
for recipe in fp32 bf16; do
    bound=1e-5; [ "$recipe" = fp32 ] || bound=3e-3
    go "auto-$recipe" 0 1 "$TMP/deck.yaml" run.threads=2 precision.recipe=$recipe || continue
    for v in plain avx2 avx512 avx512-bf16; do
        name=$v-$recipe
        if "$MESTAR" "$TMP/deck.yaml" run.output="$TMP/$name" run.vectors=$v precision.recipe=$recipe run.threads=1 >"$TMP/$name.log" 2>&1 </dev/null; then
            last=$v
            near "$(metric "$TMP/$name" 3 loss)" "$(metric "$TMP/auto-$recipe" 3 loss)" $bound && ok "$name" || fail "$name" "loss $(metric "$TMP/$name" 3 loss), want $(metric "$TMP/auto-$recipe" 3 loss)"
            go "$name-3" 0 1 "$TMP/deck.yaml" run.vectors=$v precision.recipe=$recipe run.threads=3 &&
                { [ "$(exact "$TMP/$name")" = "$(exact "$TMP/$name-3")" ] && cmp -s "$(weights "$name")" "$(weights "$name-3")" && ok "$name, 3 threads" || fail "$name, 3 threads" "other bits"; }
        elif grep -q 'run.vectors: is .*, and the best of this processor is' "$TMP/$name.log" && [ ! -e "$TMP/$name" ]; then ok "$name refused"
        else fail "$name" "$(tail -n 3 "$TMP/$name.log" | tr '\n' '|')"; fi
    done
    # auto is the best of them
    [ -n "$(told "auto-$recipe")" ] && [ "$(told "auto-$recipe")" = "$(told "$last-$recipe")" ] && [ "$(exact "$TMP/auto-$recipe")" = "$(exact "$TMP/$last-$recipe")" ] && ok "auto, $recipe" ||
        fail "auto, $recipe" "'$(told "auto-$recipe")' is not $last: '$(told "$last-$recipe")'"
done
[ "$last" = plain ] || { [ "$(told auto-fp32)" != "$(told plain-fp32)" ] && ok told || fail told "'$(told plain-fp32)' for plain too"; }
go ranks 0 2 "$TMP/deck.yaml" run.vectors=plain parallel.tensor=2 && near "$(metric "$TMP/ranks" 3 loss)" "$(metric "$TMP/auto-fp32" 3 loss)" 1e-5 && ok "2 ranks" || fail "2 ranks" "$(metric "$TMP/ranks" 3 loss)"
printf 'run:\n  mode: generate\nmodel:\n  from: %s\ngenerate:\n  prompt_ids: [1, 2, 3, 4, 5]\n  max_new_tokens: 12\n' "$TMP/auto-fp32" >"$TMP/generate.yaml"
go made 0 1 "$TMP/generate.yaml" && go made-plain 0 1 "$TMP/generate.yaml" run.vectors=plain &&
    { cmp -s "$TMP/made/generations.jsonl" "$TMP/made-plain/generations.jsonl" && ok generate || fail generate "other tokens"; }
finish
