# The front door. `make` lists what there is. Needs make (3.81 or newer) and Python 3.11 or newer,
# nothing else; takes uv where uv is installed. To choose a Python: make test PYTHON=python3.12

SHELL = /bin/sh
.DEFAULT_GOAL = help
.PHONY: help demo dev test check interop k8s installs worker caller api redis bench fmt lock rename new-task clean

VENV = .venv
# Stamps of what is in it: what runs, then what tests it, then what checks the manifests.
READY = $(VENV)/.ready
DEV = $(VENV)/.dev
K8S = $(VENV)/.k8s
RUN = $(VENV)/bin/python
PYTHON ?=
PYTHONS = python3.14 python3.13 python3.12 python3.11 python3 python
UV ?= $(shell command -v uv 2>/dev/null)
# More arguments for the command behind a target: make test ARGS="-k wire"
ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the whole thing once: server, two workers, callers, then stop
	$(RUN) examples/demo.py $(ARGS)

dev: $(READY) ## while you write: server, worker and HTTP caller, restarted by each change
	@$(RUN) tools/dev.py $(ARGS)

test: check ## check, then the tests, on each server that is installed
ifeq ($(strip $(ARGS)),)
	$(PYTEST) -m "not alone" $(AT_ONCE)
	$(PYTEST) -m alone
	@if $(TWO_SERVERS); then echo "-- once more on redis-server: the tests that can tell it from Valkey"; \
	  export WERK_TEST_SERVER=redis; $(PYTEST) -m "server and not alone" $(AT_ONCE) $(ON_BOTH) && \
	  $(PYTEST) -m "server and alone" $(ON_BOTH); fi
else
	$(RUN) -m pytest $(ARGS)
	@if $(TWO_SERVERS); then echo "-- once more on redis-server"; \
	  WERK_TEST_SERVER=redis $(RUN) -m pytest -m server $(ARGS) || [ $$? = 5 ]; fi
endif

PYTEST = $(RUN) -m pytest --durations=10
# Tests mostly wait, so more of them run at once than there are processors; those marked `alone` do not.
JOBS ?= 4
AT_ONCE = -n $(JOBS) --dist worksteal
# Valkey and redis-server are installed, and nobody has chosen one of them.
TWO_SERVERS = [ -z "$${WERK_TEST_SERVER:-}" ] && \
  [ "$$($(RUN) -c 'from machine.embedded import available_servers as a; print(*a())')" = "valkey redis" ]

# What can tell one kind of server from the other: scripts, connections, waiting, files. All else
# reaches the server through the ports, and tests/contract runs on both kinds of server by itself.
ON_BOTH = tests/acceptance/test_wire_on_redis.py tests/integration/test_backends.py \
  tests/integration/test_connection_*.py tests/integration/test_restarts.py tests/integration/test_waiting.py

check: $(DEV) ## lint, format, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --strict machine worker caller tools

interop: $(DEV) ## tests against real Go Machinery (needs the Go toolchain; minutes)
	$(RUN) -m pytest tests/interop $(ARGS)

k8s: $(K8S) ## check the Kubernetes manifests (needs kustomize, or Go to build it)
	$(RUN) -m pytest tests/k8s $(ARGS)

installs: $(DEV) ## install each lock with an old pip, the newest and uv (downloads 90 MB)
	$(RUN) -m pytest tests/installs $(ARGS)

worker: $(READY) ## run a worker here (BROKER says where Redis is)
	$(RUN) worker/worker.py $(ARGS)

caller: $(READY) ## run the caller here
	$(RUN) caller/caller.py $(ARGS)

api: $(READY) ## run the HTTP caller here, on port 8000
	$(RUN) caller/api.py $(ARGS)

redis: $(READY) ## run a server here, on port 6379, until Ctrl-C
	$(RUN) -m machine.embedded $(ARGS)

bench: $(READY) ## run the benchmarks
	$(RUN) benchmarks/run.py $(ARGS)

fmt: $(DEV) ## format the code and fix what can be fixed
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

