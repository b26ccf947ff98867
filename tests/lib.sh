# lib: what the end-to-end runs share. Read by tests/run_*.sh (". tests/lib.sh"), from the top folder.
#
# A run prints one line a promise, "ok name" or "FAIL name: got, want", and ends with `finish`.

B=${B:-build}
MESTAR=${MESTAR:-$([ "$B" = build ] && echo ./mestar || echo "$B/mestar")}
TENSORS=$B/tests/tensors
LONG=${LONG:-} SHORT=${SHORT:-}     # the longer, the shorter form of a run
TMP=$(realpath -m "$B")/tests/tmp/$(basename "$0" .sh)      # whole, so that a process is told from another checkout's
export LC_ALL=C OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
[ -n "${MPIRUN:-}" ] || MPIRUN=$(sed -n 's/^MPIRUN := //p' "$B/found.mk")
[ -n "${MPI_KIND:-}" ] || MPI_KIND=$(sed -n 's/^MPI_KIND := //p' "$B/found.mk")
failures=0

case $B in
*address*) export UBSAN_OPTIONS=print_stacktrace=1 ;;
*thread*) # the runtime of clang's OpenMP is not instrumented; archer tells the sanitizer what its barriers order
    export TSAN_OPTIONS="ignore_noninstrumented_modules=1 ${TSAN_OPTIONS:-}"
    for archer in /usr/lib/llvm-*/lib/libarcher.so; do [ ! -e "$archer" ] || export OMP_TOOL_LIBRARIES="$archer"; done ;;
esac

# mpi N command...: the command on N ranks, however many cores there are, as root or not. Leaks are looked for without MPI only: MPI
# libraries keep what they allocated.
mpi() {
    mpi_n=$1; shift
    mpi_env=env; case $B in *address*) mpi_env="env ASAN_OPTIONS=detect_leaks=0" ;; esac
    if [ "$MPI_KIND" = openmpi ]; then
        command -v ssh >/dev/null || export OMPI_MCA_plm_rsh_agent=
        $mpi_env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$MPIRUN" --oversubscribe --bind-to none -n "$mpi_n" "$@"
    else
        $mpi_env "$MPIRUN" -n "$mpi_n" "$@"
    fi
}

ok() { echo "ok $1"; }
fail() { failures=$((failures + 1)); echo "FAIL $1: $2"; }
finish() { [ "$failures" = 0 ]; exit; }

# begin: an empty folder for this run's files, $TMP.
begin() { rm -rf "$TMP"; mkdir -p "$TMP"; }

# go NAME CODE N arguments...: mestar on N ranks must leave with CODE. Its words are in $TMP/NAME.log, its output folder is
# $TMP/NAME unless the arguments are a command. Says only what went wrong, and returns 1 then.
go() {
    go_name=$1; go_code=$2; go_n=$3; shift 3; go_got=0
    case $1 in *.yaml) set -- "$@" "run.output=$TMP/$go_name" ;; esac
    if [ "$go_n" = 1 ]; then "$MESTAR" "$@" >"$TMP/$go_name.log" 2>&1 </dev/null || go_got=$?
    else mpi "$go_n" "$MESTAR" "$@" >"$TMP/$go_name.log" 2>&1 </dev/null || go_got=$?; fi
    [ "$go_got" = "$go_code" ] && return 0
    fail "$go_name" "left with $go_got, want $go_code: $(head -c 2000 "$TMP/$go_name.log" | grep -v '^$' | tail -n 3 | tr '\n' '|') [$go_n ranks: $*]"
    return 1
}

# number FILE KEY: of a model's config.json.      words FILE KEY: of a flat YAML file.
number() { sed -n -E "s/^[[:space:]]*\"$2\": *([0-9]+),?.*/\1/p" "$1" | head -n 1; }
words() { sed -n -E "s/^$2: *//p" "$1" | head -n 1; }

# metric FOLDER LINE KEY: of the metrics of a run ("$" is the last line).
metric() { sed -n "$2p" "$1/metrics.jsonl" | sed -E "s/.*\"$3\": *([^,}]*).*/\1/"; }

# exact FOLDER: its metrics without what may differ from run to run.
exact() { sed -E 's/"(tokens_per_second|mfu|step_seconds|peak_bytes)": *[^,}]*(, *)?//g' "$1/metrics.jsonl"; }

# near A B BOUND: |A - B| <= BOUND * |B|.
near() {
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { if (a == "" || b == "" || a == "null" || b == "null") exit 1
        d = a - b; if (d < 0) d = -d; m = b < 0 ? -b : b; exit !(d <= t * m) }'
}

# legal FOLDER TENSOR: may that model be split so? (heads are multiples; what heads share a multiple or a divisor)
legal() {
    legal_t=$2; legal_c=$1/config.json
    for k in num_attention_heads mamba_num_heads; do [ $(($(number "$legal_c" $k) % legal_t)) = 0 ] || return 1; done
    for k in num_key_value_heads n_groups; do
        legal_n=$(number "$legal_c" $k)
        [ $((legal_n % legal_t)) = 0 ] || [ $((legal_t % legal_n)) = 0 ] || return 1
    done
}

# model PATTERN: the model section of a deck, small, with widths that divide by nothing; further keys come as arguments.
model() {
    cat <<YAML
model:
  hybrid_override_pattern: "$1"
  vocab_size: 101
  hidden_size: 32
  num_attention_heads: 8
  num_key_value_heads: 2
  head_dim: 8
  intermediate_size: 75
  mamba_num_heads: 8
  mamba_head_dim: 8
  ssm_state_size: 8
  n_groups: 2
  chunk_size: 16
  n_routed_experts: 8
  num_experts_per_tok: 2
  moe_intermediate_size: 19
  moe_shared_expert_intermediate_size: 37
YAML
}
