"""The accuracies of results.json as the rows of a table, and as the text that fusion.py prints."""

from __future__ import annotations

from utils import plural

FIXED = ("average", "std")  # the fusions that stand in every table, whatever was asked for
FEW_CLASSES = 5  # up to these, the top 5 are all there are
TUNED_NOTE = "chosen on the test labels themselves: what a weight could give at most, not a result"


def describe(normalize: str, weights: list[float], scores: str) -> str:
    """The fusion asked for, in words: "average" unless a flag changed it."""
    parts = []
    if normalize != "none":
        parts.append(normalize)
    if len(set(weights)) > 1:
        parts.append(ratio(weights))
    if scores != "logits":
        parts.append(scores)
    return ", ".join(parts) or "average"


def ratio(weights: list[float]) -> str:
    return " : ".join(f"{weight:g}" for weight in weights)


def learnt_label(results: dict) -> str:
    weights = results["learnt"].get("weights")  # a mean over splits has none
    return f"learnt {' : '.join(f'{weight:.2f}' for weight in weights.values())}" if weights else "learnt"


def learnt_note(results: dict) -> str:
    """How the learnt weights came about; empty where there are none."""
    on = results.get("learnt", {}).get("learnt_on")
    if not on:
        return ""
    groups = f" in {plural(on['groups'], 'group')}" if on["groups"] < on["videos"] else ""
    asked = results["settings"]["fusion"] == "learnt"
    return (
        f"learnt: maximum likelihood on {plural(on['videos'], 'other video')}{groups}, temperature "
        f"{results['learnt']['temperature']:.3g}{'' if asked else '; --learn makes it the headline'}"
    )


def uncertainty_note(results: dict) -> str:
    """What intervals and test resample."""
    unit, count = results["resampled"]["unit"], results["resampled"]["count"]
    if unit == "video":
        return "intervals and test take videos as independent: no two of a class share a group by their names"
    return f"intervals and test are over {plural(count, unit)} of videos, since clips of one recording are alike"


def test_line(results: dict) -> str:
    """The paired test of fusion against the better stream, in one sentence; empty for a mean over splits."""
    if "mcnemar" not in results:
        return ""
    test = results["mcnemar"]
    name = "McNemar's exact test" if test["over"] == "videos" else "permutation test over groups"
    return (
        f"fusion against {test['against']} alone: {plural(test['only_fusion_right'], 'video')} right only by fusion, "
        f"{test['only_stream_right']:,} only by {test['against']}; {name}, p = {test['p']:.2g}"
    )


def rows(results: dict) -> list[tuple[str, str]]:
    """(label, key in results) of each row: the streams, the fusion asked for, what it is compared with."""
    asked = results["settings"]["fusion"]
    compared = [(name, name) for name in FIXED if name != asked]
    if "learnt" in results and asked != "learnt":
        compared.append((learnt_label(results), "learnt"))
    weights = results["best_weight"].get("weights")  # a mean over splits has none
    tuned = f"best weight {ratio(weights)} *" if weights else "best weight *"
    return [
        *((name, name) for name in results["streams"]),
        (f"fusion: {learnt_label(results) if asked == 'learnt' else asked}", "fusion"),
        *compared,
        (tuned, "best_weight"),
    ]


def text(results: dict, title: str) -> str:
    """The table with a headline above it, and below how it was tested."""
    lines = [f"{title}: {plural(results['videos'], 'video')}, {results['classes']} classes, accuracy in %"]
    if len(results["streams"]) > 2:
        lines += [f"{name}: {about['path']}" for name, about in results["streams"].items()]
    names = [*results["streams"], "fusion"]
    table = [(label if key in names else f"  {label}", key) for label, key in rows(results)]
    width = max(len(label) for label, _ in table)
    many = results["classes"] > FEW_CLASSES  # of five classes or fewer all are in the top 5
    lines.append(f"{'':{width}}   top-1   95 % interval   {' top-5 ' if many else ''}  mean class")
    for label, key in table:
        found = results[key]
        low, high = results["interval_95"].get(key, {}).get("top1", (None, None))
        spread = "" if low is None else f"{low:6.2f} - {high:6.2f}"
        top5 = f" {found['top5']:6.2f}" if many else ""
        lines.append(f"{label:{width}}  {found['top1']:6.2f}   {spread:15} {top5}   {found['mean_class']:10.2f}")
    lines.append(f"* {TUNED_NOTE}")
    lines += [line for line in (learnt_note(results), test_line(results), uncertainty_note(results)) if line]
    return "\n".join(lines)
