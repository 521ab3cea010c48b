PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := -c constraints.txt

.PHONY: demo demo-animate demo-animate2 demo-anywhere test tests tests-newest test-comfyui comfyui-pictures \
	lint clean

demo: $(VENV)/installed
	$(BIN)/anycharv demo --out out/demo

demo-animate: $(VENV)/installed
	$(BIN)/anycharv demo-animate --out out/demo-animate

demo-animate2: $(VENV)/installed
	$(BIN)/anycharv demo-animate2 --out out/demo-animate2

demo-anywhere: $(VENV)/installed
	$(BIN)/anycharv demo-anywhere --out out/demo-anywhere

test: lint tests

tests: $(VENV)/installed
	$(BIN)/python -m pytest -m "not comfyui"

# With the newest release of every package, looked for at each run, in an environment beside the pinned one.
tests-newest:
	$(MAKE) --always-make tests VENV=.venv/newest PINS='--upgrade --upgrade-strategy eager'

# Against the ComfyUI at COMFYUI_PATH, or else ~/comfy/ComfyUI, with the Python COMFYUI_PYTHON. Some tests run in
# that Python, which this leaves as it is: it gets pytest from a folder of its own.
test-comfyui: $(VENV)/pytest-for-comfyui
	$(BIN)/python -m pytest -m comfyui

# The pictures of ComfyUI in README.md and in the help pages, whose results the embedded models make.
comfyui-pictures: $(VENV)/installed
	$(BIN)/python tests/help_pictures.py

$(VENV)/pytest-for-comfyui: $(VENV)/installed
	$(BIN)/python -m pip install -q --upgrade --target $@ $(PINS) pytest
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The same packages as requirements.txt, in the flavours that need neither a screen (libGL) nor a GPU.
$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -e 's/^opencv-python$$/opencv-python-headless/' -e 's/^onnxruntime-gpu.*/onnxruntime/' \
		requirements.txt > $(VENV)/requirements.txt
	$(BIN)/python -m pip install -q $(PINS) -r $(VENV)/requirements.txt -r requirements-dev.txt -e '.[train,eval]'
	mkdir -p .venv/typed && ln -sfn ../.. .venv/typed/pack
	touch $@

clean:
	rm -rf .venv out
