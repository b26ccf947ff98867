#!/bin/sh
# suite: runs the tests it is given and closes with one line, "N passed, N failed".
#   suite.sh BUILD_FOLDER test_program|tests/run_x.sh ...
# A program is a cmocka group (its cases are counted), a script a run that prints ok and FAIL lines. Each has its log in
# BUILD_FOLDER/tests/log. One that dies without naming a failure counts as one.
B=$1; shift
export B
. tests/lib.sh
export MESTAR
log=$B/tests/log
passed=0; failed=0
mkdir -p "$log"; : >"$log/failures"

# count NAME CODE: adds up the log NAME. Ranks repeat a case's name; it passed if no rank says otherwise.
count() {
    sed -n -E 's/^[[:space:]]*(not ok|ok|FAIL)( [0-9]+ -)? (.*)$/\1 \3/p' "$log/$1" |
        awk '{ bad = $1 != "ok"; sub(/^(not ok|ok|FAIL) /, ""); n = $0; if (!(n in seen)) { seen[n] = 0 } if (bad) seen[n] = 1 }
             END { for (n in seen) print (seen[n] ? "FAIL " : "ok ") n }' >"$log/$1.cases"
    good=$(grep -c '^ok ' "$log/$1.cases"); bad=$(grep -c '^FAIL ' "$log/$1.cases")
    grep '^FAIL ' "$log/$1.cases" | sed "s|^FAIL |$1: |" >>"$log/failures"
    if [ "$2" != 0 ] && [ "$bad" = 0 ] || [ $((good + bad)) = 0 ]; then
        bad=1; echo "$1: ended with code $2 after $good cases" >>"$log/failures"
        tail -n 15 "$log/$1" | sed 's/^/    /' >>"$log/failures"
    elif [ "$bad" != 0 ] && [ -z "${1##test_*}" ]; then
        grep -E -v '^[[:space:]]*(ok|[0-9]+\.\.)' "$log/$1" | head -n 20 | sed 's/^/    /' >>"$log/failures"
    fi
    passed=$((passed + good)); failed=$((failed + bad))
    printf '%5d ok %3d failed %4d s  %s\n' "$good" "$bad" "$(($(date +%s) - began))" "$1"
}

for t in "$@"; do
    case $t in
    test_asleep_ranks) ranks="4 8" ;;
    test_comm | test_*_ranks) ranks="1 2 3 4 8"; [ -z "$SHORT" ] || ranks="1 3 4" ;;
    *) ranks=0 ;;
    esac
    for n in $ranks; do
        began=$(date +%s); code=0
        case $t in
        *.sh)
            name=$(basename "$t" .sh)
            timeout 900 bash "$t" >"$log/$name" 2>&1 </dev/null || code=$? ;;
        *)
            name=$t; export CMOCKA_MESSAGE_OUTPUT=TAP
            if [ "$n" = 0 ]; then timeout 600 "$B/tests/$t" >"$log/$name" 2>&1 </dev/null || code=$?
            else
                name=$t.$n; timeout 300 sh -c '. tests/lib.sh; mpi "$@"' sh "$n" "$B/tests/$t" >"$log/$name" 2>&1 </dev/null || code=$?
            fi ;;
        esac
        count "$name" "$code"
    done
done

[ "$failed" = 0 ] || { echo; echo "failed (whole logs in $log):"; cat "$log/failures"; }
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
