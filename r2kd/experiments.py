"""A study as data: a teacher, arms, seeds; what runs it and makes its tables. Its profiles are those of profiles.PROFILES."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from . import (
    ROOT,
    data,
    entries,
    evaluation,
    models,
    records,
    robustness,
    runs,
    specification,
    stats,
    tested,
    training,
)
from .augmentation import AUGMENTATIONS
from .config import DistillConfig, TeacherConfig, unknown_setting
from .data import ImageData
from .entries import Choice
from .parts import PLACES, Data, Design, Tests
from .profiles import PROFILES, confirmed, searched, switched
from .progress import tqdm
from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Study:
    """A teacher and, by their labels, the arms that are compared, each a configuration, with every seed.

    seeds_of: those of the arms that have others, fewer. tests: what each student is tested with. comparisons: the pairs of arms
    that it is to tell apart. shown: the arms that crowded figures draw, empty for all. said: what captions add of its settings.
    figures_root: else beside the runs, so that who looks changes no committed file. fresh: whether an arm of which there is only
    a record is trained. recorded: whether one of which there is nothing is left out in place of it. made_of: (profile, settings)
    that `study` was given.
    """

    name: str
    teacher: TeacherConfig
    arms: Mapping[str, DistillConfig]
    seeds: tuple[int, ...]
    seeds_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tests: Tests = Tests()
    shown: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    said: str = ""
    figures_root: str | None = None
    fresh: bool = True
    recorded: bool = False
    made_of: tuple[str, Mapping[str, Any]] = ("", {})

    @property
    def first(self) -> DistillConfig:
        """An arm, for what all of them share."""
        return next(iter(self.arms.values()))

    @property
    def figures(self) -> Path:
        """Of its figures and its records: <figures_root>/<data set>/<name>."""
        return self.roots[-1] / specification.dataset_folder(self.first.data.dataset) / self.name

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders of figures whose records it knows, those of the repository and its own, which is the last."""
        own = self.figures_root or runs.root_folder(self.first.machine.runs_root) / "figures"
        return tuple(dict.fromkeys((ROOT / "figures", Path(own))))

    @property
    def reference(self) -> str:
        """The arm that others are compared with: the first that has no teacher, else the first."""
        return next((arm for arm, config in self.arms.items() if not config.taught), next(iter(self.arms)))

    def students(self, seed: int) -> dict[str, DistillConfig]:
        """The configurations, by arm, of those that have this seed, in their order."""
        return {
            arm: replace(config, seed=seed)
            for arm, config in self.arms.items()
            if seed in self.seeds_of.get(arm, self.seeds)
        }

    def drawn(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table with a column `arm` that crowded figures draw."""
        return table[table["arm"].isin(self.shown or self.arms)]

    @property
    def views(self) -> dict[str, Choice]:
        """Every view by name, as the first arm that sees it has it."""
        own = {config.view.name: config.view for config in reversed(self.arms.values())}
        return {name: own.get(name, Choice(entry)) for name, entry in AUGMENTATIONS.items()}

    def option(self, key: str) -> Any:
        """The value of a setting in the first arm that has it, else R2KD's own; of the pruning in one that prunes.

        Raises ValueError for an unknown one.
        """
        usual = DistillConfig.of(self.first.model, teacher=self.teacher, method="r2kd", view="cutmixpick")
        configs = [*sorted(self.arms.values(), key=lambda config: not config.pruned), usual]
        for config in configs:
            if (owner := config.owner(key)) and (owner != "pruning" or config.pruned):
                return config[key]
        raise ValueError(unknown_setting(key, configs))

    def protocol(self, images: ImageData) -> robustness.Protocol:
        """What `tests` mean for these images, here."""
        teacher = self.teacher.run(self.teacher_images(images)).address
        return robustness.protocol(self.tests, images, self.first.machine.data_root, teacher)

    def open_data(self) -> ImageData:
        """The students' images, on their device."""
        return training.open_data(self.first).to(training.resolve_device(self.first.machine.device))

    def caption(self, images: ImageData) -> str:
        """What every figure of the study says below its title: what its numbers rest on."""
        teacher, student = self.teacher.model.name, self.first.model.name
        epochs, taught = specification.epochs(self.first), []
        if self.teacher.checkpoint:
            tested = teacher_run(self, images).result["last_top1"]
            taught.append(f"weights from {Path(self.teacher.checkpoint).name}, {tested:.2f} %")
        else:
            count = self.teacher.data.train_images
            if count != self.first.data.train_images:
                taught.append(f"of {count:,} images" if count else "of all images")
            if specification.epochs(self.teacher) != epochs:
                taught.append(specification.epochs(self.teacher))
        teacher += f" ({', '.join(taught)})" if taught else ""
        classes = f" ({images.num_classes} of {images.of_classes} classes)" if images.of_classes else ""
        kept = f", {len(images.validation):,} validation" if images.validation else ""
        chosen = {(config.precision, config.machine.precision) for config in self.arms.values()}
        half = "; in bfloat16" if chosen == {("bfloat16", "auto")} else ""  # what was asked for is in `said`
        return (
            f"{images.name}{classes}, {len(images.train):,} training{kept} and {len(images.test):,} test images of "
            f"{images.image_size} px; {epochs}; {teacher} teaches {student}{self._label_noise}{half}{self.said}"
        )

    @property
    def _label_noise(self) -> str:
        """What a caption says of flipped labels: an arm's own noise is no setting of the study, and not always in its label."""
        taught = f"{self.teacher.data.label_noise:g}"
        rates = sorted({f"{config.data.label_noise:g}" for config in self.arms.values()})
        if rates == ["0"] and (taught == "0" or self.teacher.checkpoint):
            return ""
        apart = "" if rates == [taught] or self.teacher.checkpoint else f", the teacher's {taught}"
        return f"; label noise {' or '.join(rates)}{apart}"

    def teacher_images(self, images: ImageData) -> ImageData:
        """The teacher's images, on the device of the students'."""
        same = self.teacher.data == self.first.data
        return images if same else training.open_data(self.teacher).to(images.test.labels.device)


class Student(NamedTuple):
    """A trained arm: its label in the study, its configuration with the seed, and its run."""

    arm: str
    config: DistillConfig
    run: Run

    @property
    def columns(self) -> dict[str, Any]:
        """What tables say of it: arm, method, augmentation, pruned, seed."""
        return {
            "arm": self.arm,
            "method": self.config.method.label,
            "augmentation": self.config.view.name,
            "pruned": self.config.pruned,
            "seed": self.config.seed,
        }


ARM = tested.ARM
SHARES = "{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # of a bar whose steps are parts of a run


def study(profile: str = "quick", **settings) -> Study:
    """The study of a profile, under `settings`: any of parts.Design and parts.Tests, and of any part of a configuration.

    A key may have its part before it (method.temperature), or "teacher." where it is of the teacher's recipe: of the recipe, a
    setting is the students'; of the data and the machine, it is both's. An option of methods or views is set wherever an arm
    has it; what an arm says itself counts more, and is its student's alone: under "kd label_noise=0.4" the teacher stays the
    study's. None is as not given. `arms`: a text, "ce; kd; r2kd:temperature=2 cutmix", or a list, or a dictionary by label, of
    such texts, of functions that can be a method, or of dictionaries with method, view, fidelity and settings; a first "+"
    keeps the profile's arms before them, and "label = arm" gives one a label. `comparisons`: pairs of them, "mine - kd cutmix", by label or by
    the arm's text, one family of verdicts in place of the profile's.

    Raises ValueError for an unknown profile, pair, entry or setting, two arms that are the same, or `fresh` with `recorded`.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    chosen = PROFILES[profile]
    given = {name: value for name, value in settings.items() if value is not None}
    design = Design().with_options(**{name: given.pop(name) for name in list(given) if name in Design()})
    asked = {name: given.pop(name) for name in list(given) if name in Tests()}
    tests = Tests().with_options(**chosen.tests | asked)
    if design.fresh and design.recorded:
        raise ValueError("fresh trains what there is only a record of, recorded trains nothing: give one of the two")
    for path in [design.load] if isinstance(design.load, str) else design.load or ():
        entries.load(path)
    for choose, names in (
        (robustness.chosen_corruptions, tests.corruptions),
        (robustness.chosen_attacks, tests.attacks),
    ):
        choose(names)  # an unknown one is said before anything is trained
    teacher, student = specification.pair(design, chosen)
    dataset = given.pop("dataset", chosen.dataset)
    own = data.recipe(dataset)
    scale = own | {name: min(value, own.get(name, value)) for name, value in chosen.scale.items()}
    base = {"dataset": dataset} | scale
    usual = chosen.settings if dataset == chosen.dataset else {}
    under = dict(usual) | given
    taught, used = specification.teacher(TeacherConfig.of(teacher, checkpoint=design.teacher_checkpoint, **base), under)
    taught.refuse_idle([key.removeprefix("teacher.") for key in given if key.startswith("teacher.")], of="teacher.")
    specified = specification.arms(design.arms, chosen)
    configs = [
        specification.configure(spec, student, taught, base, under, design.fidelity, used) for _, spec, _ in specified
    ]
    for key in given:
        if key not in used:
            raise ValueError(unknown_setting(key, configs, (*Design().options, *Tests().options)))
    arms = dict(zip(specification.labels([label for label, _, _ in specified], configs), configs, strict=True))
    for label, config in arms.items():
        if config.teacher != taught:
            raise ValueError(f"the arm {label!r} has a teacher of its own: the arms of a study share one")
    seeds, seeds_of = specification.seeds(design.seeds, chosen, arms)
    return Study(
        name=specification.name(profile, design, given | specification.acting(tests, chosen), configs),
        teacher=taught,
        arms=arms,
        seeds=seeds,
        seeds_of=seeds_of,
        tests=tests,
        comparisons=specification.comparisons(
            design.comparisons, chosen, [spec for _, spec, _ in specified], list(arms)
        ),
        shown=tuple(label for label, (_, _, shown) in zip(arms, specified, strict=True) if shown),
        said=specification.said(design, given),
        figures_root=design.figures_root,
        fresh=(chosen.fresh and not design.recorded) if design.fresh is None else design.fresh,
        recorded=design.recorded,
        made_of=(profile, settings),
    )


def ablation(of: Study) -> Study:
    """The same study with other arms: cross-entropy, R2KD as released, each switch that trains alone, all: as intended.

    With cutmixpick and the pruned teacher, where every switch has something to act on.
    """
    arms = {"cross-entropy": "ce"} | switched()
    profile, settings = of.made_of
    made = variant(of, **dict(PROFILES[profile].ablation) | settings | {"arms": arms})
    pairs = tuple((arm, "released") for arm in switched() if arm != "released")
    return replace(made, comparisons=pairs, said=f"{of.said}; R2KD with cutmixpick, pruned teacher")


def search(of: Study) -> Study:
    """The study of the settings that a better one is chosen among, by its validation images, on seeds of their own; no tests."""
    profile = PROFILES[of.made_of[0]]
    return _beside(of, "search", profile.search, arms=searched(), seeds=profile.search_seeds)


def confirmation(of: Study, chosen: str) -> Study:
    """The study of the setting that `search` chose, by its label, against R2KD as released and the field, on fresh seeds; no tests.

    Raises ValueError for an unknown label.
    """
    if chosen not in searched():
        raise ValueError(f"{chosen!r} was not searched; known: {', '.join(searched())}")
    arms, seeds = confirmed(chosen, of.first.recipe.epochs), PROFILES[of.made_of[0]].confirmation_seeds
    made = _beside(of, "confirmation", {}, arms=arms, seeds=seeds)
    return replace(made, comparisons=tuple(("recommended", other) for other in arms if other != "recommended"))


def _beside(of: Study, name: str, own: Mapping[str, Any], **design) -> Study:
    """A study of students that are none of the first's: in a folder of figures and records beside its."""
    made = variant(of, **dict(own) | of.made_of[1] | design | {"corruptions": "none", "attacks": "none"})
    return replace(made, name=f"{of.name}-{name}")


def with_label_noise(of: Study, rate: float, seeds: int = 3) -> Study:
    """The same study, `rate` of the training labels flipped, the teacher's too: cross-entropy, KD and R2KD, each on one view.

    With at most so many of its seeds, and no tests beside clean images.
    """
    arms = {"cross-entropy": "ce", "KD": "kd", "R2KD": "r2kd pruning_rate=0"}
    arms = {label + _flipped(rate): arm for label, arm in arms.items()}  # their records stand beside those of the study
    return variant(of, label_noise=rate, arms=arms, seeds=of.seeds[:seeds], corruptions="none", attacks="none")


def _flipped(rate: float) -> str:
    return f", {100 * rate:g} % flipped" if rate else ""


def variant(of: Study, **settings) -> Study:
    """A study with other settings, say arms or a student of your own, whose figures and records join those of the first."""
    profile, given = of.made_of
    return replace(study(profile, **dict(given) | {"comparisons": None} | settings), name=of.name)


def in_minutes(of: Study, **settings) -> Study:
    """`variant` where the profile is one of minutes, else the quick study with these settings; its records stay beside the runs.

    It is trained, in a study of what is recorded too.
    """
    profile, given = of.made_of
    if PROFILES[profile].fresh:
        return variant(of, **{"recorded": False} | settings)
    places = {name: value for name, value in given.items() if name in PLACES}
    return study("quick", **places | settings)


def run_teacher(study: Study, images: ImageData) -> nn.Module:
    """The study's teacher in eval mode, on its device: trained, returned as it was, put back, or loaded from a checkpoint."""
    run = teacher_run(study, images)
    records.write(study.figures, [("teacher", run)])
    return _on_device(study.teacher, run, images)


def teacher_result(study: Study, images: ImageData) -> dict[str, Any]:
    """What the teacher's run ended with: from its record where its weights are not here and the study is not `fresh`."""
    run = study.teacher.run(study.teacher_images(images))
    recorded = {} if run.finished or study.fresh else records.under(*study.roots)
    if run.address in recorded:
        return Run(run.folder, recorded[run.address]).result
    run = teacher_run(study, images)
    records.write(study.figures, [("teacher", run)])
    return run.result


def teacher_run(study: Study, images: ImageData) -> Run:
    """The study's teacher trained, returned as it was, or, where the study is not `fresh`, put back from beside its record.

    Nothing is recorded: the teacher of a variant is not the study's.
    """
    own = study.teacher_images(images)
    if not study.fresh:
        training.put_back(study.teacher, own)
    return training.train_teacher(study.teacher, own)


def _teacher_logits(study: Study, images: ImageData) -> torch.Tensor:
    """(N, C) for the test images."""
    run = teacher_run(study, images)
    return evaluation.predict(_on_device(study.teacher, run, images), images.test, images)


def run_students(study: Study, images: ImageData, weights: bool = True) -> list[Student]:
    """Every arm with every seed, trained and tested or returned as it was; those of one seed share each teacher pass.

    Where no `weights` are asked for and the study is not `fresh`, a run whose record is under study.roots is reported
    from it; in a study of what is `recorded` nothing is trained. Every finished run is written to the study's records, seed by seed.
    Several processes share a study: each takes what no other is at, then waits for what is left, and all return the same.
    """
    recorded = {} if weights or study.fresh else records.under(*study.roots)
    wanted, opened = _wanted(study, images)
    under = study.protocol(images)
    order = [student.run.address for students in wanted.values() for student in students]
    trained: dict[int, list[Student]] = {}
    tested: set[int] = set()
    unwritten = list(wanted)  # in this order, whichever is finished first
    total = len(order)
    shares = {seed: _shares(wanted[seed], recorded) for seed in wanted}
    with tqdm(total=total, initial=sum(shares.values()), desc="students", unit="run", bar_format=SHARES) as bar:

        def move(seed: int) -> None:
            shares[seed] = _shares(wanted[seed], recorded)
            bar.update(sum(shares.values()) - bar.n)

        for wait in (False, True):
            for seed in [seed for seed in wanted if seed not in tested]:
                if seed not in trained:
                    found = _run_seed(study, wanted[seed], opened, recorded, wait, partial(move, seed))
                    if not all(student.run.source == "record" or student.run.finished for student in found):
                        continue
                    trained[seed] = found
                    move(seed)
                while unwritten and unwritten[0] in trained:
                    records.write(study.figures, [(s.arm, s.run) for s in trained[unwritten.pop(0)]])
                rows = _test(study, images, trained[seed], under, order, wait)
                if all(student.run.address in rows for student in trained[seed]):
                    tested.add(seed)
    finished = [student for seed in wanted for student in trained[seed]]
    if missing := total - len(finished):
        print(f"{missing} of {total} students have neither run nor record, and are left out")
    if reported := sum(student.run.source == "record" for student in finished):
        print(
            f"{reported} of {len(finished)} students are reported from their records; fresh=True (--fresh) trains them"
        )
    return finished


def _wanted(study: Study, images: ImageData) -> tuple[dict[int, list[Student]], dict[Data, ImageData]]:
    """(the students by seed, trained or not; the images that they ask for)."""
    opened = {study.first.data: images}
    wanted: dict[int, list[Student]] = {}
    for seed in study.seeds:
        students = []
        for arm, config in study.students(seed).items():
            if config.data not in opened:
                opened[config.data] = training.open_data(config)
            students.append(Student(arm, config, config.run(opened[config.data])))
        wanted[seed] = students
    return wanted, opened


def _shares(students: Iterable[Student], recorded: Mapping[str, dict]) -> float:
    """How many of them are trained, or known; of one at work its epochs count."""
    return sum(1 if s.run.address in recorded else s.run.epochs / s.config.recipe.epochs for s in students)


def _run_seed(
    study: Study,
    students: list[Student],
    opened: Mapping[Data, ImageData],
    recorded: Mapping[str, dict],
    wait: bool,
    after_epoch: Callable[[], None],
) -> list[Student]:
    found, together = {}, {}
    for student in students:
        run = student.run
        if not run.finished and run.address in recorded:
            found[student.arm] = student._replace(run=Run(run.folder, recorded[run.address]))
        elif run.finished or not study.recorded:
            found[student.arm] = student
            together.setdefault(repr(training.shared(student.config)), []).append(student.config)
    if not study.fresh and any(s.config.taught and not s.run.finished for s in found.values() if s.run.source == "run"):
        training.put_back(study.teacher, study.teacher_images(opened[study.first.data]))
    for configs in together.values():
        training.distill_all(configs, opened[configs[0].data], wait=wait, after_epoch=after_epoch)
    return [found[student.arm] for student in students if student.arm in found]


def _test(
    study: Study, images: ImageData, students: Iterable[Student], under: robustness.Protocol, *how: Any
) -> dict[str, list[dict[str, Any]]]:
    wanted = [_tested(student.arm, student.config, student.run, images) for student in students]
    return test_rows(study, images, wanted, under, *how)


def test_rows(
    study: Study,
    images: ImageData,
    wanted: list[robustness.Subject],
    under: robustness.Protocol,
    order: Sequence[str] = (),
    wait: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of robustness.test by the run's address; what is not in the records is measured, with the teacher at hand.

    under: `Study.protocol`, which opens the teacher's images.
    """
    if not (under.corruptions or under.attacks):
        return {}
    places = {"folder": study.figures, "roots": study.roots, "order": order, "wait": wait}
    return robustness.test(wanted, images, under, **places, teacher_logits=partial(_teacher_logits, study, images))


def _tested(arm: str, config: TeacherConfig, run: Run, images: ImageData) -> robustness.Subject:
    weights = None
    if run.source == "run":
        training.ensure_sound(config, run)
        weights = models.checkpoint_digest(run.weights())
    return robustness.Subject(run.address, weights, partial(_on_device, config, run, images), {"arm": arm})


def _on_device(config: TeacherConfig, run: Run, images: ImageData) -> nn.Module:
    model = training.load_model(config, run, images.num_classes)
    return model.to(images.test.labels.device, memory_format=torch.channels_last)


def tests_table(study: Study, images: ImageData, students: Iterable[Student]) -> pd.DataFrame:
    """A row for each test of each student: its columns, then test, name, level, n, top1, loss, ece, confidence.

    A student of whose tests there is neither a record nor weights has no row; without corruptions and attacks, none has.
    """
    students = list(students)
    found = _test(study, images, students, study.protocol(images))
    tables = [pd.DataFrame(found[s.run.address]).assign(**s.columns) for s in students if s.run.address in found]
    columns = [*ARM, "seed", "test", "name", "level", *robustness.MEASURES]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def sources(study: Study, students: Iterable[Student]) -> str:
    """What a caption adds where some of a study's students are not there yet, were not trained here, or not in one arithmetic."""
    students = list(students)
    sources = [student.run.source for student in students]
    wanted, recorded = sum(len(study.students(seed)) for seed in study.seeds), sources.count("record")
    there = f"; {len(sources)} of the study's {wanted} students so far" if len(sources) < wanted else ""
    kinds = Counter(student.run.machine.get("precision") for student in students)
    computed = ", ".join(f"{count} in {kind}" for kind, count in kinds.items()) if len(kinds) > 1 else ""
    there += f"; computed {computed}" if computed else ""
    return there + (f"; {recorded} students from their records" if recorded else "")


def share_tested(students: Iterable[Student], tests: pd.DataFrame) -> str:
    """What a caption adds where not all of them have been tested: of these, how many stand in `tests`."""
    called, known = [(s.arm, s.config.seed) for s in students], set(zip(tests["arm"], tests["seed"], strict=True))
    there = sum(name in known for name in called)
    return f"; {there} of them tested" if there < len(called) else ""


def arms_table(study: Study) -> pd.DataFrame:
    """A row an arm, by its label: the options of its method, its view and its pruning that act; empty where it has none."""
    rows = {}
    for arm, config in study.arms.items():
        acting = {"method": config.method.options}
        acting |= {"view": config.view.options} if config.view.entry.drawn else {}
        acting |= {"pruning": config.pruning.options} if config.pruned else {}
        rows[arm] = {}
        for part, options in acting.items():
            rows[arm] |= {f"{part}.{name}" if name in rows[arm] else name: value for name, value in options.items()}
    return pd.DataFrame.from_dict(rows, orient="index").astype(object).replace({float("nan"): ""})


def results_table(students: Iterable[Student]) -> pd.DataFrame:
    """A row a run: arm, seed, the last and the best epoch's test accuracy in percent, which epoch was best, its source and precision.

    With validation images also chosen_top1, chosen_epoch and validation_top1, of the epoch that they chose, and
    last_validation_top1.
    """
    rows = []
    for student in students:
        result = student.run.result
        kept = {name: result[name] for name in runs.ACCURACIES if name in result}
        how = {"source": student.run.source, "precision": student.run.machine.get("precision")}
        rows.append(student.columns | kept | how)
    return pd.DataFrame(rows, columns=None if rows else [*ARM, "seed", *runs.ACCURACIES, "source", "precision"])


def curves_table(students: Iterable[Student]) -> pd.DataFrame:
    """A row for each epoch of each run after which test images were looked at: arm, seed, epoch, test_top1."""
    tables = [student.run.metrics[["epoch", "test_top1"]].assign(**student.columns) for student in students]
    return pd.concat(tables, ignore_index=True).dropna(subset="test_top1", ignore_index=True)


def pruning_gain(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """What the pruned teacher adds to last_top1: a row for each pair of arms that differ in nothing else, paired by seed."""
    dense = {
        replace(config, pruning=study.first.pruning): arm for arm, config in study.arms.items() if not config.pruned
    }
    rows = []
    for arm, config in study.arms.items():
        other = dense.get(replace(config, pruning=study.first.pruning))
        if config.pruned and other is not None:
            gain = stats.paired_difference(results, arm, other, "last_top1")
            rows.append(gain.assign(augmentation=config.view.name, method=config.method.label, arm=arm))
    columns = ["augmentation", "mean", "n", "half_width", "each", "method", "arm"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
