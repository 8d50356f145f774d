"""Peers that import torchvision must load beside a torch that lacks its compiled operators: declare those, then
import."""

from __future__ import annotations

import torch

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_BACK = (
    "Tensor grad, Tensor rois, {extra}float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "{more}SymInt batch_size, SymInt channels, SymInt height, SymInt width"
)
_DEFORM = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
SCHEMAS = [
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"ps_roi_align({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_roi_align_backward({_BACK.format(extra='', more='')}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward({_BACK.format(extra='Tensor argmax, ', more='')}) -> Tensor",
    f"_ps_roi_align_backward({_BACK.format(extra='Tensor channel_mapping, ', more='int sampling_ratio, ')}) -> Tensor",
    f"_ps_roi_pool_backward({_BACK.format(extra='Tensor channel_mapping, ', more='')}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {_DEFORM}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    f"{_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
]
_library = None


def declare_torchvision() -> None:
    """Make `import torchvision` work where its C++ extension does not load; does nothing where it is whole."""
    global _library
    if _library is not None:
        return
    try:
        import torchvision  # noqa: F401

        return
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
    import sys

    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)
