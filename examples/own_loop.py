"""Train with a loop of your own: pack, forward, loss, backward, and an optimizer's step."""

import numpy as np

import fastformer as ff

random = np.random.default_rng(1)


def draw(count):
    """Return lists of numbers of several lengths, and the largest number of each."""
    rows = [random.integers(0, 10, random.integers(2, 7)).tolist() for _ in range(count)]
    return ff.pack(rows), np.array([max(row) for row in rows])


config = ff.TransformerConfig(vocab_size=10, embed_dim=32, ffn_dim=64, pooling="mean", norm="pre")
model = ff.Transformer(config, seed=1)
loss_fn = ff.CrossEntropyLoss()
optimizer = ff.AdamW(model.parameters(), lr=3e-3)
unseen, answers = draw(500)

print("step  loss   right on unseen lists")
for step in range(1, 201):
    batch, targets = draw(32)
    logits = model.forward(batch)  # (32, 10): a row for each list, a number for each answer
    loss = loss_fn.forward(logits, targets)
    model.zero_grad()  # backward adds to gradients
    model.backward(loss_fn.backward())
    ff.clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    if step % 40 == 0:
        accuracy = np.mean(model.forward(unseen).argmax(axis=1) == answers)
        print(f"{step:4}  {loss:.3f}  {accuracy:.1%}")

question = [3, 8, 5, 2]
print(f"the largest of {question} is {model.forward(ff.pack([question])).argmax()}")
