"""The networks of `coverage.py`: of each module of timm one that is among its smallest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Member:
    """One network.

    Attributes:
        name: of timm or torchvision.
        family: its module of timm, or torchvision.
        pixels: height and width of its images.
        options: of torchvision's builder.
    """

    name: str
    family: str
    pixels: int
    options: Mapping[str, Any] = field(default_factory=dict)


_TIMM: tuple[tuple[str, str, int], ...] = (
    ("beit", "beit_base_patch16_224", 224),
    ("byoanet", "halonet_h1", 256),
    ("byobnet", "gernet_s", 96),
    ("cait", "cait_xxs24_224", 224),
    ("coat", "coat_tiny", 224),
    ("convit", "convit_tiny", 224),
    ("convmixer", "convmixer_768_32", 96),
    ("convnext", "convnext_atto", 96),
    ("cpubone", "cpubone_nano", 96),
    ("crossvit", "crossvit_tiny_240", 240),
    ("csatv2", "csatv2", 96),
    ("cspnet", "cs3darknet_m", 96),
    ("cspnext", "cspnext_tiny", 96),
    ("davit", "davit_tiny", 96),
    ("deepseek_vit", "deepseek_vit_412m", 112),
    ("deit", "deit_tiny_patch16_224", 224),
    ("densenet", "densenet121", 96),
    ("dla", "dla46_c", 96),
    ("dpn", "dpn48b", 96),
    ("edgenext", "edgenext_xx_small", 96),
    ("efficientformer", "efficientformer_l1", 224),
    ("efficientformer_v2", "efficientformerv2_s0", 224),
    ("efficientnet", "tinynet_d", 96),
    ("efficientvim", "efficientvim_m1", 96),
    ("efficientvit_mit", "efficientvit_b0", 96),
    ("efficientvit_msra", "efficientvit_m0", 224),
    ("eva", "eva02_tiny_patch14_224", 224),
    ("fasternet", "fasternet_t0", 96),
    ("fastvit", "fastvit_t8", 96),
    ("focalnet", "focalnet_tiny_srf", 96),
    ("gcvit", "gcvit_xxtiny", 224),
    ("gemma4_vit", "gemma4_vit_167m_enc", 96),
    ("ghostnet", "ghostnet_050", 96),
    ("hardcorenas", "hardcorenas_b", 96),
    ("hgnet", "hgnetv2_b0", 96),
    ("hiera", "hiera_tiny_224", 224),
    ("hieradet_sam2", "sam2_hiera_tiny", 96),
    ("hrnet", "hrnet_w18_ssld", 96),
    ("iformer", "iformer_t", 96),
    ("inception_next", "inception_next_atto", 96),
    ("inception_resnet_v2", "inception_resnet_v2", 96),
    ("inception_v3", "inception_v3", 96),
    ("inception_v4", "inception_v4", 96),
    ("lcnetv2", "lcnetv2_small", 96),
    ("levit", "levit_128s", 224),
    ("lowformer", "lowformer_b0", 96),
    ("mambaout", "mambaout_femto", 96),
    ("maxxvit", "coatnet_0_224", 224),
    ("metaformer", "caformer_s18", 96),
    ("mlp_mixer", "gmlp_ti16_224", 224),
    ("mobilenetv3", "lcnet_035", 96),
    ("mobilenetv5", "mobilenetv5_base", 96),
    ("mobilevit", "mobilevit_xxs", 96),
    ("mvitv2", "mvitv2_tiny", 224),
    ("naflexvit", "naflexvit_base_patch16_gap", 96),
    ("nasnet", "nasnetalarge", 96),
    ("nest", "nest_tiny", 224),
    ("nextvit", "nextvit_small", 96),
    ("nfnet", "nfnet_f0", 96),
    ("pit", "pit_ti_224", 224),
    ("pnasnet", "pnasnet5large", 96),
    ("pvt_v2", "pvt_v2_b0", 96),
    ("qwen3_vit", "qwen3_vit_88m", 96),
    ("rdnet", "rdnet_tiny", 96),
    ("regnet", "regnetx_002", 96),
    ("repghost", "repghostnet_050", 96),
    ("repvit", "repvit_m1", 96),
    ("res2net", "res2next50", 96),
    ("resnest", "resnest14d", 96),
    ("resnet", "resnet10t", 96),
    ("resnetv2", "resnetv2_18", 96),
    ("rexnet", "rexnet_100", 96),
    ("selecsls", "selecsls42", 96),
    ("senet", "legacy_seresnet18", 96),
    ("sequencer", "sequencer2d_s", 224),
    ("shvit", "shvit_s1", 96),
    ("sknet", "skresnet18", 96),
    ("starnet", "starnet_s050", 96),
    ("swiftformer", "swiftformer_xs", 224),
    ("swin_transformer", "swin_tiny_patch4_window7_224", 224),
    ("swin_transformer_v2", "swinv2_tiny_window8_256", 256),
    ("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 224),
    ("tiny_vit", "tiny_vit_5m_224", 96),
    ("tnt", "tnt_s_legacy_patch16_224", 224),
    ("tresnet", "tresnet_m", 96),
    ("twins", "twins_svt_small", 224),
    ("vgg", "vgg11", 96),
    ("visformer", "visformer_tiny", 224),
    ("vision_transformer", "flexivit_small", 240),
    ("vision_transformer_hybrid", "vit_small_r26_s32_224", 224),
    ("vision_transformer_relpos", "vit_srelpos_small_patch16_224", 224),
    ("vision_transformer_sam", "samvit_base_patch16_224", 224),
    ("vitamin", "vitamin_small_224", 224),
    ("volo", "volo_d1_224", 224),
    ("vovnet", "ese_vovnet19b_slim", 96),
    ("xception", "xception", 96),
    ("xception_aligned", "xception41p", 96),
    ("xcit", "xcit_nano_12_p8_224", 224),
)
_TORCHVISION = (
    ("alexnet", 96),
    ("convnext_tiny", 96),
    ("densenet121", 96),
    ("efficientnet_b0", 96),
    ("efficientnet_v2_s", 96),
    ("googlenet", 96),
    ("inception_v3", 128),
    ("maxvit_t", 224),
    ("mnasnet0_5", 96),
    ("mobilenet_v2", 96),
    ("mobilenet_v3_small", 96),
    ("regnet_y_400mf", 96),
    ("resnet18", 96),
    ("resnext50_32x4d", 96),
    ("shufflenet_v2_x0_5", 96),
    ("squeezenet1_1", 96),
    ("swin_t", 96),
    ("swin_v2_t", 96),
    ("vgg11", 96),
    ("vgg11_bn", 96),
    ("vit_b_16", 224),
    ("wide_resnet50_2", 96),
)
_WHOLE = {"googlenet": {"aux_logits": False, "init_weights": False}}
_WHOLE |= {"inception_v3": _WHOLE["googlenet"]}

MEMBERS = (
    *(Member(name, family, pixels) for family, name, pixels in _TIMM),
    *(Member(name, "torchvision", pixels, _WHOLE.get(name, {})) for name, pixels in _TORCHVISION),
)
