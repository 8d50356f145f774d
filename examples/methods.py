"""A method changes any model and is taken off again without a trace; a run keeps the methods that it was fitted with.
On the command line:

    plait methods
    plait fit wine.csv --target target --system auto_tiny --method sinkformer:steps=5
"""

import torch

import plait

model = plait.create_model("vit_toy", num_classes=3).eval()
pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
plain = model(pictures)

undo = plait.apply_method(model, "sinkformer", steps=5)
print(f"sinkformer moves the logits by up to {(model(pictures) - plain).abs().max():.4f}")
undo()
assert torch.equal(model(pictures), plain)
print("taken off, they are as before; all methods:", ", ".join(plait.list_methods()))
