"""Where the released code and the method as described part: one switch a difference, gathered in two presets.

SWITCHES is the one table that the configuration, the command line, the README and notebook 04 share. "released" is the
code that produced the published students, and the default; "intended" is what the title and the abstract of the paper and
the papers of its components say. Of R2KD itself only the title and the abstract (arXiv 2311.13934) stand behind it here.
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
)

NAMES = tuple(switch.name for switch in SWITCHES)
PRESETS = {
    "released": {switch.name: switch.released for switch in SWITCHES},
    "intended": {switch.name: switch.intended for switch in SWITCHES},
}


def preset(fidelity: str) -> dict[str, str]:
    """The value of every switch. Raises ValueError for an unknown preset."""
    if fidelity not in PRESETS:
        raise ValueError(f"unknown fidelity {fidelity!r}; known: {', '.join(PRESETS)}")
    return PRESETS[fidelity]


def table() -> str:
    """SWITCHES as a Markdown table: the one that stands in the README and in notebook 04."""
    rows = [("switch", "released", "intended", "the released code", "the method as described"), ("---",) * 5]
    rows += [(f"`{switch.name}`", switch.released, switch.intended, switch.code, switch.method) for switch in SWITCHES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
