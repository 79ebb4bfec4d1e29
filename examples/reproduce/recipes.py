"""
The trained merges that are compared: by name, what each is trained on, and how
===============================================================================
"""

from dataclasses import replace

from multi_head import OWN_ONLY, Recipe

N_TEXTS = 50  # unlabelled training texts of each task
FREE = Recipe("multi-head, generic and pseudo-texts", generic=700, pseudo=60)
OWN = Recipe("own head only, task texts", own=N_TEXTS, own_weight=OWN_ONLY)
TASKS = Recipe("multi-head, task texts", own=N_TEXTS, own_weight=4.0)
ALL = Recipe("multi-head, all three", generic=700, pseudo=60, own=N_TEXTS)

MORE = replace(FREE, pseudo=180)  # as many as pseudo_inputs makes by default
MORE_ALL = Recipe(
    "multi-head, all three and fragments of task texts",
    generic=350,
    pseudo=120,
    own=N_TEXTS,
    fragments=60,
    learning_rate=2e-3,
)
DEFAULT = replace(  # the texts that lorakit makes by default, since record 43, and its start
    MORE, generic=1400, kinds="all", start="tsv 1.4", name="multi-head, five kinds of generic texts and pseudo-texts"
)
DEFAULT_OWN = replace(DEFAULT, own=N_TEXTS, name="multi-head, five kinds and texts of tasks")
BEST = replace(MORE, owned=True, own_weight=4.0, epochs=12, learning_rate=2e-3)
LONGER = {
    "usual-free": FREE,
    "usual-all": ALL,
    "free": replace(FREE, epochs=16, learning_rate=2e-3),
    "all": replace(MORE_ALL, pseudo=30, epochs=12),
    "more-free": MORE,
    "best-free": replace(BEST, name="multi-head, own heads of pseudo-texts 4 times"),
    "more-1.4": replace(MORE, start="tsv 1.4", name="multi-head, generic and pseudo-texts, tsv at 1.4"),
    "more-all": MORE_ALL,
    "more-all-1.4": replace(MORE_ALL, start="tsv 1.4", name="multi-head, all three and fragments, tsv at 1.4"),
    "default": DEFAULT,
    "default-x2": replace(DEFAULT, generic=2800, name="multi-head, twice as many of five kinds, and pseudo-texts"),
    "default-own": DEFAULT_OWN,
    "sentences-x2": replace(
        MORE, generic=1400, start="tsv 1.4", name="multi-head, 1400 generic texts, pseudo-texts, tsv at 1.4"
    ),
    "sentences-x4": replace(
        MORE, generic=2800, start="tsv 1.4", name="multi-head, 2800 generic texts, pseudo-texts, tsv at 1.4"
    ),
    # what ten minutes of one core allow
    "most-free": replace(
        MORE,
        pseudo=360,
        epochs=12,
        learning_rate=2e-3,
        start="tsv 1.4",
        name="multi-head, twice as many, tsv at 1.4",
    ),
    "most-all": replace(
        MORE_ALL,
        pseudo=240,
        fragments=120,
        epochs=10,
        start="tsv 1.4",
        name="multi-head, all three and fragments, twice as many, tsv at 1.4",
    ),
}

RECIPES = {  # beside the methods of weights alone
    "free": DEFAULT,
    "free-x2": LONGER["default-x2"],
    "all": DEFAULT_OWN,
    "own": replace(OWN, start="tsv 1.4"),
    "tasks": replace(TASKS, start="tsv 1.4"),
}

LIMITS = {  # ranks, and pools of adapters
    "k-8": replace(DEFAULT, k=8),
    "k-32": replace(DEFAULT, k=32),
    "two": DEFAULT,
    "four": DEFAULT,
    "alike": DEFAULT,
    "sixteen": DEFAULT,
    "mixed": DEFAULT,
}
STARTS = dict.fromkeys(("two", "four", "alike"), (MORE, LONGER["more-1.4"]))

_FRAGMENTS = replace(ALL, fragments=60, name="all three, and fragments of the task texts")

WITHOUT = {  # without a text of any task: what one change does to FREE
    "free": replace(FREE, name="generic texts, and 60 pseudo-texts an adapter"),
    "pseudo": replace(FREE, generic=0, name="pseudo-texts only"),
    "generic": replace(FREE, pseudo=0, name="generic texts only"),
    "pseudo-x3": replace(MORE, name="180 pseudo-texts an adapter"),
    "pseudo-x6": replace(FREE, pseudo=360, epochs=4, name="360 pseudo-texts an adapter, 4 epochs"),
    "owned": replace(FREE, owned=True, own_weight=4.0, name="a pseudo-text's own head weighs 4 times"),
    "changes": replace(FREE, match="changes", name="changes of embeddings, no heads"),
    "changes-owned": replace(
        FREE,
        generic=0,
        owned=True,
        own_weight=OWN_ONLY,
        match="changes",
        name="changes of embeddings, each pseudo-text for its own adapter alone",
    ),
    "tsv-1.4": replace(FREE, start="tsv 1.4", name="start: tsv at 1.4"),
    "pseudo-x3-1.4": replace(LONGER["more-1.4"], name="180 pseudo-texts an adapter, start: tsv at 1.4"),
    "sentences-x2-1.4": replace(LONGER["sentences-x2"], name="1400 generic texts, 180 pseudo-texts, start: tsv at 1.4"),
    "kinds-1.4": replace(DEFAULT, generic=700, name="five kinds of generic texts, 180 pseudo-texts, start: tsv at 1.4"),
    "default": replace(DEFAULT, name="1400 of five kinds, 180 pseudo-texts, start: tsv at 1.4: the default"),
    "default-x2": replace(LONGER["default-x2"], name="2800 of five kinds, 180 pseudo-texts, start: tsv at 1.4"),
    "regmean++": replace(FREE, start="regmean++", name="start: regmean++ on the pseudo-texts"),
    "whole": replace(FREE, start="whole", name="start: 4 epochs whole, then cut"),
    "faster": replace(FREE, learning_rate=2e-3, name="twice the learning rate"),
    "longer": replace(LONGER["free"], name="twice the rate, twice the epochs"),
    "best": replace(BEST, name="180, own heads 4 times, twice the rate, 12 epochs"),
}
WITH = {  # with texts of the tasks: what one change does to ALL
    "all": replace(ALL, name="all three, 50 texts a task"),
    **{f"own-{n}": replace(ALL, own=n, name=f"all three, {n} texts a task") for n in (8, 16, 25, 100)},
    "changes-own": Recipe(
        "changes of embeddings, each of 50 texts a task for its own adapter alone",
        own=N_TEXTS,
        own_weight=OWN_ONLY,
        match="changes",
    ),
    "fragments": _FRAGMENTS,
    "spliced": replace(ALL, spliced=60, name="all three, and splices of the task texts"),
    "all-x3": replace(MORE_ALL, name="120 pseudo-texts an adapter, 350 generic, fragments, twice the rate"),
    "all-x3-1.4": replace(
        MORE_ALL,
        start="tsv 1.4",
        name="120 pseudo-texts an adapter, 350 generic, fragments, twice the rate, start: tsv at 1.4",
    ),
    "default-own": replace(DEFAULT_OWN, name="the defaults: 1400 of five kinds, 180 pseudo-texts, start: tsv at 1.4"),
    "all-longer": replace(
        LONGER["all"], name="30 pseudo-texts an adapter, 350 generic, fragments, twice the rate, 12 epochs"
    ),
}
GROUPS = {"without": (WITHOUT, "free"), "with": (WITH, "all")}  # what is changed, and what it is compared with
