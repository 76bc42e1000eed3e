"""The ComfyUI entry: it re-exports the nodes. Nothing here runs for any other host."""

if __package__:  # pytest imports this file by itself, in a folder that need not be a package
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
