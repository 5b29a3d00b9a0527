"""What a person wants to know first of a report, as pairs of a name and a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbit.evaluation.size import megabytes

if TYPE_CHECKING:
    from fewbit.report.data import Report


def summary_of(report: Report) -> list[tuple[str, str]]:
    """Return the pairs: what was asked, sizes, quality, what fell back, time."""
    ratio = report.bytes_before / max(report.bytes_after, 1)
    size = f"{megabytes(report.bytes_before)} as {report.storage_type} -> {megabytes(report.bytes_after)}"
    rows = [
        ("model", report.model),
        ("recipe", report.recipe),
        ("layers", f"{len(report.quantized)} quantized, {len(report.layers) - len(report.quantized)} float"),
        ("tensors", f"{size}, {ratio:.2f} times smaller"),
    ]
    rows += report.allocation.summary() if report.allocation else []
    if report.calibration:
        rows.append(("calibrated on", report.calibration))
    rows += [("executed by", report.executor)] if report.executor != "in process" else []
    if report.before and report.after:
        rows += [
            ("perplexity", f"{report.before.perplexity:.3f} -> {report.after.perplexity:.3f}"),
            ("mean KL divergence", f"{report.after.kl_divergence:.4f} nats"),
            ("top-1 agreement", f"{report.after.top1_agreement:.1%}"),
            ("measured on", f"{report.after.predictions} predictions, {report.text}"),
        ]
    if report.output_sqnr is not None:
        rows.append(("output SQNR", f"{report.output_sqnr:.2f} dB"))
        rows += [("measured on", report.text)] if report.text else []
    if trained := [layer.block_losses for layer in report.layers if layer.block_losses]:
        before, after = (sum(pair[end] for pair in trained) / len(trained) for end in (0, 1))
        rows.append(("trained by block", f"{len(trained)} layers, mean loss {before:.4g} -> {after:.4g}"))
    if over := [layer for layer in report.layers if layer.overflow]:
        more = f", and {len(over) - 1} more" if len(over) > 1 else ""
        rows.append(("kept float", f"{over[0].name}: {over[0].overflow}{more}"))
    if fallen := report.in_state("fell back"):
        more = f", and {len(fallen) - 1} more" if len(fallen) > 1 else ""
        rows.append(("fell back", f"{fallen[0].name}: {fallen[0].remarks[0]}{more}"))
    if slow := [layer for layer in report.quantized if not layer.fast]:
        rows.append(("not faster here", f"{len(slow)} of {len(report.quantized)} quantized layers"))
    if report.seconds:
        parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in report.seconds.items())
        rows.append(("seconds", f"{sum(report.seconds.values()):.1f}: {parts}"))
    if report.peak_memory:
        rows.append(("peak memory", megabytes(max(report.peak_memory.values()))))
    return rows
