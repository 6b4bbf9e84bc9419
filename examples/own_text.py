"""Train a small decoder on a text of your own, and let it write."""

import random

import fastformer as ff

random.seed(1)
ANIMALS = "cat dog bird mouse horse cow".split()
VERBS = "sleeps eats sings runs drinks jumps".split()
PLACES = "in the house; on the hill; by the river; under the tree".split("; ")
TEXT = "".join(  # in its place, open("my-text.txt").read()
    f"the {random.choice(ANIMALS)} {random.choice(VERBS)} {random.choice(PLACES)}.\n"
    for _ in range(600)
)
LENGTH = 64

tokenizer = ff.CharacterTokenizer.of([TEXT])
ids = tokenizer.encode(TEXT)
cut = len(ids) * 9 // 10
train, unseen = ff.pack_text(ids[:cut], LENGTH), ff.pack_text(ids[cut:], LENGTH)

config = ff.DecoderConfig(
    vocab_size=tokenizer.vocab_size, embed_dim=48, ffn_dim=96, max_seq_len=LENGTH
)
model = ff.TransformerDecoder(config, seed=1)
history = ff.fit(model, train, unseen, epochs=10, batch_size=8, learning_rate=5e-3)
for record in history[::3]:
    print(f"epoch {record['epoch']:2}: validation loss {record['validation_loss']:.3f} a character")

start = "the cow"
prompt = tokenizer.encode(start)
for found in ff.generate(
    model, [prompt], max_new_tokens=60, temperature=0.5, num_samples=2, seed=1
):
    print(f"{start!r} goes on: {tokenizer.decode(found.tokens)!r}")
