"""How public implementations name the layers that `towers/encoder.py` builds: rules that several systems' layouts
share."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.core.weights import Drop, Join, Lift, Rename, Rule, Tied, Transpose, View


def conv_norm(theirs: str, ours: str, norm: str = "bn") -> list[Rule]:
    """timm's convolution with a batch norm, which it calls `norm`, to `parts.convs.ConvNorm`."""
    return [
        Rename(f"{theirs}.conv.weight", f"{ours}.conv.weight"),
        Rename(f"{theirs}.{norm}.{{p}}", f"{ours}.norm.{{p}}"),
    ]


def one_branches(theirs: str, ours: str) -> list[Rule]:
    """timm's MobileOneBlock to `parts.branches.Branches`, followed by a squeeze-and-excitation where it has one."""
    return [
        *conv_norm(f"{theirs}.conv_kxk.0", f"{ours}.convs.0"),
        *conv_norm(f"{theirs}.conv_scale", f"{ours}.convs.1"),
        Rename(f"{theirs}.identity.{{p}}", f"{ours}.skip.{{p}}"),
        Rename(f"{theirs}.se.fc1.{{p}}", f"{ours}.after.0.down.{{p}}"),
        Rename(f"{theirs}.se.fc2.{{p}}", f"{ours}.after.0.up.{{p}}"),
    ]


def timm_blocks(theirs: str = "blocks.{i}", ours: str = "stack.blocks.{i}") -> list[Rule]:
    """timm's ViT blocks, with or without layer scale, to ours."""
    return [
        Rename(f"{theirs}.norm1.{{p}}", f"{ours}.mix.norm.{{p}}"),
        Rename(f"{theirs}.attn.qkv.{{p}}", f"{ours}.mix.f.qkv.{{p}}"),
        Rename(f"{theirs}.attn.proj.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}.ls1.gamma", f"{ours}.mix.after.0.gamma"),
        Rename(f"{theirs}.norm2.{{p}}", f"{ours}.feed.norm.{{p}}"),
        Rename(f"{theirs}.mlp.fc1.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}.mlp.fc2.{{p}}", f"{ours}.feed.f.down.{{p}}"),
        Rename(f"{theirs}.ls2.gamma", f"{ours}.feed.after.0.gamma"),
    ]


def timm_vit(theirs: str = "", ours: str = "", patch_embed: str = "patch_embed.") -> list[Rule]:
    """timm's ViT from its patches to its classifier; `patch_embed` is where ours keeps what comes before the blocks."""
    return [
        Rename(f"{theirs}cls_token", f"{ours}{patch_embed}cls"),
        Rename(f"{theirs}pos_embed", f"{ours}{patch_embed}positions.table"),
        Rename(f"{theirs}patch_embed.proj.{{p}}", f"{ours}{patch_embed}stem.proj.{{p}}"),
        *timm_blocks(f"{theirs}blocks.{{i}}", f"{ours}stack.blocks.{{i}}"),
        Rename(f"{theirs}norm.{{p}}", f"{ours}norm.{{p}}"),
        Rename(f"{theirs}head.{{p}}", f"{ours}head.{{p}}"),
    ]


def bert_input(theirs: str, ours: str = "text_embedding", weight: str = "weight", bias: str = "bias") -> list[Rule]:
    """transformers' BertEmbeddings to ours; `weight` and `bias` as in `bert_layers`."""
    return [
        Rename(f"{theirs}.word_embeddings.weight", f"{ours}.words.table.weight"),
        Rename(f"{theirs}.token_type_embeddings.weight", f"{ours}.kinds.weight"),
        Rename(f"{theirs}.position_embeddings.weight", f"{ours}.positions.table"),
        Rename(f"{theirs}.LayerNorm.{weight}", f"{ours}.norm.weight"),
        Rename(f"{theirs}.LayerNorm.{bias}", f"{ours}.norm.bias"),
        Drop(f"{theirs}.position_ids"),
        Drop(f"{theirs}.token_type_ids"),
    ]


def bert_words(theirs: str, ours: str, weight: str = "weight", bias: str = "bias") -> list[Rule]:
    """transformers' BertPredictionHeadTransform to ours, all of the word head but its bias; `weight` and `bias` as in
    `bert_layers`."""
    return [
        Rename(f"{theirs}.dense.{{p}}", f"{ours}.dense.{{p}}"),
        Rename(f"{theirs}.LayerNorm.{weight}", f"{ours}.norm.weight"),
        Rename(f"{theirs}.LayerNorm.{bias}", f"{ours}.norm.bias"),
    ]


