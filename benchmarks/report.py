"""The tables of the benchmarks, each kept as CSV, and README.md, which shows them: python -m benchmarks.report writes it anew."""

import platform
from pathlib import Path

import pandas as pd
import torch

FOLDER = Path(__file__).parent
TABLES = ("step", "operators", "batch", "agreement", "epoch", "precision", "again", "pulls", "neighbour", "cost")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # what decides how fast a CPU multiplies
MACHINE = "machine"  # the last column of every table


def machine(device: torch.device) -> str:
    """In words: the GPU, or the processor, those of its flags that matter and its threads, and torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        flags = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
        told = " ".join(flag for flag in FLAGS if flag in flags)
        name = models[0] if models else platform.machine()
        name += f" ({told})" * bool(told) + f", {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__.split('+')[0]}"


def save(tables: dict[str, pd.DataFrame], device: torch.device) -> None:
    """Write each table beside this file, with the machine; then the README that shows them."""
    for name, table in tables.items():
        table.assign(**{MACHINE: machine(device)}).to_csv(
            FOLDER / f"{name}.csv", index=False, float_format="%.9g", lineterminator="\n"
        )
    if all((FOLDER / f"{name}.csv").exists() for name in TABLES):
        (FOLDER / "README.md").write_text(render())


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")


def markdown(table: pd.DataFrame) -> str:
    """Its rows as text, in a Markdown table."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render() -> str:
    """README.md, every number from a CSV beside it."""
    step, where, batch, parted, epoch, precision, again, pulls, neighbour, cost = map(read, TABLES)
    released = read("released")
    return f"""# Benchmarks

Each prints a table, writes it as CSV beside this file, and writes this file anew. Times are of this machine and of that hour;
the ratios are of loops that took turns. No test looks at a clock.

## A step: `python -m benchmarks.step`

{step[MACHINE][0]}.
R2KD with cutmix and the pruned teacher, batches of 64, real images (the digits, scaled), untrained networks of 100 classes. *Plain* is
written as the released code works: per-image PIL transforms in a DataLoader with two workers, four separate teacher forwards,
float32, default layout. *Ours* is a step of `r2kd.training`; in bfloat16 losses, BatchNorm's statistics and the optimizer stay float32,
and a ReLU of the frozen teachers is one operation of oneDNN with the convolution before it. Medians of {_counts(step)} steps of each loop, in a process of its own,
taking turns, [first and third quartile]. *Ratio*: the plain loop in float32, once for each student, over the loop. *Matrix rate*: the
FLOPs of the networks a second, as a share of a product of two 2048 x 2048 matrices in the same precision and process (above 100 %:
torch's convolutions run faster than that product).

{markdown(_step_table(step))}

{_floor_text(step)}

Where a step goes, by operator (`python -m benchmarks.operators`, the profiler's own time of each, shares of the sum):

{markdown(_operator_table(where))}

## A batch: `python -m benchmarks.batch`

{batch[MACHINE][0]}.
Indexing, cropping, flipping, normalising and augmenting 64 images; in brackets the share of the step of one student above (BatchNorm
running, float32). *After* is cutmixpick as its authors have it.

{markdown(_batch_table(batch))}

{_corruptions_section()}{_explorers_section()}## The same numbers: `python -m benchmarks.agreement`

{parted[MACHINE][0]}.
{parted["pair"][0]}, {len(parted)} steps of the recipe (learning rate 0.05), the same batches. The largest relative difference of a step's loss
from the plain path's (`--plain`: eager, float32, default layout, nothing folded):

{markdown(_agreement_table(parted))}

From the same weights the fast path computes the same loss. Left to itself it parts from the plain one, as the plain one parts
from itself when the number of threads changes the order of its sums: training magnifies the last digit.

## An epoch: `python -m benchmarks.epoch`

{epoch[MACHINE][0]}.
{epoch["pair"][0]} on all of CIFAR-100, {epoch["steps"][0]} steps of 64 and a test on {epoch["test_images"][0]:,} images; the pruned teacher's BatchNorm as released,
on the batch's statistics. The loops took turns, step by step. The 240 epochs of one student are extrapolated, the teacher's own training not included.

{markdown(_epoch_table(epoch))}

## Half precision: `python -m benchmarks.precision`

{precision[MACHINE][0]}.
{precision["caption"][0]}.
The same students in both precisions, of one teacher trained in float32, tested in float32; the difference is paired by seed, ± is the
half width of a 95 % *t*-interval over the seeds. Each run's threads, one or two, stand in the study's records.csv under figures/:

{markdown(_precision_table(precision))}

## Trained again: `python -m benchmarks.again`

{again[MACHINE][0]}.
{again["caption"][0]}.
Students of the study that have a record, trained here from the same seeds: recorded {again["recorded_how"].iloc[-1]}; here
{again["here_how"].iloc[-1]}. The difference is paired by seed, ± as above; its standard deviation is what no pairing takes away.

{markdown(_again_table(again))}

## How hard a distance pulls: `python -m benchmarks.pulls`

{pulls["caption"][0]}.
The norm of a distance's gradient with respect to the student's logits, KL divergence at weight 1 and R2KD's value term at weight 2:
means over 8 batches of 64 of the student's training images, after epochs at the first learning rate, one seed. The study also has
students of weights where KL divergence pulls the harder (4 against R2KD's 2, 1 against 0.5), and of twice the larger.

{markdown(_pulls_table(pulls))}

## Beside a neighbour: `python -m benchmarks.neighbour`

{neighbour[MACHINE][0]}.
Eight evaluations of resnet20 on 797 digits, alone and beside processes that each keep a core busy: medians of {neighbour["repeats"][0]} turns [least,
most]. OpenMP's threads spin while they wait for each other, 300,000 times by default; beside a busy neighbour they spin in the
place of the thread that they wait for. The package sets `GOMP_SPINCOUNT={neighbour["spins"].iloc[-1]}` before torch is loaded, unless it, or `OMP_WAIT_POLICY`, is set:
import r2kd before torch.

{markdown(_neighbour_table(neighbour))}

## Measured elsewhere

On {released[MACHINE][0]}, the real released code took {released["released_s"][0]:.3f} s for a float32 step of {released["pair"][0]} and ours, in
turns with it, {released["ours_s"][0]:.3f} s ({released["ratio"][0]:.2f} times as fast); eight students of ours took {released["ours_s"][1]:.2f} s ({released["ratio"][1]:.2f} times).

## A GPU: `python -m benchmarks.gpu --minutes 25 --out DIR`

The CUDA tests, then steps, operators, an epoch and as much of the full recipe as the minutes allow, each a small file in DIR. Needs
torch, torchvision, NumPy, pandas and tqdm. No GPU has run it yet.

## A study: `python -m benchmarks.cost`

What the full recipe costs in hours on {cost[MACHINE][0]}, extrapolated from a few steps of every arm; the students of a seed share each
pass through the teacher. What `quick` and `small` cost, their records say: `seconds` are of all students trained together, so
a group, of one `started`, counts once.

{markdown(cost.drop(columns=["teacher_step_s", "students_step_s", MACHINE]))}
"""


