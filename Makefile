# Everything a fresh clone needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP_FLAGS := -q --disable-pip-version-check -c constraints.txt

.PHONY: install demo test test-fast check scanpy rivals clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install $(PIP_FLAGS) $(PIP_MORE) -e '.[bench,tune]' --group test --group check
	touch $@

demo: install
	$(BIN)/chreode demo

# workers share the cores: libraries of each are not to fight for them
test test-fast: export OMP_NUM_THREADS = 1

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# scanpy and what runs notebooks, for the pages and examples that use them; it sees all that .venv has
scanpy: .venv-scanpy/.installed

.venv-scanpy/.installed: tests/scanpy.txt constraints.txt $(INSTALLED)
	$(PYTHON) -m venv --without-pip .venv-scanpy
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > .venv-scanpy/venv.pth
	mv .venv-scanpy/venv.pth .venv-scanpy/lib/python*/site-packages
	$(BIN)/python -m pip --python .venv-scanpy install $(PIP_FLAGS) $(PIP_MORE) -r tests/scanpy.txt
	touch $@

# scvi-tools, scib-metrics and scanpy, for benchmarks and oracle values only
rivals: .venv-rivals/.installed

.venv-rivals/.installed: benchmarks/rivals.txt constraints.txt
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install $(PIP_FLAGS) -r benchmarks/rivals.txt
	touch $@

clean:
	rm -rf .venv .venv-scanpy .venv-rivals chreode-demo
