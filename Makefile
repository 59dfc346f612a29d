.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo export engines check-engines calibrate parity train evaluate crossval bench bench-pipeline bench-peers bench-quick serve test lint lock clean

# The Python that makes the environments: 3.11 to 3.13, for which the embedded server has stubs.
PYTHON ?= python3
# The network: fan, dan, ran or deep_emotion; for export also all, those whose weights are shipped.
MODEL ?=
# Its weights, ours (.safetensors) or its authors' (.pth, .pth.tar; then LABELS, for some COLOR or
# VARIANT too). By default the shipped ones.
CHECKPOINT ?=
LABELS ?=
COLOR ?=
VARIANT ?=
# How common each emotion is: even, natural, or a JSON file of shares (weights/README.md).
PRIOR ?=
# What `make serve` runs: default and int8 in the container, cpu, cpu_openvino and cpu_fp32 embedded.
PLATFORM ?= default
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
# Triton's container. By default a plan runs only on the TensorRT that built it.
TRITON_RELEASE ?= 26.11
# The container that builds plans instead of this machine's own TensorRT, such as
# nvcr.io/nvidia/tensorrt; without a tag it gets that of TRITON_RELEASE, which has the same TensorRT.
IMAGE ?=
# Aligned faces to calibrate or compare with; labelled ones to train on or measure with.
DATA ?=
# For train, evaluate and crossval: weights to start from, faces to measure on as training goes,
# folder of the run, device (cpu, cuda), and any other options of the command beneath.
INIT ?=
VALIDATION ?=
OUT ?=
DEVICE ?=
OPTIONS ?=
# A running Triton's gRPC address, to measure instead of the embedded server.
URL ?=
# For bench-quick: an earlier quick.json; by default the newest.
AGAINST ?=
# The video that is measured with; by default the demo's sample.
VIDEO ?= build/demo/sample.mp4

MODEL_OPTIONS = $(if $(MODEL),--model $(MODEL)) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
    $(if $(LABELS),--labels "$(LABELS)") $(if $(COLOR),--color $(COLOR)) $(if $(VARIANT),--variant $(VARIANT)) \
    $(if $(PRIOR),--prior "$(PRIOR)")
VENV := .venv/bin/python
# Plans are built by TensorRT and the standard library alone: any container that has the first.
BUILDER = $(if $(IMAGE),docker run --rm --gpus device=0 --user $(shell id -u):$(shell id -g) \
    -v "$(CURDIR)":/project -w /project \
    $(if $(findstring :,$(notdir $(IMAGE))),$(IMAGE),$(IMAGE):$(TRITON_RELEASE)-py3) python3,$(VENV))
# glibc gives large tensors back to the system after every step of training, only to ask for them
# anew. Kept, 2 cores trained on 247 instead of 188 pictures/s at 64 pixels, 96 instead of 85 at 112.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
RUN_OPTIONS = $(if $(LABELS),--labels "$(LABELS)") $(if $(OUT),--out "$(OUT)") \
    $(if $(DEVICE),--device $(DEVICE))
DEMO := build/demo
# TensorRT's Python bindings alone, 1 MB each: tests hold the builder against both majors.
BINDINGS := 10.16.1.11 11.4.0.106
# Nothing outside the checkout is written but pip's cache, and nothing is sent anywhere.
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/build/inductor
export ORT_DISABLE_TELEMETRY := 1

help: ## Show this help
	@awk -F ':.*## ' '/^[a-zA-Z_-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed .venv-server/.installed ## Create the two environments, from pinned packages

demo: setup $(DEMO)/sample.mp4 build/.exported ## Serve FAN here and name the emotion in a sample video
	@$(VENV) -m serving --platform cpu --free-ports -- \
	    clients/predict.py $(DEMO)/sample.mp4 --plot $(DEMO)/weights.png --annotate $(DEMO)/annotated.mp4
	@echo
	@echo "pictures: $(DEMO)/weights.png  $(DEMO)/annotated.mp4"

