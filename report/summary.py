"""The accuracies of results.json as the rows of a table, and as the text that fusion.py prints."""

from __future__ import annotations

from utils import plural

FIXED = ("average", "std")  # the fusions that stand in every table, whatever was asked for
FEW_CLASSES = 10  # up to these, the top 5 are half of what there is or more
STD_NOTE = "std: each stream's logits divided by their standard deviation over the test set, then averaged"
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


def choice_label(results: dict) -> str:
    """The fusion that was chosen on held-out videos, in words."""
    learnt = results["learnt"]
    if "weights" not in learnt:  # a mean over splits, each with a choice of its own
        return "chosen"
    if learnt["chosen"] == "learnt":
        return f"learnt {' : '.join(f'{weight:.3f}' for weight in learnt['weights'].values())}"
    return choice_name(learnt["chosen"])


def choice_name(candidate: str) -> str:
    names = {"average": "average", "learnt": "learnt weights", "joined": "one head on all features"}
    return names.get(candidate, f"{candidate} alone")


def choice_note(results: dict) -> str:
    """What was chosen and why; empty where there was nothing to choose by."""
    learnt = results.get("learnt", {})
    if "learnt_on" not in learnt:
        return ""
    on = learnt["learnt_on"]
    groups = f" in {plural(on['groups'], 'group')}" if on["groups"] < on["videos"] else ""
    asked = results["settings"]["fusion"] == "chosen"
    alone = learnt["chosen"] not in ("average", "learnt", "joined")
    losses = ", ".join(f"{choice_name(name)} {loss:.3f}" for name, loss in learnt["log_loss"].items())
    why = "no fusion is likelier beyond chance" if alone else "it is the likeliest"
    return (
        f"{choice_name(learnt['chosen'])}{' is better here' if alone else ' is chosen'}: {why} on "
        f"{plural(on['videos'], 'other video')}{groups} (log loss: {losses}); temperature {learnt['temperature']:.3g}"
        f"{'' if asked else '; --learn makes it the headline'}"
    )


def gap_note(held_out: float, held_out_videos: int, test: float, test_videos: int) -> str:
    """A line where the accuracies on held-out and on test videos, per cent, differ by far; else nothing."""
    mean = (held_out * held_out_videos + test * test_videos) / (held_out_videos + test_videos) / 100
    error = 100 * (mean * (1 - mean) * (1 / held_out_videos + 1 / test_videos)) ** 0.5
    if abs(held_out - test) < max(10, 3 * error):
        return ""
    return (
        f"held out {held_out:.1f}, test {test:.1f}: test videos differ from training videos (other recordings, other "
        "cameras?), or training videos have near copies among themselves; the test figure is the one to quote"
        if held_out > test else f"held out {held_out:.1f}, test {test:.1f}: are copies of training videos in the test?"
    )  # fmt: skip


def look_alike_note(alike: dict) -> str:
    """What the look-alike check of heads.py found, in a line; it begins with "Clips" where it warns."""
    if alike["warns"]:
        return (
            "Clips that look alike are on both sides of the split. Kept apart, accuracy is "
            f"{alike['apart']:.0f} % (a linear head on RGB, in place of {alike['accuracy']:.0f} %). If they are from "
            "the same recordings, take this figure, and give --groups"
        )
    return (
        f"look-alikes kept apart: {alike['apart']:.1f} % by a linear head on RGB, {alike['accuracy']:.1f} in the usual "
        "cross-validation"
    )


def warnings(results: dict) -> list[str]:
    """What a reader must know before the figures: look-alikes on both sides, held-out and test far apart."""
    found = []
    if results.get("look_alikes", {}).get("warns"):
        found.append(look_alike_note(results["look_alikes"]))
    learnt = results.get("learnt", {})
    if results["settings"].get("fusion") == "chosen" and learnt.get("held_out_top1") is not None:
        on = learnt["learnt_on"]["videos"]
        found.append(gap_note(learnt["held_out_top1"], on, results["fusion"]["top1"], results["videos"]))
    return [line for line in found if line]


def uncertainty_note(results: dict) -> str:
    """What intervals and test resample."""
    unit, count = results["resampled"]["unit"], results["resampled"]["count"]
    if unit == "video":
        return "intervals and test take videos as independent: nothing tells that two of a class are of one recording"
    return f"intervals and test are over {plural(count, unit)} of videos, since clips of one recording are alike"


def test_line(results: dict) -> str:
    """The paired test of fusion against the better stream, in one sentence; empty for a mean over splits."""
    if "mcnemar" not in results:
        return ""
    test = results["mcnemar"]
    if results["settings"]["fusion"] == "chosen" and results["learnt"]["chosen"] == test["against"]:
        return ""  # the same answers
    name = "McNemar's exact test" if test["over"] == "videos" else "permutation test over groups"
    return (
        f"fusion against {test['against']} alone: {plural(test['only_fusion_right'], 'video')} right only by fusion, "
        f"{test['only_stream_right']:,} only by {test['against']}; {name}, p = {test['p']:.2g}"
    )


def rows(results: dict) -> list[tuple[str, str]]:
    """(label, key in results) of each row: the streams, the fusion asked for, what it is compared with."""
    asked = results["settings"]["fusion"]
    compared = [(name, name) for name in FIXED if name != asked]
    if "learnt" in results and asked != "chosen":
        compared.append((choice_label(results), "learnt"))
    weights = results["best_weight"].get("weights")  # a mean over splits has none
    tuned = f"best weight {ratio(weights)} *" if weights else "best weight *"
    return [
        *((name, name) for name in results["streams"]),
        (f"fusion: {choice_label(results) if asked == 'chosen' else asked}", "fusion"),
        *compared,
        (tuned, "best_weight"),
    ]


def text(results: dict, title: str) -> str:
    """The table with a headline above it, and below how it was tested."""
    lines = [f"{title}: {plural(results['videos'], 'video')}, {results['classes']} classes, accuracy in %"]
    lines += [f"!! {line}" for line in warnings(results)]
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
    lines += [f"* {TUNED_NOTE}", STD_NOTE]
    alike = results.get("look_alikes")
    lines += [line for line in (
        choice_note(results), test_line(results), uncertainty_note(results),
        look_alike_note(alike) if alike and not alike["warns"] else "",
    ) if line]  # fmt: skip
    return "\n".join(lines)
