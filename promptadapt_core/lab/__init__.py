"""The lab: a complete small text-to-image world, trained from scratch by this package alone.

Pictures with captions, a taste, simulated prompt writers, a renderer, a scorer, a judge and an
oracle: prompt adaptation on a laptop CPU, with nothing downloaded, through the classes that run
Stable Diffusion. Outside, it is the short name "lab" of a renderer, scorer, judge or policy; only
the demo and the evaluation's oracle and suffix know the lab's words.
"""
