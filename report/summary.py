"""The accuracies of results.json as the rows of a table, and as the text that fusion.py prints."""

from __future__ import annotations

from utils import plural

FIXED = ("average", "std", "confidence")  # the fusions that stand in every table, whatever was asked for
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


def rows(results: dict) -> list[tuple[str, str]]:
    """(label, key in results) of each row: the streams, the fusion asked for, what it is compared with."""
    asked = results["settings"]["fusion"]
    compared = [(name, name) for name in FIXED if name != asked]
    weights = results["best_weight"].get("weights")  # a mean over splits has none
    tuned = f"best weight {ratio(weights)} *" if weights else "best weight *"
    return [
        *((name, name) for name in results["streams"]),
        (f"fusion: {asked}", "fusion"),
        *compared,
        (tuned, "best_weight"),
    ]


def text(results: dict, title: str) -> str:
    """The table with a headline above it and McNemar's test below."""
    lines = [f"{title}: {plural(results['videos'], 'video')}, {results['classes']} classes, accuracy in %"]
    if len(results["streams"]) > 2:
        lines += [f"{name}: {about['path']}" for name, about in results["streams"].items()]
    names = [*results["streams"], "fusion"]
    table = [(label if key in names else f"  {label}", key) for label, key in rows(results)]
    width = max(len(label) for label, _ in table)
    lines.append(f"{'':{width}}   top-1   95 % interval    top-5   mean class")
    for label, key in table:
        found = results[key]
        low, high = results["interval_95"].get(key, {}).get("top1", (None, None))
        spread = "" if low is None else f"{low:6.2f} - {high:6.2f}"
        top1, top5, mean_class = found["top1"], found["top5"], found["mean_class"]
        lines.append(f"{label:{width}}  {top1:6.2f}   {spread:15}  {top5:6.2f}   {mean_class:10.2f}")
    lines.append(f"* {TUNED_NOTE}")
    if "mcnemar" in results:
        test = results["mcnemar"]
        lines.append(
            f"McNemar's exact test against {test['against']} alone: {plural(test['only_fusion_right'], 'video')} right "
            f"only by fusion, {test['only_stream_right']:,} only by {test['against']}, p = {test['p']:.2g}"
        )
    return "\n".join(lines)
