"""promptadapt: a plain prompt in, the prompt that an image model wants out.

The core knows no host. Importing it imports nothing else.
"""

__version__ = "0.1.0"
