"""Published weights from a file on this machine: every key is accounted for, or the file is refused.

The file here is made on the spot, in the layout of timm; a real one is the `model.safetensors` of the page that
`plait show vit_tiny_patch16_224` names, and `pretrained=True` fetches it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
out.mkdir(parents=True, exist_ok=True)
file = out / "model.safetensors"
published = plait.create_model("vit_tiny_patch16_224", seed=7).eval()
save_file(plait.save_weights(published, "timm"), file)

model = plait.create_model("vit_tiny_patch16_224", pretrained=file).eval()
pictures = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    print(f"the same logits within {(model(pictures) - published(pictures)).abs().max():.1e}")

for_three = plait.create_model("vit_tiny_patch16_224", pretrained=file, num_classes=3)  # its classifier starts anew
print("for three classes:", tuple(for_three.head.weight.shape))

save_file({k: v for k, v in load_file(file).items() if k != "norm.weight"}, out / "damaged.safetensors")
try:
    plait.create_model("vit_tiny_patch16_224", pretrained=out / "damaged.safetensors")
except ValueError as error:
    print("refused:", error)
