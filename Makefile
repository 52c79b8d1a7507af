# Each target runs the Python that .ci/python prints for it: python3 where it has all the target needs, else .venv, made
# from requirements.txt; `make PYTHON=…` overrides. ninja decides what of the extension to compile again.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build print-python demo test test-cpp bench fuzz docs lint format clean
export PYTHON
CMAKE_GENERATOR ?= $(if $(shell command -v ninja 2>/dev/null),Ninja,Unix Makefiles)
export CMAKE_GENERATOR
cores = $(shell getconf _NPROCESSORS_ONLN)

python = python=$$(.ci/python $@)
built = $(python) && "$$python" setup.py -q build_ext --inplace
clang_format = "$$python" -c "import clang_format as c; c.clang_format()"
cpp_files = $(shell find csrc $(wildcard tests/cpp) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

help:          ## list the targets
	@sed -n 's/^\([a-z-]*\): *##/  \1\t/p' Makefile | expand -t 16

build:         ## compile the extension in place
	@$(built)

print-python:  ## print the Python that `make test` runs, once it is set up
	@.ci/python $@

demo:          ## train, prune and fine-tune a small network: a table, and report.html; DEVICE=cuda runs on a GPU
	@$(built) && "$$python" -m eigendamage_ext demo $(if $(DEVICE),--device $(DEVICE))

test:          ## run the tests; ARGS=… goes to pytest
	@$(built) && "$$python" -m pytest -n logical --maxprocesses 8 --dist loadfile -p no:benchmark $(ARGS)

test-cpp:      ## test the kernels without torch, under sanitizers
	@command -v cmake >/dev/null || { echo "make test-cpp needs cmake: install it (Debian: apt install cmake;" \
	    "Fedora: dnf install cmake; macOS: brew install cmake)." >&2; exit 1; }
	@for sanitize in address,undefined thread; do folder=build/cpp-$${sanitize%,*}; \
	    cmake -S . -B $$folder -DEIGENDAMAGE_SANITIZE=$$sanitize && cmake --build $$folder --parallel $(cores) && \
	    ctest --test-dir $$folder --parallel $(cores) --no-tests=error --output-on-failure || exit 1; done

bench:         ## time the kernels and print the gates; ARGS='--only patch' takes those with a word in their name
	@mkdir -p .benchmarks
	@$(built) && "$$python" -m pytest benchmarks --benchmark-only --benchmark-quiet \
	    --benchmark-json .benchmarks/run.json $(ARGS)

fuzz:          ## try 100,000 random eigenproblems and 2,000 convolutions; ARGS=--seed=1 repeats a run
	@$(built) && PYTHONPATH=. "$$python" tests/fuzz.py $(ARGS)

docs:          ## make a site of the documentation
	@$(python) && NO_MKDOCS_2_WARNING=1 "$$python" -m mkdocs build --strict -f docs/site/mkdocs.yml && \
	    echo "The documentation is $(CURDIR)/build/site/index.html"

lint:          ## ruff, mypy, clang-format
	@$(python) && "$$python" -m ruff check && "$$python" -m ruff format --check && "$$python" -m mypy && \
	    $(clang_format) --dry-run -Werror $(cpp_files)

format:        ## let ruff and clang-format mend what they can
	@$(python) && "$$python" -m ruff check --fix; "$$python" -m ruff format && $(clang_format) -i $(cpp_files)

clean:         ## remove all that was built, but .venv
	rm -rf build dist *.egg-info eigendamage_ext/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
