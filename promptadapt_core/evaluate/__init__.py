"""Measures prompt adaptation: rows of adapted prompts for the same user inputs, the same pictures'
seeds for all, every difference with its interval.

    python -m promptadapt_core.evaluate --rows user_input,suffix,best_of_n,oracle,sft=F,rl=G \\
        --out REPORT
"""
