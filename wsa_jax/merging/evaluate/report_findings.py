"""What the numbers of a merge report say, in words: why a merge fails, and what to try."""

from collections.abc import Sequence

from wsa_jax.types import Json

# Rules of thumb; the numbers stand beside the words.
_NONE = 1e-3  # nats: a barrier that is none
_APART = 0.1  # nats: scopes that differ
_COLLAPSED = 0.8  # of the models' own deviations
_DEAD = 0.1  # of a group's units
_UNLIKE = 0.5  # CKA of models that compute other features


def findings_of(layers: list[Json], groups: list[Json], barriers: list[Json]) -> list[str]:
    """Sentences, most important first; barriers begin with the one without an align."""
    plain, best = barriers[0], min(barriers, key=lambda row: row["barrier"])
    said = [*_of_barriers(barriers, plain, best), *_of_the_odd_one(best)]
    if plain["low"] > _NONE:
        said += _of_spread(groups, best["align"])
    return [*said, *_of_scopes(layers), *_of_dead_units(groups), *_of_features(groups)]


def _of_barriers(barriers: list[Json], plain: Json, best: Json) -> list[str]:
    word = "barrier" if len(plain["pairs"]) == 1 else "greatest barrier"
    if plain["low"] <= _NONE:
        return [f"no barrier to be told from 0 ({plain['barrier']:.3f}): average as they are"]
    if best is not plain and best["high"] < plain["low"]:
        left = best["low"] > _NONE
        rest = "; learned coefficients (NP Merge) may lower what is left" if left else ""
        return [
            f'units do not correspond: "{best["align"]}" lowers the {word} from '
            f"{plain['barrier']:.3f} to {best['barrier']:.3f}; align first{rest}"
        ]
    if len(barriers) == 1:
        return [f"the {word} is {plain['barrier']:.3f}: ask for aligns, which may lower it"]
    return [
        f"aligning does not help for certain ({plain['barrier']:.3f} before, "
        f"{best['barrier']:.3f} at best): learn coefficients (NP Merge), or fine-tune the merge"
    ]


def _of_the_odd_one(best: Json) -> list[str]:
    """The one of three or more models whose barriers are all above all others'."""
    pairs = best["pairs"]
    numbers = sorted({number for pair in pairs for number in pair["models"]})
    for odd in numbers if len(numbers) > 2 else ():
        its = [pair for pair in pairs if odd in pair["models"]]
        others = [pair for pair in pairs if odd not in pair["models"]]
        above = min(pair["low"] for pair in its) > max(pair["high"] for pair in others)
        if above and min(pair["low"] for pair in its) > _NONE:
            low, high = (f(pair["barrier"] for pair in its) for f in (min, max))
            most = max(pair["barrier"] for pair in others)
            return [
                f"model {odd} is the odd one out: barriers to it are {low:.3f} to {high:.3f}, and "
                f"at most {most:.3f} among the others; merge those without it"
            ]
    return []


def _of_spread(groups: list[Json], align: str) -> list[str]:
    """Units of an average vary less than its models', which a repair undoes."""
    shares = {row["group"]: row["spread"][align] for row in groups}
    least = min(shares, key=lambda name: shares[name], default=None)
    if least is None or not shares[least] < _COLLAPSED:
        return []
    how = "" if align == "none" else f' after "{align}"'
    return [
        f"units of {least} vary {shares[least]:.0%} as much in the average{how} as in the models: "
        "repair it (repair_forward, or reset_batch_norm where there is BatchNorm)"
    ]


def _of_scopes(layers: list[Json]) -> list[str]:
    worst = max(layers, key=lambda row: row["divergence"])
    if not worst["divergence"] > _APART:
        return []
    whose = ""
    if len(own := worst["divergences"]) > 2:
        whose = f", model {own.index(max(own)) + 1}'s most"
    return [
        f"scopes differ most in {worst['layer']} ({worst['divergence']:.2g} nats{whose}): rescale "
        "the models, or train them with weight scope alignment"
    ]


def _of_dead_units(groups: list[Json]) -> Sequence[str]:
    return [
        f"{row['dead']:.0%} of the units of {row['group']} are dead: they match anything, and an "
        "average brings them back to life"
        for row in groups
        if row["dead"] > _DEAD
    ]


def _of_features(groups: list[Json]) -> list[str]:
    unlike = [row for row in groups if row["cka"] < _UNLIKE]
    if not unlike:
        return []
    least = min(unlike, key=lambda row: row["cka"])
    return [
        f"the models compute different features at {least['group']} (CKA {least['cka']:.2f}): "
        "no order of units makes them alike; wider models or more common data do"
    ]
