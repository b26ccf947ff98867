#!/bin/bash
# A disk that is full while saving: the run ends with 1 and says so, nothing older is lost, and the same command goes on once there is
# room, to the bit. The disk is a small one in memory where that may be mounted; a limit on the size of files does everywhere.
[ -n "${DISK:-}" ] || for how in "unshare -m" "unshare -rm"; do
    if $how mount -t tmpfs -o size=1m none /mnt 2>/dev/null; then DISK=yes exec $how bash "$0"; fi
done
. tests/lib.sh
begin
{ model "M-*E"
  printf 'train:\n  steps: 12\n  global_batch: 4\n  sequence_length: 31\noptimizer:\n  learning_rate: 0.003\n'
  printf 'moe:\n  balance: bias\nschedule:\n  kind: constant\ncheckpoint:\n  interval: 3\n'; } >"$TMP/base.yaml"
deck=$TMP/base.yaml
go alone 0 2 "$deck" parallel.tensor=2
go alone1 0 1 "$deck"
last=checkpoints/step-00000012/model.safetensors
# KiB of a checkpoint, and of what else a run leaves, in pages, as a disk in memory counts
pages() { find "$@" -type f -printf '%s\n' | awk '{ s += int(($1 + 4095) / 4096) * 4 } END { print s }'; }
whole=$(pages "$TMP/alone/checkpoints/step-00000012")
beside=$(pages "$TMP/alone" -not -path '*/checkpoints/*')

# check NAME ALONE RANKS KEPT [COMMAND]: after a run that found no room, so many checkpoints are left; COMMAND makes room, then it goes on
check() {
    local s held
    grep -q -E "cannot (write|make).*(is the disk full|No space|too large|room)" "$TMP/$1.log" || { fail "$1" "does not say why: $(grep -v '^$' "$TMP/$1.log" | tail -n 3 | tr '\n' '|')"; return; }
    for s in "$TMP/$1"/checkpoints/step-*[0-9]; do
        [ ! -e "$s" ] || cmp -s "$s/model.safetensors" "$TMP/$2/checkpoints/$(basename "$s")/model.safetensors" || { fail "$1" "$s is damaged"; return; }
    done
    held=$(ls -d "$TMP/$1"/checkpoints/step-*[0-9] 2>/dev/null | wc -l)
    [ "$held" -ge "$4" ] || { fail "$1" "only $held checkpoints left, want $4"; return; }
    $5
    go "$1" 0 "$3" "$deck" parallel.tensor="$3" || return
    if [ "$(exact "$TMP/$1")" = "$(exact "$TMP/$2")" ] && cmp -s "$TMP/$1/$last" "$TMP/$2/$last"; then ok "$1"
    else fail "$1" "did not go on as if nothing had happened"; fi
}

# The third checkpoint's own file does not fit; then it fits, and what is beside it does not. One rank: MPI has large files of its own.
for kib in 60 $(($(stat -c %s "$TMP/alone1/$last") / 1024 + 8)); do
    name=files-of-$kib
    go "$name" 0 1 "$deck" train.steps=6 || continue
    ( trap '' XFSZ; ulimit -f "$kib"; exec "$MESTAR" "$deck" run.output="$TMP/$name" ) >"$TMP/$name.log" 2>&1 </dev/null
    code=$?
    if [ $code = 1 ]; then check "$name" alone1 1 2 true; else fail "$name" "left with $code, want 1: $(tail -n 2 "$TMP/$name.log")"; fi
done

# A file that is written whole or not at all leaves nothing beside it: the report, which is larger than what a run writes before it, and
# tokens, which are written for long.
limited() { ( trap '' XFSZ; ulimit -f "$1"; shift; exec "$MESTAR" "$@" ) >"$TMP/limited.log" 2>&1 </dev/null; }
beside_nothing() { [ "$2" = 1 ] && [ -z "$(find "$TMP" -name "$3*")" ] && ok "$1" || fail "$1" "left with $2: $(tail -n 2 "$TMP/limited.log"); $(find "$TMP" -name "$3*")"; }
limited $((($(stat -c '%s +' "$TMP/alone1/report.html" "$TMP/alone1/used.yaml") 0) / 2048)) "$deck" checkpoint.interval=0 run.output="$TMP/limited"
beside_nothing report-too-large $? report.html.new
cp "$TMP/limited/used.yaml" "$TMP/used.yaml"
limited 4 "$deck" checkpoint.interval=0 train.steps=13 run.output="$TMP/limited"
beside_nothing used-too-large $? used.yaml.new
cmp "$TMP/used.yaml" "$TMP/limited/used.yaml" && ok used-as-it-was || fail used-as-it-was "$(tail -n 1 "$TMP/limited/used.yaml")"
seq -f '"text number %g"' 2000 >"$TMP/texts.jsonl"
printf 'run:\n  mode: convert\nmodel:\n  tokenizer: bytes\nconvert:\n  what: tokens\n  to: %s\ndata:\n  path: [%s]\n' "$TMP/tokens.jsonl" "$TMP/texts.jsonl" >"$TMP/tokens.yaml"
limited 16 "$TMP/tokens.yaml" run.output="$TMP/limited"
beside_nothing tokens-too-large $? tokens.jsonl

# Disks that hold one checkpoint or two, and run out at every point of the next
[ -n "${DISK:-}" ] || finish
enlarge() { mount -o remount,size=64m "$TMP/$name"; }
steps="30 70 99"; [ -z "$LONG" ] || steps="15 20 25 30 40 50 60 70 80 90 93 95 97 98 99"
for part in $steps; do
    for n in 1 2; do
        kib=$((n * whole + beside + whole * part / 100))
        name=disk-of-$n.$part
        mkdir -p "$TMP/$name"
        mount -t tmpfs -o "size=${kib}k" none "$TMP/$name" || { fail "$name" "cannot mount"; continue; }
        go "$name" 1 2 "$deck" parallel.tensor=2 && check "$name" alone 2 "$n" enlarge
        umount "$TMP/$name"
    done
done
finish
