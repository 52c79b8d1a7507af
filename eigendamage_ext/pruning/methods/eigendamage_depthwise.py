"""EigenDamage with depthwise cores (Wang et al. 2019, arXiv 1905.05934)."""

from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import separable
from eigendamage_ext.pruning.methods.eigendamage import EigenDamage


class EigenDamageDepthwise(EigenDamage):
    """Directions are scored as by EigenDamage, and a k×k layer that loses any has a depthwise core.

    What a core loses by becoming depthwise is not predicted.
    """

    name = "eigendamage-depthwise"
    predicts = False

    def forms(self, spec: LayerSpec) -> tuple[str, ...]:
        """Depthwise where the kernel has several positions and all channels are one group."""
        return ("dense", "depthwise") if separable(spec) else super().forms(spec)