export: setup build/.exported ## Export MODEL=... from CHECKPOINT=... (LABELS= COLOR= VARIANT= where it does not say; PRIOR=) and fill model_repository/
	@$(VENV) -m export $(MODEL_OPTIONS)
	@touch build/.exported

engines: build/.exported ## Build TensorRT's plans on this GPU (IMAGE=nvcr.io/nvidia/tensorrt[:YY.MM-py3]: in a container)
	@[ -z "$(IMAGE)" ] || docker info > /dev/null 2>&1 || \
	    { echo "engines: IMAGE= builds in a container: no docker engine answers 'docker info' here" >&2; exit 1; }
	@$(BUILDER) -m export.to_plan

check-engines: setup build/.exported ## Compile every graph of the plans with TensorRT-RTX, without a GPU
	@$(VENV) -m export.check_engines

calibrate: .venv/.installed ## Measure the ranges for INT8 on DATA=... (faces, .npz or folder), of MODEL=... or CHECKPOINT=...
	@[ -n "$(DATA)" ] || { echo "calibrate: DATA= names aligned faces: an .npz or a folder of pictures" >&2; exit 1; }
	@$(VENV) -m export.calibrate "$(DATA)" $(MODEL_OPTIONS)

parity: setup build/.exported ## Compare every precision of MODEL=..., on DATA=... (faces; then in docs/, else in build/): precision[-model].md
	@$(VENV) -m export.parity $(if $(DATA),"$(DATA)") $(MODEL_OPTIONS) --output $(if $(DATA),docs,build)

train: .venv/.installed ## Train MODEL=... on DATA=... (INIT= VALIDATION= LABELS= OUT= DEVICE= OPTIONS=); goes on after a kill
	@[ -n "$(DATA)" ] || { echo "train: DATA= names labelled faces: README.md says in which forms" >&2; exit 1; }
	@$(KEEP_MEMORY) $(VENV) -m training "$(DATA)" $(if $(MODEL),--model $(MODEL)) $(RUN_OPTIONS) $(if $(INIT),--init "$(INIT)") \
	    $(if $(VALIDATION),--validation "$(VALIDATION)") $(OPTIONS)

evaluate: .venv/.installed ## Measure MODEL=... or CHECKPOINT=... on labelled faces, DATA=... (LABELS= COLOR= VARIANT= PRIOR= OUT= DEVICE= OPTIONS=)
	@[ -n "$(DATA)" ] || { echo "evaluate: DATA= names labelled faces: README.md says in which forms" >&2; exit 1; }
	@$(KEEP_MEMORY) $(VENV) -m training.evaluate "$(DATA)" $(MODEL_OPTIONS) $(if $(OUT),--out "$(OUT)") \
	    $(if $(DEVICE),--device $(DEVICE)) $(OPTIONS)

crossval: .venv/.installed ## Train and measure ten FANs on DATA=..., CK+ say, by subject (INIT= OUT= DEVICE= OPTIONS=)
	@[ -n "$(DATA)" ] || { echo "crossval: DATA= names labelled clips: README.md says in which forms" >&2; exit 1; }
	@$(KEEP_MEMORY) $(VENV) -m training.crossval "$(DATA)" $(RUN_OPTIONS) $(if $(INIT),--init "$(INIT)") $(OPTIONS)

bench: setup build/.exported build/perf_analyzer/.installed ## Load the embedded server, or the Triton at URL=host:8001, with perf_analyzer (OPTIONS=)
	@$(VENV) -m benchmarks.load $(if $(URL),--url "$(URL)") $(OPTIONS)

bench-quick: setup build/.exported ## Two minutes for a pull request: ratios now, and before (AGAINST=.../quick.json OPTIONS=)
	@$(VENV) -m benchmarks.quick $(if $(AGAINST),--against "$(AGAINST)") $(OPTIONS)

