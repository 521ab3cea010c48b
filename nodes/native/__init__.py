"""The networks inside ComfyUI: models, samplers and conversions behind the nodes."""