def bert_layers(
    theirs: str = "encoder.layer.{i}", ours: str = "stack.blocks.{i}", weight: str = "weight", bias: str = "bias"
) -> list[Rule]:
    """transformers' BertLayer to ours, with or without cross-attention; `weight` and `bias` are what its norms call
    theirs (gamma and beta in old files)."""
    norms = {
        f"{theirs}.attention.output.LayerNorm": f"{ours}.mix.norm",
        f"{theirs}.crossattention.output.LayerNorm": f"{ours}.cross.norm",
        f"{theirs}.output.LayerNorm": f"{ours}.feed.norm",
    }
    return [
        Join([f"{theirs}.attention.self.{n}.{{p}}" for n in ("query", "key", "value")], f"{ours}.mix.f.qkv.{{p}}"),
        Rename(f"{theirs}.attention.output.dense.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}.crossattention.self.query.{{p}}", f"{ours}.cross.f.q.{{p}}"),
        Join([f"{theirs}.crossattention.self.{n}.{{p}}" for n in ("key", "value")], f"{ours}.cross.f.kv.{{p}}"),
        Rename(f"{theirs}.crossattention.output.dense.{{p}}", f"{ours}.cross.f.out.{{p}}"),
        Rename(f"{theirs}.intermediate.dense.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}.output.dense.{{p}}", f"{ours}.feed.f.down.{{p}}"),
        *(Rename(f"{public}.{weight}", f"{own}.weight") for public, own in norms.items()),
        *(Rename(f"{public}.{bias}", f"{own}.bias") for public, own in norms.items()),
    ]


def roberta_words(name: str) -> list[Rule]:
    """The masked-word head of transformers' RobertaForMaskedLM, and of MPNet's, to ours; name: of the encoder there."""
    table = f"{name}.embeddings.word_embeddings.weight"
    return [
        Tied(["lm_head.decoder.weight", table], "text_embedding.words.table.weight"),
        Tied(["lm_head.decoder.bias", "lm_head.bias"], "mlm.bias"),
        Rename("lm_head.dense.{p}", "mlm.dense.{p}"),
        Rename("lm_head.layer_norm.{p}", "mlm.norm.{p}"),
    ]


def open_clip_blocks(theirs: str, ours: str) -> list[Rule]:
    """open_clip's residual attention blocks (and OpenAI's) to ours."""
    return [
        Rename(f"{theirs}.ln_1.{{p}}", f"{ours}.mix.norm.{{p}}"),
        Rename(f"{theirs}.attn.in_proj_weight", f"{ours}.mix.f.qkv.weight"),
        Rename(f"{theirs}.attn.in_proj_bias", f"{ours}.mix.f.qkv.bias"),
        Rename(f"{theirs}.attn.out_proj.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}.ln_2.{{p}}", f"{ours}.feed.norm.{{p}}"),
        Rename(f"{theirs}.mlp.c_fc.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}.mlp.c_proj.{{p}}", f"{ours}.feed.f.down.{{p}}"),
    ]


def clip_blocks(theirs: str, ours: str) -> list[Rule]:
    """transformers' CLIPEncoderLayer to ours."""
    return [
        Rename(f"{theirs}.layer_norm1.{{p}}", f"{ours}.mix.norm.{{p}}"),
        Join([f"{theirs}.self_attn.{n}_proj.{{p}}" for n in "qkv"], f"{ours}.mix.f.qkv.{{p}}"),
        Rename(f"{theirs}.self_attn.out_proj.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}.layer_norm2.{{p}}", f"{ours}.feed.norm.{{p}}"),
        Rename(f"{theirs}.mlp.fc1.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}.mlp.fc2.{{p}}", f"{ours}.feed.f.down.{{p}}"),
    ]


def clip_vision(theirs: str, ours: str, patch_embed: str = "patch_embed.") -> list[Rule]:
    """transformers' CLIPVisionTransformer to a ViT with one more norm before its layers (`systems.vision.vit_clip`)."""
    return [
        View(f"{theirs}embeddings.class_embedding", f"{ours}{patch_embed}cls", (1, 1, -1), (-1,)),
        Lift(f"{theirs}embeddings.position_embedding.weight", f"{ours}{patch_embed}positions.table"),
        Rename(f"{theirs}embeddings.patch_embedding.weight", f"{ours}{patch_embed}stem.proj.weight"),
        Rename(f"{theirs}pre_layrnorm.{{p}}", f"{ours}before.{{p}}"),
        *clip_blocks(f"{theirs}encoder.layers.{{i}}", f"{ours}stack.blocks.{{i}}"),
        Rename(f"{theirs}post_layernorm.{{p}}", f"{ours}norm.{{p}}"),
        Drop(f"{theirs}embeddings.position_ids"),
    ]


