"""The lab: a complete small text-to-image world, trained from scratch by this package alone.

Pictures with captions, a taste, simulated prompt writers, a renderer, a scorer, a judge and an
oracle: prompt adaptation on a laptop CPU, with nothing downloaded, through the classes that run
Stable Diffusion. Nothing outside this package knows that the lab exists.
"""
