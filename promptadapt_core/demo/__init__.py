"""The demo: what adapting does to pictures, seen in the lab within half a minute.

    python -m promptadapt_core demo "a red cat by the sea"
    python -m promptadapt_core demo --train

The first adapts texts by the lab's policy, renders them before and after with the same seeds, has
them scored and judged, and writes one page and one picture. The second trains that policy for some
minutes from the one that only imitates writers, and shows how the reward rises and what changed.

Read in this order: settings.py, outputs.py, comparing.py with seeing.py, parts.py, sheets.py,
showing.py; then learning.py, curves.py and lessons.py, which are of --train.
"""
