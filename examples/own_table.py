"""Train a classifier on a table of texts with labels, and count its answers by label."""

import csv
import itertools
import tempfile
from pathlib import Path

import numpy as np

import fastformer as ff

FRAMES = (
    "where is my {}; the {} is late; I want to pay for the {}; please cancel the {}; "
    "a {} was not there; is the {} here yet; the {} was too expensive; thank you for the {}"
)
THINGS = {
    "post": "parcel letter package postcard delivery stamp envelope".split(),
    "travel": "flight train ticket hotel taxi ferry bus".split(),
    "food": "pizza soup salad dinner coffee cake breakfast".split(),
}

with tempfile.TemporaryDirectory() as directory:
    table = Path(directory) / "table.csv"  # your own file has these two columns
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for frame, (label, things) in itertools.product(FRAMES.split("; "), THINGS.items()):
            writer.writerows([frame.format(thing), label] for thing in things)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))

labels = sorted({row["label"] for row in rows})
classes = np.array([labels.index(row["label"]) for row in rows])
tokenizer = ff.WordTokenizer.of([row["text"] for row in rows], vocab_size=1000)
inputs = ff.pack([tokenizer.encode(row["text"]) for row in rows])
order = np.random.default_rng(1).permutation(len(rows))
test, train = order[:40], order[40:]

model = ff.Transformer(
    ff.TransformerConfig(
        vocab_size=tokenizer.vocab_size, num_classes=len(labels), pooling="mean", norm="pre"
    ),
    seed=1,
)
unseen = inputs.select(test), classes[test]
ff.fit(model, (inputs.select(train), classes[train]), unseen, epochs=10, batch_size=8)

answers = model.forward(unseen[0]).argmax(axis=1)
print(f"{len(train)} texts to train on, {len(test)} unseen ones")
for number, label in enumerate(labels):
    asked = unseen[1] == number
    print(f"{label:7} {np.sum(answers[asked] == number)} of {asked.sum()} right")
text = "my coffee was late"
answer = model.forward(ff.pack([tokenizer.encode(text)])).argmax()
print(f"{text!r} is about {labels[answer]}")
