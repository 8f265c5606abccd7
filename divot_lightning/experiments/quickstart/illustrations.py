"""Build the quickstart's moving pictures and loss curves. No torch in here."""

from collections import Counter

from divot_lightning.experiments.quickstart.plan import MAIN_HEAD, llm_run
from divot_lightning.experiments.quickstart.results import Results
from divot_lightning.experiments.report.content import Answered, Chart, Picture, PictureRow
from divot_lightning.experiments.report.pictures import side_by_side

SPLITS = {"train": "training", "validation": "validation"}
SHOWN_RECONSTRUCTIONS = 8
SHOWN_ANSWERS = 6
SHOWN_PROMPTS = 4
SHOWN_OF_ONE_PROMPT = 6


def reconstruction_rows(results: Results) -> list[PictureRow]:
    """Return originals beside their reconstructions, of the trained and of the random-init tokenizer."""
    kinds = {"trained": "reconstruction", "random-init tokenizer": "control_reconstruction"}
    rows = []
    for title, name in kinds.items():
        pairs = zip(
            results.clips(name, "reconstruction", "original"),
            results.clips(name, "reconstruction"),
            results.texts(name, "reconstruction"),
            strict=True,
        )
        shown = list(pairs)[:SHOWN_RECONSTRUCTIONS]
        pictures = [
            Picture(side_by_side([original, made]), text["caption"], text["right"]) for original, made, text in shown
        ]
        rows.append(PictureRow(title, pictures))
    return rows


def answered_clips(results: Results) -> list[Answered]:
    """Return clips with captions and answers."""
    originals = results.clips("reconstruction", "reconstruction", "original")
    captions = results.texts(llm_run(MAIN_HEAD, results.settings.seeds[0]), "captions")
    answers = results.texts("instruction", "questions")
    shown = []
    for video, caption in list(zip(originals, captions, strict=True))[:SHOWN_ANSWERS]:
        turns = [turn for turn in answers if turn["key"] == caption["key"]]
        texts = [("caption", caption["expected"], caption["said"], caption["expected"] == caption["said"])]
        texts += [(t["question"], t["expected"], t["said"], t["expected"] == t["said"]) for t in turns]
        shown.append(Answered(video, texts))
    return shown


def generation_rows(results: Results) -> list[PictureRow]:
    """Return generated clips: a few prompts by all heads, then one prompt several times by each."""
    seed = results.settings.seeds[0]
    systems = {head: llm_run(head, seed) for head in results.settings.heads}
    systems[f"{MAIN_HEAD}, adapted"] = "adapted"
    originals = results.clips("reconstruction", "reconstruction", "original")
    made = {label: results.clips(name, "generation") for label, name in systems.items()}
    texts = {label: results.texts(name, "generation") for label, name in systems.items()}
    captions = [text["caption"] for text in texts[MAIN_HEAD]]
    rows = []
    for at in range(min(SHOWN_PROMPTS, len(captions))):
        pictures = [Picture(originals[at], "a real clip")]
        pictures += [Picture(made[label][at], label, texts[label][at]["right"]) for label in systems]
        rows.append(PictureRow(captions[at], pictures))
    common = Counter(captions).most_common(1)[0][0]
    indices = [at for at, caption in enumerate(captions) if caption == common][:SHOWN_OF_ONE_PROMPT]
    rows.append(PictureRow(f"real: {common}", [Picture(originals[at]) for at in indices]))
    for label in systems:
        pictures = [Picture(made[label][at], "", texts[label][at]["right"]) for at in indices]
        rows.append(PictureRow(f"{label}: the same prompt {len(indices)} times", pictures))
    return rows


def loss_charts(results: Results) -> list[Chart]:
    """Return the loss curves of all stages."""
    heads, seeds = results.settings.heads, results.settings.seeds
    losses = {
        "training": "train/loss",
        "validation": "validation/loss",
        "at pure noise": "validation/loss_at_pure_noise",
    }
    runs = {
        "Tokenizer pretraining": "tokenizer",
        "De-tokenizer refinement": "detokenizer",
        "De-tokenizer adaptation": "adapted",
    }
    charts = [
        Chart(title, [results.curve(run, column, name) for name, column in losses.items()], logarithmic=True)
        for title, run in runs.items()
    ]
    words = [
        results.curve(llm_run(head, seeds[0]), f"{split}/text_loss", f"{head}, {what}")
        for split, what in SPLITS.items()
        for head in heads
    ]
    charts.append(Chart("LLM pretraining: next word", words, logarithmic=True))
    for head in heads:
        lines = [
            results.curve(llm_run(head, seed), f"{split}/head_loss", f"seed {seed}, {what}")
            for split, what in SPLITS.items()
            for seed in seeds
        ]
        charts.append(Chart(f"LLM pretraining: {head} head", lines))
    tuning = {"trained tokenizer": "instruction", "random-init tokenizer": "control_instruction"}
    lines = [
        results.curve(run, f"{split}/text_loss", f"{name}, {what}")
        for split, what in SPLITS.items()
        for name, run in tuning.items()
    ]
    charts.append(Chart("Instruction tuning: next word", lines, logarithmic=True))
    return [drawable for chart in charts if (drawable := _drawable(chart)).lines]


def _drawable(chart: Chart) -> Chart:
    """Drop curves without points, and the logarithmic axis if a value is not positive."""
    lines = [line for line in chart.lines if line.x]
    positive = all(value > 0 for line in lines for value in line.y)
    return Chart(chart.title, lines, chart.x_label, chart.logarithmic and positive)