def open_clip_text(theirs: str, ours: str) -> list[Rule]:
    """open_clip's text tower to that of `systems.pairs.clip`."""
    return [
        Rename(f"{theirs}token_embedding.weight", f"{ours}.words.table.weight"),
        Rename(f"{theirs}positional_embedding", f"{ours}.positions.table"),
        *open_clip_blocks(f"{theirs}transformer.resblocks.{{i}}", f"{ours}.stack.blocks.{{i}}"),
        Rename(f"{theirs}ln_final.{{p}}", f"{ours}.norm.{{p}}"),
        Transpose(f"{theirs}text_projection", f"{ours}.project.weight"),
        Drop(f"{theirs}attn_mask"),
    ]


def detr_layer(theirs: str, ours: str) -> list[Rule]:
    """transformers' encoder layer of DETR, and of its decoder all but the look at the picture."""
    return [
        Join([f"{theirs}.self_attn.{n}_proj.{{p}}" for n in "qkv"], f"{ours}.mix.f.qkv.{{p}}"),
        Rename(f"{theirs}.self_attn.out_proj.{{p}}", f"{ours}.mix.f.out.{{p}}"),
        Rename(f"{theirs}.self_attn_layer_norm.{{p}}", f"{ours}.mix.norm.{{p}}"),
        Rename(f"{theirs}.fc1.{{p}}", f"{ours}.feed.f.up.{{p}}"),
        Rename(f"{theirs}.fc2.{{p}}", f"{ours}.feed.f.down.{{p}}"),
        Rename(f"{theirs}.final_layer_norm.{{p}}", f"{ours}.feed.norm.{{p}}"),
    ]


def detr_cross(theirs: str, ours: str) -> list[Rule]:
    """The look at the picture."""
    return [
        Rename(f"{theirs}.encoder_attn.q_proj.{{p}}", f"{ours}.cross.f.q.{{p}}"),
        Join([f"{theirs}.encoder_attn.{n}_proj.{{p}}" for n in "kv"], f"{ours}.cross.f.kv.{{p}}"),
        Rename(f"{theirs}.encoder_attn.out_proj.{{p}}", f"{ours}.cross.f.out.{{p}}"),
        Rename(f"{theirs}.encoder_attn_layer_norm.{{p}}", f"{ours}.cross.norm.{{p}}"),
    ]


def llama_layers(theirs: str = "model.layers.{i}", ours: str = "stack.blocks.{i}") -> list[Rule]:
    """transformers' LlamaDecoderLayer (and Mistral's, Qwen2's and Gemma's) to ours."""
    return [
        grouped_qkv(f"{theirs}.self_attn", f"{ours}.mix.f", ("bias", "weight")),
        grouped_qkv(f"{theirs}.self_attn", f"{ours}.mix.f", ("weight",)),
        Join([f"{theirs}.mlp.{n}_proj.weight" for n in ("gate", "up")], f"{ours}.feed.f.up.weight"),
        Rename(f"{theirs}.mlp.down_proj.weight", f"{ours}.feed.f.down.weight"),
        Rename(f"{theirs}.input_layernorm.weight", f"{ours}.mix.norm.weight"),
        Rename(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feed.norm.weight"),
        Drop(f"{theirs}.self_attn.rotary_emb.inv_freq"),
    ]


def grouped_qkv(theirs: str, ours: str, kinds: tuple[str, ...]) -> Rule:
    """Three projections to the fused one of `core.block.Attention` with grouped queries, and the last one with them,
    whose width says how many rows are of queries. kinds: "bias", where these have one, before "weight"."""
    public = [f"{theirs}.{n}_proj.{kind}" for kind in kinds for n in "qkv"]

    def to(tensors: list[Tensor]) -> list[Tensor]:
        *three, out = tensors
        return [*(torch.cat(three[i : i + 3]) for i in range(0, len(three), 3)), out]

    def back(tensors: list[Tensor]) -> list[Tensor]:
        *fused, out = tensors
        queries = out.shape[1]
        keys = (len(fused[0]) - queries) // 2
        return [part for whole in fused for part in whole.split([queries, keys, keys])] + [out]

    own = [f"{ours}.qkv.{kind}" for kind in kinds]
    return Rule((*public, f"{theirs}.o_proj.weight"), (*own, f"{ours}.out.weight"), to, back)