bench-pipeline: setup build/.exported $(DEMO)/sample.mp4 ## Measure predict.py's path on VIDEO=... stage by stage, and its memory (OPTIONS=)
	@$(VENV) -m benchmarks.pipeline "$(VIDEO)" $(OPTIONS)

bench-peers: setup build/.exported .venv-peers/.installed ## Compare PyTorch, ONNX Runtime, OpenVINO, FastAPI, LitServe and Triton here (OPTIONS=)
	@$(VENV) -m benchmarks.peers $(OPTIONS)

serve: setup build/.exported ## Serve PLATFORM=... on loopback (HTTP_PORT= GRPC_PORT= METRICS_PORT=) until Ctrl-C
	@$(VENV) -m serving --platform "$(PLATFORM)" --release "$(TRITON_RELEASE)" \
	    --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)

test: setup build/.exported build/perf_analyzer/.installed $(BINDINGS:%=build/bindings/%/.installed) ## Run every test, a real Triton included
	$(VENV) -m pytest

lint: .venv/.installed ## Check format, style and types
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy clients export serving training benchmarks

lock: ## Resolve pyproject.toml and requirements/*.in into pinned packages
	rm -rf build/lock
	$(PYTHON) -m venv build/lock/project
	build/lock/project/bin/pip install -q "setuptools>=77" ".[pictures,export,test]"
	build/lock/project/bin/pip freeze --all --exclude pip --exclude video-fer-triton \
	    | sed 's/+cpu$$//' > requirements/project.txt
	$(PYTHON) -m venv build/lock/server
	build/lock/server/bin/pip install -q -r requirements/server.in
	build/lock/server/bin/pip freeze --exclude openvino-telemetry > requirements/server.txt
	$(PYTHON) -m venv build/lock/peers
	build/lock/peers/bin/pip install -q -r requirements/peers.in
	build/lock/peers/bin/pip freeze --exclude openvino-telemetry > requirements/peers.txt

clean: ## Remove what was built: environments, models, demo
	rm -rf .venv .venv-server .venv-peers build model_repository/*/labels.txt
	find model_repository -path '*/1/*' -type f ! -name .gitkeep -delete

# What `make export` was last told, or the shipped weights, whenever the code or they change.
build/.exported: $(wildcard weights/*.safetensors weights/*.ranges.json export/*.py) | .venv/.installed
	@$(VENV) -m export --again
	@touch $@

$(DEMO)/sample.mp4: clients/sample.py | .venv/.installed
	$(VENV) -m clients.sample $@

.venv/.installed: requirements/project.txt requirements/detector.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); expected Python 3.11 to 3.13" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q --disable-pip-version-check -r requirements/project.txt
	.venv/bin/pip install -q --disable-pip-version-check --no-deps -r requirements/detector.txt
	.venv/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# perf_analyzer: of the last release that runs on glibc 2.34, and the two libraries it misses there.
build/perf_analyzer/.installed: .venv-server/.installed | .venv/.installed
	.venv/bin/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(@D) tritonclient==2.51.0
	mkdir -p $(@D)/lib
	cp .venv-server/lib/python3.*/site-packages/nvidia_pytriton.libs/libb64-*.so.0d $(@D)/lib/libb64.so.0d
	cp .venv-server/lib/python3.*/site-packages/nvidia_pytriton.libs/libcudart-*.so.12* $(@D)/lib/libcudart.so.12
	@touch $@

build/bindings/%/.installed: | .venv/.installed
	.venv/bin/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(@D) tensorrt-cu13-bindings==$*
	@touch $@

# No dependencies beside the pinned: OpenVINO's would send events away, and is not needed.
.venv-server/.installed: requirements/server.txt
	$(PYTHON) -m venv --clear .venv-server
	.venv-server/bin/pip install -q --disable-pip-version-check --no-deps -r requirements/server.txt
	@touch $@

.venv-peers/.installed: requirements/peers.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/pip install -q --disable-pip-version-check --no-deps -r requirements/peers.txt
	@touch $@
