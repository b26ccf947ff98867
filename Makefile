# mestar: make builds ./mestar, make run trains a small model, make test tries everything. `make help` lists the rest.
#
#   MARCH=native      the processor to compile for; MARCH= makes a program that runs on any of its kind
#   MPICC=mpicc       the MPI compiler wrapper, MPIRUN its launcher; found and tried when not given
#   MPI_TRY=no        believes that MPI instead of running two ranks, where that is not allowed (login nodes); give MPICC
#   PREFIX, DESTDIR   where make install puts things (/usr/local); DESTDIR goes before it while packaging
#   SANITIZE=...      address,undefined (gcc) or thread (clang); builds in a folder of its own
#   DEBUG=1           no optimisation, for a debugger; likewise
#   WERROR=1          warnings are errors (so they are where CI=true)
#   V=1               shows the commands

MAKEFLAGS += -r --no-print-directory
ifeq ($(MAKELEVEL)$(filter -j% --jobserver%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
SHELL  := /bin/sh
export LC_ALL := C
comma  := ,
MARCH  ?= native
VERSION := 0.1
PREFIX ?= /usr/local
DESTDIR ?=
MPI_TRY ?= yes
ASKED  := $(MPICC) | $(MPIRUN) | $(MPI_TRY) | $(CC) | $(CFLAGS) | $(MARCH)
CFLAGS ?=
Q      := $(if $(V),,@)

# ---------------------------------------------------------------------------------------- which build
ifdef SANITIZE
B := build/$(subst $(comma),-,$(SANITIZE))
else ifdef DEBUG
B := build/debug
else
B := build
endif
PROGRAM := $(if $(filter build,$(B)),mestar,$(B)/mestar)
CC      := $(if $(filter thread,$(SANITIZE)),clang,$(if $(filter default,$(origin CC)),gcc,$(CC)))
export MPICH_CC := $(CC)
export OMPI_CC  := $(CC)
export I_MPI_CC := $(CC)

OPTIMISE := $(if $(SANITIZE),-O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE),$(if $(DEBUG),-O0,-O3))
ifneq ($(findstring undefined,$(SANITIZE)),)
OPTIMISE += -fno-sanitize-recover=undefined
endif
WARNINGS := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes
ifneq ($(filter true,$(CI))$(WERROR),)
WARNINGS += -Werror
endif
FLAGS = -std=c11 -D_GNU_SOURCE -g $(OPTIMISE) -fno-math-errno $(if $(MARCH),-march=$(MARCH)) $(WARNINGS) -fopenmp \
        -I. -I$(B) $(HAVE) $(CFLAGS)

# What the machine has is looked up once and kept in found.mk; what is wanting is said by that file too, which is read at once and
# then removes itself: one line, and nothing else, is what the person sees. The goals that may have to install something first call make again
# for their second half, so that the look-up comes after.
INSTALL_FIRST := run test test-long test-reference bench bench-compare packages help clean format uninstall
ifneq ($(filter-out $(INSTALL_FIRST),$(or $(MAKECMDGOALS),all)),)
include $(B)/found.mk
endif

# ------------------------------------------------------------------------------------------- the files
# The plain definitions of the cpu room are compiled twice, in float and in double (kernels/cpu/kernel.h).
# Kernels by a library (fast_*.c) are compiled for stored numbers in F32 and in BF16, those by vectors (vector_*.c) for every level
# of the processor that kernels/cpu/table.c chooses from when the program starts (ROOMS, found below).
CPU     := kernels/cpu
VECTOR  := $(wildcard $(CPU)/vector_*.c)
LIBRARY := $(wildcard $(CPU)/fast_*.c)
SINGLE  := $(CPU)/table.c $(CPU)/workspace.c $(CPU)/dnnl_tile.c
PLAIN   := $(filter-out $(SINGLE) $(VECTOR) $(LIBRARY),$(wildcard $(CPU)/*.c))
ONCE    := $(wildcard src/*.c parallel/*.c io/*.c kernels/*.c kernels/dry/*.c) $(SINGLE)
OBJECTS := $(ONCE:%.c=$(B)/%.o) $(PLAIN:%.c=$(B)/%_f32.o) $(PLAIN:%.c=$(B)/%_f64.o) \
           $(LIBRARY:%.c=$(B)/%_library_f32.o) $(LIBRARY:%.c=$(B)/%_library_bf16.o) \
           $(foreach r,$(ROOMS),$(VECTOR:%.c=$(B)/%_$(r).o))
MODULES := $(filter-out $(B)/src/main.o,$(OBJECTS))
TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/test_*.c))
# C files beside the tests that are neither tests nor programs are linked into every test.
HELPERS := $(patsubst %.c,$(B)/%.o,$(filter-out tests/test_%.c tests/mpi_hello.c tests/tensors.c,$(wildcard tests/*.c)))
PRESETS := $(sort $(wildcard inputs/models/*.yaml))

.PHONY: all install uninstall run test test-long test-reference bench bench-compare tests format clean help packages found run-built test-built FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: found $(PROGRAM)

# -------------------------------------------------------------------------------------- what is there
# Shell text: sets MPICC, MPIRUN, ... and prints them as make variables. A library counts when its header compiles and it links.
define PROBE
dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT
has() { printf '#include <%s>\nint main(void) { return 0; }\n' "$$1" >"$$dir/t.c"; shift
        $(CC) $(CFLAGS) "$$dir/t.c" -o "$$dir/t" "$$@" 2>/dev/null; }
value() { printf '#include <%s>\n%s %s\n' "$$1" @@ "$$2" | $(CC) $(CFLAGS) -E -x c - 2>/dev/null | sed -n '/^@@/,$$p' | grep -v '^#' | tr -d '@ "\n'; }
command -v $(CC) >/dev/null || { echo "mestar: no C compiler: $(CC) is not there; try: make packages" >&2; exit 1; }
# The launcher that belongs to a wrapper: mpicc -> mpirun, mpicc.openmpi -> mpirun.openmpi, beside it or on the path.
launcher() { l=$$(printf %s "$$1" | sed 's/mpi[a-z]*cc/mpirun/'); command -v "$$l" || command -v mpirun || command -v mpiexec; }
broken=; MPI=; MPICC=; MPIRUN=
for cc in $(or $(MPICC),mpicc mpicc.openmpi mpicc.mpich); do
    run=$${GIVEN_MPIRUN:-$$(launcher $$cc)} || continue
    command -v $$cc >/dev/null || continue
    case $$($$run --version 2>&1) in *"Open MPI"*|*OpenRTE*|*PRRTE*) kind=openmpi ;; *) kind=mpich ;; esac
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    more=; if [ $$kind = openmpi ]; then more=--oversubscribe; command -v ssh >/dev/null || export OMPI_MCA_plm_rsh_agent=; fi
    if [ "$(MPI_TRY)" = no ]; then
        $$cc -o "$$dir/hello" tests/mpi_hello.c || continue
        kind=$$(printf '#include <mpi.h>\n#ifdef OPEN_MPI\n@@openmpi\n#else\n@@mpich\n#endif\n' | $$cc -E -x c - | sed -n 's/^@@//p')
        MPICC=$$cc; MPIRUN=$$run; MPI="$$kind, not tried"
        break
    fi
    if $$cc -o "$$dir/hello" tests/mpi_hello.c >/dev/null 2>&1 &&
       said=$$(timeout 60 $$run $$more -n 2 "$$dir/hello" 2>"$$dir/err") && [ "$${said%%:*}" = "hello from 2 of 2" ]; then
        MPICC=$$cc; MPIRUN=$$run; MPI=$$(printf %s "$${said#*: }" | sed -E 's/(MPICH)[^0-9]*([0-9.]+).*/\1 \2/; s/.*(Open MPI) v?([0-9.]+).*/\1 \2/')
        break
    fi
    broken="$$broken $$cc"
done
printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\nint main(void) { return 0; }\n' >"$$dir/t.c"
$(CC) $(CFLAGS) "$$dir/t.c" -o "$$dir/t" -lpcre2-8 2>/dev/null || { echo "mestar: libpcre2 (header pcre2.h) is not there; try: make packages" >&2; exit 1; }
has utf8proc.h -lutf8proc || { echo "mestar: libutf8proc (header utf8proc.h) is not there; try: make packages" >&2; exit 1; }
for x in yaml jansson xxhash; do
    has $$x.h -l$$x || { echo "mestar: lib$$x (header $$x.h) is not there; try: make packages" >&2; exit 1; }
done
[ -n "$$MPICC" ] || { echo "mestar: no MPI that runs two ranks (tried:$${broken:- nothing, none is there}); try: make packages" >&2; exit 3; }
products="none (plain loops)"; HAVE=; LIBS="-lyaml -ljansson -lxxhash -lpcre2-8 -lutf8proc -lpthread"
if [ "$(SANITIZE)" != thread ]; then
    if has dnnl.h -ldnnl; then
        HAVE=-DHAVE_DNNL; LIBS="$$LIBS -ldnnl"
        products="oneDNN $$(value dnnl.h DNNL_VERSION_MAJOR).$$(value dnnl.h DNNL_VERSION_MINOR).$$(value dnnl.h DNNL_VERSION_PATCH)"
    elif has cblas.h -lopenblas; then HAVE=-DHAVE_OPENBLAS; LIBS="$$LIBS -lopenblas"; products=OpenBLAS; fi
fi
case $$(echo __x86_64__ | $(CC) $(CFLAGS) -E -P -) in
1) rooms="v3_f32 v4_f32 v3_bf16 v4_bf16 v4bf16_bf16" ;;
*) rooms="native_f32 native_bf16" ;;
esac
echo "ROOMS := $$rooms"
echo "MPICC := $$MPICC"
echo "MPIRUN := $$MPIRUN"
echo "MPI_KIND := $$kind"
echo "HAVE := $$HAVE"
echo "LIBS := $$LIBS -lm"
echo "FOUND_COMPILER := $$($(CC) --version | head -n 1), $(if $(MARCH),-march=$(MARCH),any processor of its kind)"
echo "FOUND_MPI := $$MPI ($$MPICC, $$MPIRUN$${broken:+; does not start ranks that know of each other:$$broken})"
echo "FOUND_PRODUCTS := $$products"
echo "FOUND_LIBRARIES := libyaml, jansson $$(value jansson.h JANSSON_VERSION), xxhash $$(value xxhash.h XXH_VERSION_MAJOR).$$(value xxhash.h XXH_VERSION_MINOR).$$(value xxhash.h XXH_VERSION_RELEASE)"
endef
export PROBE
export GIVEN_MPIRUN := $(MPIRUN)

# What was asked for, so that another answer is looked for when it changes.
$(B)/asked: FORCE
	@mkdir -p $(B)
	@printf '%s\n' '$(ASKED)' >$@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(B)/found.mk: Makefile tests/mpi_hello.c $(B)/asked
	@mkdir -p $(B)
	@sh -uc "$$PROBE" >$@.new 2>$@.err || \
	 printf '$$(shell rm -f $@)$$(error %s)\n' "$$(grep '^mestar: ' $@.err | head -n 1)" >$@.new
	@cat $@.err | grep -v '^mestar: ' >&2 || true; rm $@.err; mv $@.new $@

found: $(B)/found.mk
	@echo "compiler: $(FOUND_COMPILER)"
	@echo "MPI:      $(FOUND_MPI)"
	@echo "products: $(FOUND_PRODUCTS)"
	@echo "others:   $(FOUND_LIBRARIES)$(if $(SANITIZE),; sanitizers: $(SANITIZE))"

# ------------------------------------------------------------------------------------------- building
# These change only when their text does, so nothing is compiled again without need.
define REPLACE_IF_CHANGED
if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
endef

$(B)/flags: FORCE
	@mkdir -p $(B)
	@printf '%s\n' '$(MPICC) $(CC) $(FLAGS) $(LIBS)' >$@.new; $(REPLACE_IF_CHANGED)

$(B)/version.inc: FORCE
	@mkdir -p $(B)
	@{ echo '#define BUILD_VERSION "$(VERSION)"'; \
	   r=$$(git -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null) || r=unknown; \
	   [ "$$r" = unknown ] || if [ -z "$$(git -c safe.directory='*' status --porcelain --untracked-files=no 2>/dev/null)" ]; then r="$$r clean"; else r="$$r dirty"; fi; \
	   echo "#define BUILD_REVISION \"$$r\""; \
	   echo "#define BUILD_COMPILER \"$(FOUND_COMPILER)\""; \
	   echo "#define BUILD_FLAGS \"$(FLAGS)\""; \
	   echo "#define BUILD_MPI \"$(FOUND_MPI)\""; \
	   echo "#define BUILD_PRODUCTS \"$(FOUND_PRODUCTS)\""; \
	   echo "#define BUILD_LIBRARIES \"$(FOUND_LIBRARIES)\""; } >$@.new; $(REPLACE_IF_CHANGED)

# The decks of inputs/models as C text, so that the program carries them.
$(B)/presets.inc: src/presets.awk $(PRESETS) Makefile
	@mkdir -p $(B)
	@awk -f src/presets.awk $(PRESETS) >$@

compile = $(Q)mkdir -p $(@D) && $(MPICC) $(FLAGS) $(1) -MMD -MP -c $< -o $@
prepared = $(B)/flags $(B)/found.mk | $(B)/presets.inc $(B)/version.inc

march_v3     := -march=x86-64-v3
march_v4     := -march=x86-64-v4 -mprefer-vector-width=512
march_v4bf16 := -march=x86-64-v4 -mavx512bf16 -mprefer-vector-width=512
# -fwrapv: integers of vectors are patterns of bits there, and carry out of the sign.
define room_rule
$$(B)/$(CPU)/vector_%_$(1).o: $(CPU)/vector_%.c $$(prepared)
	$$(call compile,-DREAL=float -DROOM=$(1) -ffp-contract=fast -fwrapv $$(if $$(filter %_bf16,$(1)),-DSTORED_BF16) $$(march_$(firstword $(subst _, ,$(1)))))
endef
$(foreach r,$(ROOMS),$(eval $(call room_rule,$(r))))
$(B)/$(CPU)/fast_%_library_f32.o: $(CPU)/fast_%.c $(prepared)
	$(call compile,-DREAL=float -DROOM=library_f32)
$(B)/$(CPU)/fast_%_library_bf16.o: $(CPU)/fast_%.c $(prepared)
	$(call compile,-DREAL=float -DROOM=library_bf16 -DSTORED_BF16)
$(B)/kernels/cpu/%_f32.o: kernels/cpu/%.c $(prepared)
	$(call compile,-DREAL=float -DROOM=f32)
$(B)/kernels/cpu/%_f64.o: kernels/cpu/%.c $(prepared)
	$(call compile,-DREAL=double -DROOM=f64)
$(B)/%.o: %.c $(prepared)
	$(call compile)

$(PROGRAM): $(OBJECTS)
	$(Q)$(MPICC) $(FLAGS) $(OBJECTS) -o $@ $(LIBS)

# A test links what it uses, so that it can be built while other modules are being changed.
tests: $(TESTS) $(B)/tests/tensors
$(B)/tests/mestar.a: $(HELPERS) $(MODULES)
	@mkdir -p $(@D); rm -f $@
	$(Q)ar rcs $@ $^
$(TESTS): $(B)/tests/%: $(B)/tests/%.o $(B)/tests/mestar.a
	$(Q)$(MPICC) $(FLAGS) $^ -o $@ -lcmocka $(LIBS)
$(B)/tests/tensors: $(B)/tests/tensors.o
	$(Q)$(MPICC) $(FLAGS) $^ -o $@ -ljansson -lm

-include $(OBJECTS:.o=.d) $(HELPERS:.o=.d) $(TESTS:=.d) $(B)/tests/tensors.d

# ------------------------------------------------------------------------------------ packages (Debian)
# WANT: build, test, bench or reference. What is missing is installed as root or through sudo; a person who is neither gets the one line to
# type. What the program can do without (a library for matrix products) is wished for, never demanded.
define PACKAGES
need=; wish=
there() { command -v "$$1" >/dev/null 2>&1; }
header() { there $(CC) && printf '#include <%s>\n' "$$1" | $(CC) $(CFLAGS) -E -x c - >/dev/null 2>&1; }
there $(CC) || need="$$need $(CC)"
header stdio.h || need="$$need libc6-dev"
there $(firstword $(MPICC) mpicc) || there mpicc.openmpi || need="$$need mpich libmpich-dev"
header yaml.h || need="$$need libyaml-dev"
header jansson.h || need="$$need libjansson-dev"
header xxhash.h || need="$$need libxxhash-dev"
header utf8proc.h || need="$$need libutf8proc-dev"
[ -e /usr/include/pcre2.h ] || header pcre2posix.h || need="$$need libpcre2-dev"
if [ "$(WANT)" = test ] || [ "$(WANT)" = bench ]; then header cmocka.h || need="$$need libcmocka-dev"; fi
if [ "$(WANT)" = bench ]; then there python3 || need="$$need python3"; fi
if [ "$(WANT)" = test ]; then there pgrep || need="$$need procps"; fi
if [ "$(WANT)" = reference ]; then python3 -c 'import ensurepip, venv' 2>/dev/null || need="$$need python3 python3-venv"; fi
header dnnl.h || header cblas.h || wish=libdnnl-dev
if [ "$(CC)" = clang ]; then header omp.h || need="$$need libomp-dev"; fi
as=; if [ "$$(id -u)" != 0 ]; then as="sudo -n"; sudo -n true 2>/dev/null || as=no; fi
there apt-get || as=no
install() {
    if [ "$$as" = no ]; then
        echo "mestar: missing:$$*. As root, type (or its like where there is no apt-get), then make again:" >&2
        echo "    apt-get install -y --no-install-recommends$$*" >&2; exit 1
    fi
    echo "installing$$*"
    [ -n "$$(ls /var/lib/apt/lists/*_Packages* 2>/dev/null)" ] || $$as apt-get update -qq
    $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$* >/dev/null 2>$(B)/apt.err </dev/null ||
        { $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$* >/dev/null </dev/null; } || return 1
    rm -f build/found.mk build/*/found.mk
}
mkdir -p $(B)
[ -z "$$need" ] || install "$$need" || exit 1
if [ -n "$$wish" ] && [ "$$as" != no ]; then install " $$wish" || install " libopenblas-dev" || true; fi
if [ ! -e $(B)/found.mk ]; then
    code=0; sh -uc "$$PROBE" >/dev/null 2>&1 || code=$$?
    if [ $$code = 3 ]; then echo "this system's MPI does not start ranks that know of each other"; install " openmpi-bin libopenmpi-dev" || exit 1; fi
fi
endef
export PACKAGES
WANT := build

packages:
	@sh -uc "$$PACKAGES"

# ------------------------------------------------------------------------------------------ for people
run:
	@$(MAKE) packages
	@$(MAKE) all
	@$(MAKE) run-built
run-built:
	@B=$(B); . tests/lib.sh; mpi 2 ./$(PROGRAM) inputs/quickstart.yaml && ./$(PROGRAM) inputs/tiny-generate.yaml
	@echo "report       outputs/quickstart/report.html"
	@echo "checkpoints  outputs/quickstart/checkpoints, Hugging Face folders"
	@echo "more text    ./$(PROGRAM) inputs/tiny-generate.yaml 'generate.prompt=#define '"

test:
	@$(MAKE) packages WANT=test
	@$(MAKE) all tests
	@$(MAKE) test-built
test-built:
	@sh tests/suite.sh $(B) $(TESTS:$(B)/tests/%=%) $(sort $(wildcard tests/run_*.sh))

# As test, with the longer forms of the runs.
test-long:
	@LONG=1 $(MAKE) test

# New models by transformers, compared live. SEED=n draws others. Python lives in a folder of its own under build/.
SEED ?= 1
test-reference:
	@$(MAKE) packages WANT=reference
	@$(MAKE) all build/venv/ready
	@$(MAKE) $(B)/tests/test_tokenizer
	@build/venv/bin/python tests/reference/live.py --seed $(SEED) --program ./$(PROGRAM)
	@build/venv/bin/python tests/reference/tokenizing.py live $(B)/tests/test_tokenizer --seed $(SEED) --mestar ./$(PROGRAM)
build/venv/ready:
	@echo "making a Python environment with torch and transformers in build/venv"
	@python3 -m venv build/venv && build/venv/bin/pip install -q torch transformers safetensors numpy && touch $@

# How fast it is, beside transformers and llama.cpp where they are there; build/bench.md receives the tables. bench/README.md.
#   BENCH="ops layers steps generation starts ranks lengths"   some of it
#   CONFIGS=a,b,c  RECIPES=fp32,bf16  THREADS=n  ROUNDS=5  CLOCK=wall|cpu (processor time of one thread, for steps)
#   PYTHON=python with torch and transformers      LLAMA_BENCH=llama-bench in a folder of llama.cpp's sources
#   BEFORE="taskset -c 0-7"                        what starts every program that is raced
BENCH   ?=
CONFIGS ?= a,b,c
RECIPES ?= fp32,bf16
ROUNDS  ?= 5
CLOCK   ?= wall
PYTHON  ?= build/venv/bin/python
LLAMA_BENCH ?=
BEFORE  ?=
space := $(empty) $(empty)
# lists have commas or spaces between, as BENCH has
bench_list = $(subst $(space),$(comma),$(strip $(1)))
bench_options := --configs '$(call bench_list,$(CONFIGS))' --recipes '$(call bench_list,$(RECIPES))' --rounds $(ROUNDS) $(if $(THREADS),--threads $(THREADS))
bench:
	@$(MAKE) packages WANT=bench
	@$(MAKE) all $(B)/tests/test_ops
	@python3 bench/run.py $(subst $(comma), ,$(BENCH)) $(bench_options) --python '$(PYTHON)' --llama '$(LLAMA_BENCH)' --before '$(BEFORE)' --clock $(CLOCK) --program ./$(PROGRAM) --build $(B)

# What became slower, and faster, since a commit: REV=HEAD~3.
REV ?= HEAD
bench-compare:
	@$(MAKE) packages WANT=bench
	@$(MAKE) all $(B)/tests/test_ops
	@python3 bench/compare.py $(bench_options) -- '$(REV)'

# The program, decks, job scripts, manual pages made from what the program says of itself, and a modulefile: set PREFIX to a folder
# of yours where you are not root. Nothing of it is needed to run the program but the program.
MODULE := lib/modulefiles/mestar/$(VERSION)
define MODULEFILE
#%Module1.0
module-whatis "mestar $(VERSION): trains hybrid Mamba-2, attention, MLP and expert language models under mpirun"
proc ModulesHelp { } { puts stderr "mpirun -n N mestar DECK; decks to start from are in \$$MESTAR_HOME/inputs; man mestar" }
conflict mestar
setenv MESTAR_HOME $(abspath $(PREFIX))/share/mestar
prepend-path PATH $(abspath $(PREFIX))/bin
prepend-path MANPATH $(abspath $(PREFIX))/share/man
endef
export MODULEFILE
# Text as it is, for man: a manual page of one section.
manual = { printf '.TH %s %s "" "mestar %s" ""\n.SH NAME\n%s \\- %s\n.SH %s\n.nf\n' $(1) $(2) $(VERSION) $(1) '$(4)' $(3); sed 's/\\/\\e/g; s/^\([.'"'"']\)/\\\&\1/; s/-/\\-/g'; }
to := $(DESTDIR)$(PREFIX)

install: all
	@mkdir -p $(to)/bin $(to)/share/mestar/inputs/models $(to)/share/mestar/jobs $(to)/share/man/man1 $(to)/share/man/man5 $(to)/$(dir $(MODULE))
	@install -m 755 $(PROGRAM) $(to)/bin/mestar
	@install -m 644 $(wildcard inputs/*.yaml inputs/*.md) $(to)/share/mestar/inputs/
	@install -m 644 $(PRESETS) $(to)/share/mestar/inputs/models/
	@for f in $(wildcard jobs/*); do if [ -x $$f ]; then m=755; else m=644; fi; install -m $$m $$f $(to)/share/mestar/jobs/; done
	@install -m 644 README.md $(to)/share/mestar/
	@./$(PROGRAM) --help | $(call manual,mestar,1,USE,trains hybrid language models under mpirun) >$(to)/share/man/man1/mestar.1
	@./$(PROGRAM) keys | $(call manual,mestar-keys,5,KEYS,what a deck of mestar may say) >$(to)/share/man/man5/mestar-keys.5
	@printf '%s\n' "$$MODULEFILE" >$(to)/$(MODULE)
	@echo "installed $(to)/bin/mestar; decks in $(to)/share/mestar/inputs; modulefile $(to)/$(MODULE)"

uninstall:
	rm -f $(to)/bin/mestar $(to)/share/man/man1/mestar.1 $(to)/share/man/man5/mestar-keys.5 $(to)/$(MODULE)
	rm -rf $(to)/share/mestar
	-@rmdir $(to)/$(dir $(MODULE)) 2>/dev/null || true

format:
	clang-format -i $(wildcard src/*.[ch] parallel/*.[ch] io/*.[ch] kernels/*.[ch] kernels/*/*.[ch] tests/*.[ch])

clean:
	rm -rf build mestar

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile
	@echo 'all  run  test  test-long  test-reference [SEED=n]  bench [BENCH=...]  bench-compare REV=...  install  uninstall  format  clean  packages'
