"""C-OBS: Optimal Brain Surgeon on the weights of a filter (Wang et al. 2019, arXiv 1905.05934)."""

from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, Options
from eigendamage_ext.pruning.methods.kron_obs import KronOBS
from eigendamage_ext.pruning.methods.kronecker import damped, kronecker_block
from eigendamage_ext.pruning.methods.weights import kronecker_obs


class COBS(KronOBS):
    """The score of a filter is Σ_j w_ij² / ([G⁻¹]_ii [A⁻¹]_jj), A and G damped.

    Each weight as if it alone went and all others, those of its filter too, made up for it. When whole
    filters go, only others can: update and predicted loss are those of Kron-OBS. The authors' implementation
    instead adds up the updates of single weights. With `reference_compat` damping is theirs, see `damped`.
    """

    name = "c-obs"

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """See the class; ``(c_out,)``."""
        weight, A, G = kronecker_block(layer)
        A, G = (damped(factor, layer, options) for factor in (A, G))
        return kronecker_obs(weight, A, G).sum(-1).flatten()
