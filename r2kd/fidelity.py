"""Where the released code of a method and the method as described part: one switch a difference, gathered in two presets.

SWITCHES is the one table that the configuration, the command line and notebook 04 share. "released" is the code that produced
the published students, and the default; "intended" is what the title and the abstract of the paper and the papers of its
components say. Of R2KD itself only the title and the abstract (arXiv 2311.13934) stand behind it here; of MLKD its code, which
computes a selection and terms that it does not use.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Switch:
    """One difference. `name` is an option of the configuration's `part`, `released` and `intended` are its two values."""

    name: str
    part: str
    released: str
    intended: str
    code: str  # what the released code does, and where
    method: str  # what the intended value does, and who says so
    of: str = "R2KD"  # whose released code

    @property
    def key(self) -> str:
        """As a setting: method.rank."""
        return f"{self.part}.{self.name}"

    @property
    def values(self) -> tuple[str, str]:
        return self.released, self.intended


SWITCHES = (
    Switch(
        "rank",
        "method",
        "hard",
        "soft",
        "ranks from argsort: a value, no gradient (`rank_loss`, `element_ranks`)",
        "soft ranks: a distance that teaches (abstract: R2KD “leverages correlation distance”)",
    ),
    Switch(
        "value",
        "method",
        "cosine",
        "pearson",
        "absolute cosine, not centred (`value_loss`, `abs_cosine_similarity`)",
        "Pearson's correlation, centred: `losses.dist_loss` (title: “Correlation Distance”; the weakest case of the "
        "six, as Eisen's uncentred cosine is called a correlation too)",
    ),
    Switch(
        "pruned_batchnorm",
        "pruning",
        "batch",
        "running",
        "the pruned teacher trains: batch statistics (`R2KD.forward_train`; the base class puts only the dense one in eval mode)",
        "a frozen teacher, like the dense one (abstract: “network pruning” of the teacher, nothing of training it)",
    ),
    Switch(
        "pick",
        "view",
        "before",
        "after",
        "cutmixpick mixes once and keeps the 64 images most uncertain before mixing: of 64, all (`cutmixpick_data`)",
        "mixes the batch twice, keeps the half most uncertain after mixing (Wang et al., NeurIPS 2022: “entropy-based "
        "data-mixing”; their scripts: `mix_n_run 2`, `teacher_entropy`)",
    ),
    Switch(
        "draws",
        "view",
        "batch",
        "sample",
        "one weight, box, place or policy serves the batch (`mixup_data`, `cutmix_data`, `cutout_data`, `autoaug_data`)",
        "one for each image (AutoAugment's abstract: “randomly chosen for each image in each mini-batch”)",
    ),
    Switch(
        "reported",
        "recipe",
        "best",
        "last",
        "the best epoch on the test split, one seed (the files are called `student_best`; seed 42)",
        "the last epoch (no epoch is chosen by the images that the result is measured on)",
    ),
    Switch(
        "mask",
        "method",
        "mean",
        "select",
        "a loss is a mean already when the mask of the teacher's confidence multiplies it: halved, nothing selected (`KD_ours`)",
        "the samples and the classes that the teacher is least sure of count, the others do not (the mask that the code computes)",
        "MLKD",
    ),
    Switch(
        "strong_temperatures",
        "method",
        "mixed",
        "own",
        "of the strong view's five temperatures two are given the weak view's logits (`loss_kd_strong`)",
        "all five are of the strong view",
        "MLKD",
    ),
    Switch(
        "strong_terms",
        "method",
        "dropped",
        "kept",
        "the strong view's class and batch terms are computed, and not added (`loss_cc_strong`, `loss_bc_strong`)",
        "they are added, as those of the weak view",
        "MLKD",
    ),
)

NAMES = tuple(switch.name for switch in SWITCHES)
PRESETS = {
    "released": {switch.name: switch.released for switch in SWITCHES},
    "intended": {switch.name: switch.intended for switch in SWITCHES},
}


def of(method: str) -> tuple[Switch, ...]:
    """The switches of a method, by its label; of a method that has none R2KD's, as views and recipe are theirs."""
    return tuple(s for s in SWITCHES if s.of == method) or tuple(s for s in SWITCHES if s.of == SWITCHES[0].of)


def preset(fidelity: str) -> dict[str, str]:
    """The value of every switch. Raises ValueError for an unknown preset."""
    if fidelity not in PRESETS:
        raise ValueError(f"unknown fidelity {fidelity!r}; known: {', '.join(PRESETS)}")
    return PRESETS[fidelity]


def table() -> str:
    """SWITCHES as a Markdown table: the one that stands in notebook 04."""
    rows = [("method", "switch", "released", "intended", "the released code", "the method as described"), ("---",) * 6]
    rows += [(s.of, f"`{s.name}`", s.released, s.intended, s.code, s.method) for s in SWITCHES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
