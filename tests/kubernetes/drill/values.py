"""What the drill installs, as Helm values: the defaults, and on top of them what a step needs."""

import copy

# The image that `tests/kubernetes/run` packs, and the same program under a second tag.
FIRST, SECOND = "drill", "drill-again"

# A pair without weights, whose streams last; another seed is another version of the model.
PACE = "acceptance=0.8,length=none,drafter.step=2ms,expert.step=40ms"


def merged(base, more):
    """Maps with the last word for `more`, as Helm merges values."""
    result = copy.deepcopy(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def image(tag=FIRST):
    return {"image": {"tag": tag}}


def pool(name, synthetic, served):
    return {"name": name, "synthetic": synthetic, "served": [served]}


def pools(*versions):
    """The shipped pair, and a paced pair for each version: (pool's name, seed)."""
    paced = [pool(name, f"{PACE},seed={seed}", "pace") for name, seed in versions]
    return {"drafters": [{"name": "main"}, *paced], "experts": [{"name": "main"}, *paced]}


# What the streams of the load need beside the defaults.
LOADED = merged(image(), pools(("pace", 1)))

# And after the upgrade: another tag of the same program, a start-up setting, and one that running nodes take up.
UPGRADED = merged(merged(LOADED, image(SECOND)), {
    "nodeDefaults": {"settings": {"lease_ttl": 10}}, "reload": {"router": {"max_sessions": 2000}},
})
