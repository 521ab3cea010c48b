PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-animate demo-animate2 demo-anywhere test tests test-comfyui comfyui-pictures lint clean

demo: .venv/installed
	$(BIN)/anycharv demo --out out/demo

demo-animate: .venv/installed
	$(BIN)/anycharv demo-animate --out out/demo-animate

demo-animate2: .venv/installed
	$(BIN)/anycharv demo-animate2 --out out/demo-animate2

demo-anywhere: .venv/installed
	$(BIN)/anycharv demo-anywhere --out out/demo-anywhere

test: lint tests

tests: .venv/installed
	$(BIN)/python -m pytest -m "not comfyui"

# Against the ComfyUI at COMFYUI_PATH, or else ~/comfy/ComfyUI, with the Python COMFYUI_PYTHON. Some tests run in
# that Python, which this leaves as it is: it gets pytest from a folder of its own.
test-comfyui: .venv/pytest-for-comfyui
	$(BIN)/python -m pytest -m comfyui

# The pictures of ComfyUI in README.md and in the help pages, whose results the embedded models make.
comfyui-pictures: .venv/installed
	$(BIN)/python tests/help_pictures.py

.venv/pytest-for-comfyui: .venv/installed
	$(BIN)/python -m pip install -q --upgrade --target $@ -c constraints.txt pytest
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The same packages as requirements.txt, in the flavours that need neither a screen (libGL) nor a GPU.
.venv/installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	sed -e 's/^opencv-python$$/opencv-python-headless/' -e 's/^onnxruntime-gpu.*/onnxruntime/' \
		requirements.txt > .venv/requirements.txt
	$(BIN)/python -m pip install -q -c constraints.txt -r .venv/requirements.txt -r requirements-dev.txt -e '.[train,eval]'
	mkdir -p .venv/typed && ln -sfn ../.. .venv/typed/pack
	touch $@

clean:
	rm -rf .venv out
