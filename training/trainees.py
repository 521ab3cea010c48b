"""The networks and the objective of a phase as one module, by the kind of its model."""

from __future__ import annotations

from anycharv_core.checkpoints.dit_networks import DiTNetworks
from training.anywhere_trainee import AnywhereTrainee
from training.config import Config
from training.networks import Nets
from training.trainee import Trainee, choose_trained, copied


def new_trainee(config: Config, name: str, nets: Nets) -> Trainee:
    """The phase of that name, ready to be trained; raises UserError as `choose_trained` does."""
    phase = config.phases[name]
    if isinstance(nets, DiTNetworks):
        choose_trained(nets, phase)
        return AnywhereTrainee(nets, config, name)
    lesson = phase.distil if phase.task == "distil" else None
    copies = copied(nets, phase) if lesson is not None else None
    choose_trained(nets, phase)
    return Trainee(
        nets, phase.objective, phase.motion, config.seed, name, config.schedule, lesson=lesson, copies=copies
    )