lock: ## pin the dependencies anew (needs uv)
	@[ -n "$(UV)" ] || { echo "error: uv is needed for this: pip install uv" >&2; exit 1; }
	$(COMPILE) $(BOTH) pyproject.toml -o requirements.lock
	$(COMPILE) -c requirements.lock $(BOTH) --extra api pyproject.toml -o requirements-api.lock
	$(COMPILE) -c requirements-api.lock $(BOTH) --extra api --extra demo pyproject.toml -o requirements-demo.lock
	$(COMPILE) -c requirements-demo.lock $(BOTH) --extra api --extra demo --extra dev pyproject.toml -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock --extra k8s pyproject.toml -o requirements-k8s.lock
	printf 'pip\nuv\n' | $(COMPILE) - -o tests/installs/newest.lock

# What worker and caller have in common; the HTTP caller, the demo and development add to it.
BOTH = --extra cron --extra metrics --extra otel

# Every platform's hashes, and no index's address: the lock works behind any mirror.
COMPILE = $(UV) pip compile --upgrade --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate

# The command line only: some systems have a variable NAME, the host's.
rename: $(READY) ## give this copy a name of its own: NAME=..., also its queue: QUEUE=...
	@[ "$(origin NAME)" = "command line" ] || { echo "error: which name? make rename NAME=..." >&2; exit 2; }
	@$(RUN) tools/rename.py $(if $(filter command%,$(origin QUEUE)),--queue="$(QUEUE)") -- "$(NAME)"

new-task: $(READY) ## start a task and its test: NAME=send_mail
	@[ "$(origin NAME)" = "command line" ] || { echo "error: which name? make new-task NAME=send_mail" >&2; exit 2; }
	@$(RUN) tools/new_task.py -- "$(NAME)"

clean: ## remove the environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov build dist *.egg-info
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the lock names and nothing else. Nothing is resolved, so a version published tomorrow cannot
# be in the way; and no wheel is built, which would fetch its tools, which no lock names.
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(RUN),$(RUN) -m pip install --quiet --disable-pip-version-check) \
  --no-deps --only-binary :all: --require-hashes -r

# A changed lock builds all of it again, so that nothing stays that no lock names.
LOCKS = requirements-demo.lock requirements-dev.lock requirements-k8s.lock

# The stamp is made last, so an environment that broke half way is built again.
# The project itself is a line in a .pth file: no wheel of it to build.
$(READY): $(LOCKS)
	@set -e; \
	if [ -n "$(UV)" ]; then \
	  echo "-- $(VENV), with uv"; \
	  $(UV) venv --quiet --clear --python "$(if $(PYTHON),$(PYTHON),>=3.11)" $(VENV); \
	else \
	  python=; found=; \
	  for name in $(if $(PYTHON),$(PYTHON),$(PYTHONS)); do \
	    version=$$($$name -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
	    found=$${found:-Python $$version}; \
	    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$$name; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: Python 3.11 or newer is needed (found: $${found:-none}). Install it, or install uv and run make again." >&2; \
	    exit 1; \
	  fi; \
	  echo "-- $(VENV), with Python $$version"; \
	  $$python -m venv --clear $(VENV) || { \
	    echo "error: $$python cannot make a virtual environment. On Debian or Ubuntu: sudo apt install python3-venv" >&2; \
	    exit 1; \
	  }; \
	fi
	@$(INSTALL) requirements-demo.lock
	@$(RUN) -c 'import os, sysconfig; open(sysconfig.get_path("purelib") + "/project.pth", "w").write(os.getcwd() + "\n")'
	@touch $(READY)

# While more is installed, the first stamp is away: should this break half way, all is built again.
# It comes back with its old time, which says that it is older than what was built on it.
$(DEV): $(READY)
	@echo "-- $(VENV), and what tests and lints it"
	@mv $(READY) $(VENV)/.installing
	@$(INSTALL) requirements-dev.lock
	@mv $(VENV)/.installing $(READY)
	@touch $@

$(K8S): $(DEV)
	@mv $(READY) $(VENV)/.installing
	@$(INSTALL) requirements-k8s.lock
	@mv $(VENV)/.installing $(READY)
	@touch $@
