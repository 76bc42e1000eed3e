"""Data construction: real engineered prompts become training pairs. Text only.

    python -m promptadapt_core.data build --prompts prompts.jsonl.gz --out pairs.jsonl
    python -m promptadapt_core.data lexicon --prompts prompts.jsonl.gz --out lexicon.json.gz

`build` reads rows with a field `prompt` (and, where they have them, id, source, flags, split and
cluster) and writes rows of

    user_input   what a person may type
    target       "main content, modifier, modifier": what the policy answers
    main         the main content of that answer
    kind         main, subset, rephrased or steps (pairs.py)
    split        train, valid or test
    id, cluster  the engineered prompt that it was made from, and its cluster of near copies

and beside them OUT.report.json: how many rows were read, left out and why, sources, lengths, the
most common modifiers, examples. The same input and settings give the same bytes, and the random
choices of a row do not depend on the other rows or their order. What they do decide: near copies
are dropped, modifiers that few people use are taken out where there are prompts enough to tell
(vocabulary.py), and stock phrases are thinned out where --stock-limit is given.

Departures from the paper (Hao et al., arXiv 2212.09611): the fourth kind, the whole prompt
rephrased by a language model, is replaced by steps from coarse to fine; the rephrasings of main
content are made by rules, and by a local instruction model when --rephraser names its folder;
names of artists are taken out of the targets unless --artists is given.

Read in this order: reading.py, targets.py, vocabulary.py, stock.py, pairs.py, rephrase.py,
instruction.py, duplicates.py, build.py, report.py; lexicon.py stands apart.
"""
