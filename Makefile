# What there is to do, each on a fresh machine with Python 3.11 or newer, g++ and make. `make` alone lists it.
#
#   RECIPE=file.yaml    what to run (default: the sentiment sweep)
#   RECIPES='a.yaml b'  of chain (default: sentiment of movies, then products, then tweets)
#   WORKERS=4 GPUS=1    ranks of each trial, and GPUs of each rank
#   STORAGE=s3://b/p    where runs are kept, instead of the recipe's own (or a directory)
#   NODES=2             of cluster-up
#   LAUNCHER=torchrun   train without Ray
#   BENCH=checkpoint    which one: step turnaround checkpoint network kill recovery sweep search select (default: the first two)
#   ARGS='...'          handed on to the command, e.g. ARGS='--set train.epochs=2 --name lr-again'

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: setup sweep train chain test test-long check bench cluster-up cluster-down submit clean help

DEMO := jobs/recipes/sentiment_minilm.yaml
RECIPE ?= $(DEMO)
DOMAINS := movie product tweet
CHAIN := $(DOMAINS:%=jobs/recipes/domain_%.yaml)
RECIPES ?= $(CHAIN)
WORKERS ?=
GPUS ?=
STORAGE ?=
NODES ?= 2
LAUNCHER ?= ray
BENCH ?= step turnaround
ARGS ?=

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# What the variables above mean as words of the command.
words := $(if $(WORKERS),--set resources.workers=$(WORKERS)) $(if $(GPUS),--set resources.gpus_per_worker=$(GPUS)) \
	$(if $(STORAGE),--storage $(STORAGE))
# The demo's data goes where its runs go.
demo_data := $(if $(STORAGE),$(STORAGE:/=)/data/sentiment,s3://tlcore/data/sentiment)
demo := $(filter $(DEMO),$(RECIPE))
demo_words := $(if $(and $(demo),$(STORAGE)),--set data.train=$(demo_data)/movie/train.parquet --set data.test=$(demo_data)/movie/test.parquet)
# The bucket tlcore is the embedded store's, unless another endpoint is named.
own_store := $(if $(AWS_ENDPOINT_URL),,$(if $(STORAGE),$(filter s3://tlcore s3://tlcore/%,$(STORAGE)),yes))

define prepare
@$(if $(own_store),tlcore store up)
@$(if $(demo),python -m jobs.prepare_sentiment --destination $(demo_data))
endef

setup: ## make or update .venv (seconds when nothing changed)
	@.ci/setup

sweep: setup ## a hyperparameter sweep, here or on RAY_ADDRESS
	$(prepare)
	@tlcore sweep $(RECIPE) $(words) $(demo_words) $(ARGS)

train: setup ## one trial: make train WORKERS=4 GPUS=1
	$(prepare)
# The bare -- keeps torchrun from taking --local for one of its own --local-... options.
ifeq ($(LAUNCHER),torchrun)
	@torchrun --standalone --nproc_per_node $(or $(WORKERS),1) -m -- tlcore train --local $(RECIPE) $(words) $(demo_words) $(ARGS)
else
	@tlcore train $(RECIPE) $(words) $(demo_words) $(ARGS)
endif

chain: setup ## recipes in order, each from the checkpoint of the one before: make chain STORAGE=...
	@$(if $(own_store),tlcore store up)
	@$(if $(filter $(CHAIN),$(RECIPES)),python -m jobs.prepare_sentiment --destination $(demo_data) --domain $(DOMAINS))
	@python -m jobs.chain $(RECIPES) $(words) $(if $(STORAGE),--data $(STORAGE:/=)/data) $(ARGS)

# Two processes, each with whole files: a test with a cluster leaves half of two cores idle, and shares Ray, store and ranks with its file.
test: setup ## every test but the long ones
	@python -m pytest -n 2 --dist loadfile -m "not long" $(ARGS)

test-long: setup ## the long tests
	@python -m pytest -n 2 --dist loadfile -m long $(ARGS)

check: setup ## lint, format, types
	@ruff check .
	@ruff format --check .
	@mypy

bench: setup ## measure against peers and limits: make bench BENCH=checkpoint ARGS=--quick
	@for bench in $(BENCH); do python -m jobs.bench.$$bench $(ARGS); done

cluster-up: setup ## several real Ray nodes on this machine: make cluster-up NODES=2
	@python -m cluster.local up --nodes $(NODES) $(ARGS)

cluster-down: ## stop what cluster-up started, leave nothing behind
	@if [[ -x $(BIN)/python ]]; then python -m cluster.local down; else echo "no local cluster is up"; fi

submit: setup ## a sweep through the cluster's job server: make submit RECIPE=...
	$(prepare)
	@tlcore submit $(RECIPE) $(words) $(demo_words) $(ARGS)

clean: ## remove caches and build output of this checkout; .venv, runs and the store stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo "removed caches and build output of this checkout; .venv, runs and the store stay"

help: ## this list
	@echo "make TARGET [RECIPE=...] [RECIPES=...] [WORKERS=...] [GPUS=...] [STORAGE=...] [NODES=...] [LAUNCHER=torchrun] [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
