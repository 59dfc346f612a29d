.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint lock clean export engines check-engines calibrate parity train evaluate crossval serve bench bench-peers bench-pipeline bench-quick exported

# The Python that makes the environments: 3.11 to 3.13, for which the embedded server has stubs.
PYTHON ?= python3
# Triton's container. By default a plan runs only on the TensorRT that built it.
TRITON_RELEASE ?= 26.11
# What the command beneath is told: make export ARGS="--model dan --checkpoint dan.pth"
ARGS ?=
VIDEOFER := .venv/bin/python -m videofer
PIP := pip install --disable-pip-version-check
DEMO := build/demo
LIBS = .venv-server/lib/python3.*/site-packages/nvidia_pytriton.libs
# TensorRT's Python bindings alone, 1 MB each: tests hold the builder against both majors.
BINDINGS := 10.16.1.11 11.4.0.106

help: ## Show this help
	@awk -F ':.*## ' '/^[a-zA-Z_-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: .venv/.installed .venv-server/.installed ## Create the two environments, from pinned packages

demo: exported $(DEMO)/sample.mp4 ## Serve FAN here and name the emotion in a sample video
	@$(VIDEOFER) serve --free-ports -- \
	    clients/predict.py $(DEMO)/sample.mp4 --plot $(DEMO)/shares.png --annotate $(DEMO)/annotated.mp4 --report $(DEMO)/page.html
	@printf '\nto look at: %s  %s  %s\n' $(DEMO)/page.html $(DEMO)/shares.png $(DEMO)/annotated.mp4
	@echo 'next: make serve, and in another terminal clients/predict.py your.mp4 --report page.html'

test: exported .venv-browser/.installed build/perf_analyzer/.installed $(BINDINGS:%=build/bindings/%/.installed) ## Run every test, a real Triton included
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/.installed ## Check format, style and types
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy base benchmarks clients export networks serving training videofer

lock: ## Resolve pyproject.toml and requirements/*.in into pinned packages
	for name in project server peers browser; do $(PYTHON) -m venv --clear build/lock/$$name || exit 1; done
	build/lock/project/bin/pip install -q "setuptools>=77" ".[pictures,export,test]"
	build/lock/project/bin/pip freeze --all --exclude pip --exclude video-fer-triton | sed 's/+cpu$$//' > requirements/project.txt
	for name in server peers browser; do \
	    build/lock/$$name/bin/pip install -q -r requirements/$$name.in || exit 1; \
	    build/lock/$$name/bin/pip freeze --exclude openvino-telemetry > requirements/$$name.txt; done

clean: ## Remove what was built: environments, models, demo
	rm -rf .venv .venv-* build model_repository/*/labels.txt
	find model_repository -path '*/1/*' -type f ! -name .gitkeep -delete

# The rest is `videofer` of the same name, told ARGS: `videofer --help` lists more.
export: setup ## Make what Triton serves from checkpoints
calibrate: setup ## Measure the ranges that INT8 needs
check-engines: exported ## Compile the plans' graphs without a GPU
parity: exported ## Compare every precision with the checkpoint
train: setup ## Train a network on labelled faces
evaluate: setup ## Measure a checkpoint on labelled faces
crossval: setup ## Train and measure FANs by subject
calibrate check-engines parity train evaluate crossval export:
	@$(VIDEOFER) $@ $(ARGS)
engines: exported ## Build TensorRT's plans on this GPU
serve: exported ## Start a Triton server here, until Ctrl-C
engines serve:
	@$(VIDEOFER) $@ --release $(TRITON_RELEASE) $(ARGS)
bench: exported build/perf_analyzer/.installed ## Measure how fast a server answers
	@$(VIDEOFER) bench load $(ARGS)
bench-peers: exported .venv-peers/.installed ## Compare with the same network in other engines and servers
bench-pipeline: exported $(DEMO)/sample.mp4 ## Measure the way from video to answer, stage by stage
bench-quick: exported ## Two minutes for a pull request: ratios now and before
bench-peers bench-pipeline bench-quick:
	@$(VIDEOFER) $(subst -, ,$@) $(ARGS)

# Whatever is not current: the code, the weights or their ranges have changed.
exported: setup
	@$(VIDEOFER) export
$(DEMO)/sample.mp4: clients/sample.py | .venv/.installed
	.venv/bin/python -m clients.sample $@

.venv/.installed: requirements/project.txt requirements/detector.txt pyproject.toml
.venv-server/.installed .venv-peers/.installed .venv-browser/.installed: .venv-%/.installed: requirements/%.txt
.venv/.installed .venv-server/.installed .venv-peers/.installed .venv-browser/.installed:
	@PYTHON=$(PYTHON) requirements/install.sh $(@D)

# perf_analyzer: of the last release that runs on glibc 2.34, and the two libraries it misses there.
build/perf_analyzer/.installed: .venv-server/.installed | .venv/.installed
	.venv/bin/$(PIP) --no-deps --upgrade --target $(@D) tritonclient==2.51.0
	mkdir -p $(@D)/lib && cp $(LIBS)/libb64-*.so.0d $(@D)/lib/libb64.so.0d
	cp $(LIBS)/libcudart-*.so.12* $(@D)/lib/libcudart.so.12
	@touch $@

build/bindings/%/.installed: | .venv/.installed
	.venv/bin/$(PIP) --no-deps --upgrade --target $(@D) tensorrt-cu13-bindings==$*
	@touch $@
