"""The report's first screen in words: one sentence a primary contrast, then what limits it."""

from typing import Any

from raydr.report.contrasts import CLAIM, MIN_REPLICATES

SUBJECTS = {
    "band": "Synthetic images filtered by the score band",
    "ecc": "Images of the class-conditioned (ECC) generator",
}


def points(value: float, signed: bool = True) -> str:
    """A difference of shares in points, with a real minus sign: 0.034 -> "+3.4"."""
    text = f"{100 * value:+.1f}" if signed else f"{100 * abs(value):.1f}"
    return text.replace("-", "−")


# A number and its unit stay on one line.
SPACE = "\u00a0"


def sentence(row: dict[str, Any], levels: dict[str, float], confidence: float) -> str:
    """What one primary contrast says; `levels` is {arm: mean balanced accuracy}."""
    subject = SUBJECTS.get(row["a"].split(" (")[0], row["a"])
    between = f"{100 * confidence:.0f}{SPACE}% interval {points(row['low'])} to {points(row['high'])}"
    if row["verdict"] == "not shown":
        return (
            f"{subject}: no difference from oversampling is shown ({points(row['difference'])} points of balanced "
            f"accuracy, {between})."
        )
    verb = "raise" if row["verdict"] == "better" else "lower"
    return (
        f"{subject} {verb} balanced accuracy from {100 * levels[row['b']]:.1f}{SPACE}% with oversampling to "
        f"{100 * levels[row['a']]:.1f}{SPACE}%: {points(row['difference'])} points ({between})."
    )


def answer(results: dict[str, Any]) -> dict[str, list[str]]:
    """{"sentences": the answer, "caveats": what it is conditional on}; sentences are empty before the sweep."""
    levels = {row["name"]: row["metrics"]["balanced_accuracy"]["mean"] for row in results["table"]}
    primary = [row for row in results["contrasts"] if row["family"] == "primary"]
    sentences = [sentence(row, levels, results["confidence"]) for row in primary]
    caveats = []
    if primary:
        num_replicates = min(row["num_replicates"] for row in primary)
        if num_replicates < MIN_REPLICATES:
            chains = "one replicate" if num_replicates == 1 else f"{num_replicates} replicates"
            caveats.append(
                f"{str(primary[0]['conditional_on']).capitalize()}: {chains} of the chain (cohort, ensemble, "
                f"generator) ran, and a claim beyond that needs at least {MIN_REPLICATES}."
            )
        if results["varied"]:
            caveats.append(f"Between the replicates differ {results['varied']}.")
        detectable = max(row["minimum_detectable_difference"] for row in primary)
        if detectable == 0:
            caveats.append("The arms gave the same verdicts in every training: nothing can differ here.")
        elif detectable > CLAIM:
            caveats.append(
                f"Not powered for a difference of {points(CLAIM, False)} points: this run would find one of "
                f"{points(detectable, False)} points or more (80 % power)."
            )
        else:
            caveats.append(f"Would find a true difference of {points(detectable, False)} points or more (80 % power).")
    if results["partial"]:
        caveats.append("The run is not finished: what is shown is what had been committed.")
    return {"sentences": sentences, "caveats": caveats}
