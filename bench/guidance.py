"""What guidance does to a conditional model: the class accuracy of its samples, and their distance from the data.

    python bench/guidance.py RUN [--scales 1,1.25,1.5,2,3,4] [--steps 1,2] [--num 2000] [--picture FILE.png]

The accuracy is the share of samples that a support vector machine, trained on the pixels of one half of the run's data,
gives the class that was asked for; the first line of the output is its accuracy on the other half. The distance,
precision and recall, of pixels, are those of `ict eval RUN --metrics pixel-fd,pr` for the same samples. The picture has
a row for each scale, from the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from ict_backends import load
from ict_backends.data.dataset import Dataset, load_data_of
from ict_backends.python.model import TrainedModel
from ict_backends.reports.figures import plot_rows


def flat(images: np.ndarray) -> np.ndarray:
    """The pixels of images [n, ...] uint8 as features, [n, d] in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def fit_classifier(dataset: Dataset) -> tuple[SVC, float]:
    """A classifier of one half of the images, drawn at random, and its accuracy on the other half."""
    images, labels = flat(dataset.images.transpose(0, 2, 3, 1)), np.asarray(dataset.labels)
    order = np.random.default_rng(0).permutation(len(images))
    seen, held_out = np.array_split(order, 2)
    classifier = SVC().fit(images[seen], labels[seen])
    return classifier, float(classifier.score(images[held_out], labels[held_out]))


def measure(model: TrainedModel, classifier: SVC, num: int, steps: int, scale: float) -> str:
    """A line of the table."""
    asked = np.arange(num) % model.config.network.num_classes
    drawn = model.sample(num, labels="balanced", steps=steps, guidance=scale)
    accuracy = classifier.score(flat(drawn), asked)
    metrics = ["pixel-fd", "pr"]
    figures = model.evaluate(metrics=metrics, num=num, steps=steps, guidance=scale, labels="balanced", halves=False)
    values = (figures[name] for name in ("pixel-fd", "precision", "recall"))
    return f"| {steps} | {scale:g} | {accuracy:.1%} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def rows(model: TrainedModel, scales: Sequence[float], steps: int) -> dict[str, np.ndarray]:
    """Two samples of each of at most ten classes, for each scale."""
    classes = min(10, model.config.network.num_classes)
    labels = np.repeat(np.arange(classes), 2)
    return {f"{scale:g}": model.sample(len(labels), labels=labels, steps=steps, guidance=scale) for scale in scales}


def numbers(text: str) -> list[float]:
    """Numbers with commas between them."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Print the table, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scales", type=numbers, default=[1, 1.25, 1.5, 2, 3, 4])
    parser.add_argument("--steps", type=numbers, default=[1, 2])
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--backend", default="torch")
    given = parser.parse_args()
    model = load(given.run, backend=given.backend)
    classifier, accuracy = fit_classifier(load_data_of(model.config.data))
    print(f"classifier on real images that it has not seen: {accuracy:.1%}\n")
    print("| steps | guidance | class accuracy | pixel-fd | precision | recall |\n" + "|---|" + "---|" * 5)
    for steps in given.steps:
        for scale in given.scales:
            print(measure(model, classifier, given.num, int(steps), scale), flush=True)
    if given.picture is not None:
        plot_rows(rows(model, given.scales, int(given.steps[0])), given.picture)


if __name__ == "__main__":
    main()
