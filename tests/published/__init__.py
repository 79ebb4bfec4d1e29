"""The published formulas, written once more in plain dense float64.

They share no code with lorakit: the tests of the mergers and the page on agreement (``tests/agreement.py``)
compare with them. Each function takes dense updates, or pairs of factors, and returns a dense update. ``cases`` says
which merger follows which formula.
"""
