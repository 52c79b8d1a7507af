"""Every pruning method, one in each file: a score over units, and perhaps an update of what stays.

A method cuts directions of the eigenbasis (`directions`) or output filters (`filters`). To add one, write
its file and name it here.
"""

from eigendamage_ext.pruning.methods.c_obd import COBD
from eigendamage_ext.pruning.methods.c_obs import COBS
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.pruning.methods.eigendamage import EigenDamage
from eigendamage_ext.pruning.methods.eigendamage_depthwise import EigenDamageDepthwise
from eigendamage_ext.pruning.methods.filters import FilterMethod
from eigendamage_ext.pruning.methods.kron_obd import KronOBD
from eigendamage_ext.pruning.methods.kron_obs import KronOBS
from eigendamage_ext.pruning.methods.l1 import L1
from eigendamage_ext.pruning.methods.nn_slimming import NNSlimming
from eigendamage_ext.pruning.methods.random import Random
from eigendamage_ext.pruning.methods.taylor import Taylor

METHODS: dict[str, DirectionMethod | FilterMethod] = {
    method.name: method
    for method in (
        EigenDamage(),
        EigenDamageDepthwise(),
        COBD(),
        COBS(),
        KronOBD(),
        KronOBS(),
        NNSlimming(),
        L1(),
        Taylor(),
        Random(),
    )
}
