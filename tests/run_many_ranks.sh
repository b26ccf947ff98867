#!/bin/bash
# Many more ranks than cores: 64 of them, waiting politely, compute what one does.
. tests/lib.sh
begin
{ model "M-*E"; cat <<'YAML'
train:
  steps: 2
  global_batch: 16
  sequence_length: 16
checkpoint:
  interval: 2
YAML
} >"$TMP/many.yaml"
go one 0 1 "$TMP/many.yaml" || finish
began=$(date +%s)
go many 0 64 "$TMP/many.yaml" parallel.tensor=4 parallel.data=16 parallel.sequence=true || finish
took=$(($(date +%s) - began))
for k in loss grad_norm; do
    near "$(metric "$TMP/many" 1 $k)" "$(metric "$TMP/one" 1 $k)" 1e-5 && ok "64-ranks-$k" || fail "64-ranks-$k" "$(metric "$TMP/many" 1 $k), want $(metric "$TMP/one" 1 $k)"
done
[ "$took" -lt 120 ] && ok "64-ranks-in-time" || fail 64-ranks-in-time "$took s, want less than 120"
[ "$("$TENSORS" list "$TMP/many/checkpoints/step-00000002" | cut -d' ' -f1,3)" = "$("$TENSORS" list "$TMP/one/checkpoints/step-00000002" | cut -d' ' -f1,3)" ] &&
    ok 64-ranks-saved || fail 64-ranks-saved "not the tensors one rank saves"
finish
