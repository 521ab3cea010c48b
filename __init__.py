"""ComfyUI-AnyCharV: puts any character, given as one picture, into any video."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI when it loads the pack; nothing here needs ComfyUI before that."""
    from .nodes import AnyCharVExtension

    return AnyCharVExtension()
