# Every target sets up what it needs with tools/setup: `make demo` works on a fresh Debian machine.

BIN := .venv/bin
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
TIERS := $(wildcard $(addprefix tests/,unit emulator faults slurm engines))
# The slow tests of the engines are the longest: last, one of their files would run alone.
SLOW_TIERS := $(wildcard $(addprefix tests/,engines slurm faults emulator unit))
NO_DEMO_SLURM := the demo runs the same workflows on the emulator alone.
NO_TEST_SLURM := as root, run `apt-get install slurm-wlm munge procps`, or run `make test-noslurm`.
EVERY_TIME := not slow and not parsl_suite and not tutorial and not accounting
# Run four test files at once, because tests mostly wait. Each has its own Slurm and emulator. The
# order is that of the tiers; where it does not matter, the files with most tests come first.
LARGEST_FIRST := -n 4 --dist loadfile
AT_ONCE := $(LARGEST_FIRST) --no-loadscope-reorder
PYTHONS := 3.12 3.13
# Only root can create the users that some tests need.
AS_USER := $(if $(filter 0,$(shell id -u)),,and not root)

.PHONY: demo test test-slurm test-noslurm coverage test-servers test-pythons test-slow test-accounting test-parsl-suite test-tutorial test-packages break-it bench bench-stages lint clean

demo:
	@slurm=; tools/setup slurm '$(NO_DEMO_SLURM)' || slurm=--no-slurm; \
	tools/setup venv && $(IN_VENV) python examples/demo.py $$slurm

test:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@$(MAKE) --no-print-directory lint
	@$(IN_VENV) pytest $(AT_ONCE) -m '$(EVERY_TIME) $(AS_USER)' $(TIERS)

# The part of `make test` that `make coverage` does not run.
test-slurm:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@$(IN_VENV) pytest $(AT_ONCE) -m '$(EVERY_TIME) $(AS_USER)' tests/slurm tests/engines
	@$(IN_VENV) pytest $(AT_ONCE) -m 'slurm and $(EVERY_TIME) $(AS_USER)' tests/emulator tests/faults

test-noslurm: lint
	@$(IN_VENV) pytest $(AT_ONCE) -m 'not slurm and not slow' $(TIERS)

# The core's coverage by the tests that need no Slurm, including the processes that they start.
coverage:
	@tools/setup venv
	@$(IN_VENV) pytest $(AT_ONCE) -q -m 'not slurm and not slow' --cov --cov-report=term \
		tests/unit tests/emulator tests/faults

# Run the fault tests on servers that differ from the documented one, in one setting each.
test-servers:
	@tools/setup venv
	@$(IN_VENV) OTHER_SERVERS=1 pytest $(LARGEST_FIRST) -q -m 'not slurm and not slow' tests/faults

# Run the tests that need no Slurm with every other supported Python that is installed.
test-pythons:
	@for version in $(PYTHONS); do \
		tools/setup python $$version || { [ $$? -eq 3 ] && continue; exit 1; }; \
		PATH="$(CURDIR)/.venv-$$version/bin:$$PATH" python -m pytest $(LARGEST_FIRST) \
			-m 'not slurm and not slow' tests/unit tests/emulator tests/faults || exit 1; \
	done

test-slow:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup compiler
	@tools/setup venv
	@$(IN_VENV) pytest $(AT_ONCE) -m 'slow $(AS_USER)' $(SLOW_TIERS)

# Compare `qpu usage` with Slurm's own accounting: slurmdbd on a private MariaDB.
test-accounting:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup accounting
	@tools/setup venv
	@$(IN_VENV) pytest -m accounting tests/slurm tests/engines

# Run Parsl's own tests on our provider, launcher and executor, in blocks that hold a QPU.
test-parsl-suite:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@tools/setup parsl-suite
	@$(IN_VENV) pytest -s -m parsl_suite tests/engines/test_parsl_suite.py

# Run Snakemake's tutorial, taken from Debian's package, with an added rule that uses a QPU.
test-tutorial:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@tools/setup tutorial
	@$(IN_VENV) pytest -m tutorial tests/engines/test_snakemake_tutorial.py

# Run the example of N2, and packages that others have written for Qiskit's primitives.
test-packages:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@tools/setup packages
	@$(IN_VENV) pytest $(AT_ONCE) tests/packages --ignore=tests/packages/test_mitiq.py
	@PATH="$(CURDIR)/.venv-mitiq/bin:$$PATH" python -m pytest tests/packages/test_mitiq.py

# Kill, starve and confuse steps and Slurm jobs at random moments, on every kind of server, 500
# times. Print what was hit, what was lost, and the seed. As root, also kill a site's daemons and
# scripts, in 100 rounds, and have 200 jobs of two users compete for QPUs.
break-it:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@[ "$$(id -u)" -ne 0 ] || tools/setup accounting
	@tools/setup venv
	@$(IN_VENV) BREAK_RUNS=$${BREAK_RUNS:-300} BREAK_SEED=$${BREAK_SEED:-$$(date +%s)} \
		EXCLUSION_JOBS=$${EXCLUSION_JOBS:-200} pytest -q -s $(if $(AS_USER),-m 'not root') \
		tests/faults/test_break_*.py tests/slurm/test_exclusion.py

# Each benchmark prints JSON, with ratios of measurements made side by side in one run.
bench: bench-stages
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@$(IN_VENV) sh -c 'for each in start_up tasks choice emulator usage snakemake parsl_apps site_scripts; do python benchmarks/$$each.py; done'

# What stages of several jobs save: JSON, tables and a picture in benchmarks/out.
bench-stages:
	@tools/setup slurm '$(NO_TEST_SLURM)'
	@tools/setup venv
	@$(IN_VENV) python benchmarks/stages.py

lint:
	@tools/setup venv
	@$(IN_VENV) ruff check
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) mypy

clean:
	rm -rf .venv .venv-* .tutorial .mypy_cache .pytest_cache .ruff_cache build dist demo-run .setup.log