def _counts(step: pd.DataFrame) -> str:
    return " and ".join(str(count) for count in step.groupby("pair", sort=False)["steps"].first())


def _step_table(step: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair": step["pair"] + step["pixels"].map(", {} px".format),
            "loop": step["loop"],
            "precision": step["precision"],
            "students": step["students"],
            "pruned BatchNorm": step["pruned_batchnorm"],
            "step (ms)": [
                f"{m:.0f} [{a:.0f}, {b:.0f}]"
                for m, a, b in zip(step["step_ms"], step["quartile_1_ms"], step["quartile_3_ms"], strict=True)
            ],
            "images/s": step["images_per_second"].map("{:.1f}".format),
            "ratio": step["ratio"].map("{:.2f}".format),
            "data (%)": step["data_percent"].map("{:.1f}".format),
            "peak memory (GiB)": step["peak_gib"].map("{:.1f}".format),
            "GFLOP": step["gflop"].map("{:.0f}".format),
            "of the matrix rate (%)": step["matrix_percent"].map("{:.0f}".format),
        }
    )


def _floor_text(step: pd.DataFrame) -> str:
    """For each pair, the ratios to be had if every FLOP of the networks ran at the rate of a matrix product."""
    lines = []
    for pair, rows in step[step["pruned_batchnorm"] == "running"].groupby("pair", sort=False):
        plain = rows[rows["loop"] == "plain"].iloc[0]  # in float32
        for _, ours in rows[rows["loop"] == "ours"].iterrows():
            floor = 1000 * ours["gflop"] / ours["matrix_gflops"]
            students = f"{ours['students']} student" + ("s" if ours["students"] > 1 else "")
            lines.append(
                f"- {pair}, {ours['precision']}, {students}: {ours['gflop']:.0f} GFLOP at {ours['matrix_gflops']:.0f} GFLOP/s are {floor:.0f} ms, "
                f"a ratio of {ours['students'] * plain['step_ms'] / floor:.2f}; ours has {ours['ratio']:.2f}"
            )
    heading = (
        "What the networks' own arithmetic takes at the measured matrix rate, and the ratio it would give; a floor where "
        "convolutions are no faster than that product:"
    )
    return "\n".join([heading, "", *lines])


def _operator_table(where: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair": where["pair"],
            "loop": where["loop"],
            "precision": where["precision"],
            "operator": where["operator"].str.removeprefix("aten::"),
            "ms a step": where["ms"].map("{:.0f}".format),
            "share (%)": where["percent"].map("{:.1f}".format),
        }
    )


def _batch_table(batch: pd.DataFrame) -> pd.DataFrame:
    batch["view"] = batch["augmentation"] + batch["pick"].map({"before": "", "after": ", after"})
    batch["shown"] = [f"{ms:.1f} ({share:.1f} %)" for ms, share in zip(batch["ms"], batch["step_percent"], strict=True)]
    batch["column"] = [
        f"{pixels} px, a draw a {draws} (ms)" for pixels, draws in zip(batch["pixels"], batch["draws"], strict=True)
    ]
    wide = batch.pivot_table(index="view", columns="column", values="shown", aggfunc="first", sort=False)
    return wide.fillna("").reset_index()


def _corruptions_section() -> str:
    """Nothing where the table is not there yet."""
    if not (FOLDER / "corruptions.csv").exists():
        return ""
    table = read("corruptions")
    reference = ""
    if table["reference_seconds"].notna().any():
        reference = f"""
*imagecorruptions-imaug*: the same algorithms in a maintained fork of the released code, an image at a time, timed on {table["reference_images"][0]} of the
images at severity 3 and extrapolated; its constants are ImageNet's, its motion blur is not ImageMagick's, and it compiles glass blur's loop."""
    return f"""## A corrupted test set: `python -m benchmarks.corruptions`

{table[MACHINE][0]}.
{len(table) - 1} corruptions at five severities, {table["images"][0]:,} images of 32 pixels ({table["source"][0]}), in one process, by the chunk.{reference}

{markdown(_corruptions_table(table))}

"""


def _corruptions_table(table: pd.DataFrame) -> pd.DataFrame:
    """Without the reference where it was not timed."""

    def told(column: str, form: str) -> pd.Series:
        return table[column].map(form.format).where(table[column].notna(), "")

    shown = pd.DataFrame({"corruption": table["corruption"], "seconds": told("seconds", "{:.1f}")})
    if table["reference_seconds"].isna().all():
        return shown
    theirs = {"imagecorruptions-imaug, s": told("reference_seconds", "{:.1f}"), "ratio": told("ratio", "{:.1f}")}
    return shown.assign(**theirs)


def _explorers_section() -> str:
    """Nothing where the table is not there yet."""
    if not (FOLDER / "explorers.csv").exists():
        return ""
    table = read("explorers")
    return f"""## From a key to the picture: `python -m benchmarks.explorers`

{table[MACHINE][0]}.
Each explorer of the notebooks, one slider moved {table["keys"][0]} times, median (worst) in ms: in the process, from the value to the PNG's
bytes, and in JupyterLab in Chromium, from the key to the frame that shows the picture, where that was timed.

{markdown(_explorers_table(table))}

"""


def _explorers_table(table: pd.DataFrame) -> pd.DataFrame:
    shown = [f"{m:.0f} ({w:.0f})" for m, w in zip(table["median_ms"], table["worst_ms"], strict=True)]
    wide = table.assign(shown=shown, where="in the " + table["where"] + " (ms)")
    return wide.pivot_table(
        index=["explorer", "control"], columns="where", values="shown", aggfunc="first", sort=False
    ).reset_index()


def largest_differences(parted: pd.DataFrame) -> pd.DataFrame:
    """A row for each path but the plain: the largest relative difference of its loss from the plain path's."""
    paths = [name for name in parted.columns if name not in ("pair", "step", "plain", MACHINE)]
    differences = [float((parted[path] / parted["plain"] - 1).abs().max()) for path in paths]
    return pd.DataFrame({"path": paths, "largest relative difference": differences})


def _agreement_table(parted: pd.DataFrame) -> pd.DataFrame:
    table = largest_differences(parted)
    return table.assign(**{"largest relative difference": table["largest relative difference"].map("{:.0e}".format)})


def _epoch_table(epoch: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "loop": epoch["loop"],
            "reading the data (s)": epoch["loading_s"].map("{:.1f}".format),
            "steps (s)": epoch["training_s"].map("{:.0f}".format),
            "a step (ms)": [
                f"{m:.0f} [{a:.0f}, {b:.0f}]"
                for m, a, b in zip(epoch["step_ms"], epoch["quartile_1_ms"], epoch["quartile_3_ms"], strict=True)
            ],
            "test (s)": epoch["test_s"].map("{:.1f}".format),
            "240 epochs (hours)": epoch["hours_240"].map("{:.1f}".format),
            "ratio": (epoch["hours_240"][0] / epoch["hours_240"]).map("{:.2f}".format),
        }
    )


def _precision_table(precision: pd.DataFrame) -> pd.DataFrame:
    def told(mean: str, half_width: str, form: str) -> list[str]:
        return [f"{m:{form}} ± {w:.2f}" for m, w in zip(precision[mean], precision[half_width], strict=True)]

    return pd.DataFrame(
        {
            "student": precision["student"],
            "float32 (%)": told("float32", "float32_half_width", ".2f"),
            "bfloat16 (%)": told("bfloat16", "bfloat16_half_width", ".2f"),
            "bfloat16 - float32 (points)": told("difference", "half_width", "+.2f"),
            "seeds": precision["seeds"],
        }
    )


def _pulls_table(pulls: pd.DataFrame) -> pd.DataFrame:
    norms = {
        name: pulls[column].map("{:.3f}".format) for name, column in (("KL divergence", "kl"), ("value term", "value"))
    }
    return pulls[["student", "epochs", "view"]].assign(**norms, ratio=pulls["ratio"].map("{:.1f}".format))


def _again_table(again: pd.DataFrame) -> pd.DataFrame:
    points = zip(again["difference"], again["half_width"], strict=True)
    return pd.DataFrame(
        {
            "student": again["student"],
            "recorded (%)": again["recorded"].map("{:.2f}".format),
            "here (%)": again["here"].map("{:.2f}".format),
            # of one student there is no interval
            "here - recorded (points)": [f"{m:+.2f}" + (f" ± {w:.2f}" if w == w else "") for m, w in points],
            "standard deviation": again["standard_deviation"].map(lambda s: f"{s:.2f}" if s == s else ""),
            "students": again["n"],
            "the same to the last digit": again["same"],
        }
    )


def _neighbour_table(neighbour: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "spinning": neighbour["spinning"],
            "busy neighbours": neighbour["neighbours"],
            "seconds": [
                f"{m:.2f} [{a:.2f}, {b:.2f}]"
                for m, a, b in zip(neighbour["seconds"], neighbour["least"], neighbour["most"], strict=True)
            ],
            "against alone": neighbour["slowdown"].map("{:.1f}".format),
        }
    )


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(render())
