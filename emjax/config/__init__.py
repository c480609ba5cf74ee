"""The configuration: typed, frozen sections with defaults, units and checks.

Users edit and override an ml_collections.ConfigDict; `parse` turns it into these sections once, at
the door. Below it nobody sees a ConfigDict.

    names        what a field may be
    fields       what a field is; missing things
    sections     parts that several kinds of experiments have
    experiments  each kind of experiment, and its own parts
    parse        ConfigDict to sections and back
"""

from emjax.config.experiments import (
    EXPERIMENTS,
    ArmConfig,
    ArmsConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    GridConfig,
    InteractConfig,
    InteractionConfig,
    LevelsConfig,
    MixtureConfig,
    PersonasConfig,
    PretrainConfig,
    RatingConfig,
    RoleConfig,
    RolesConfig,
    RoundsConfig,
    SafetyConfig,
    SelectConfig,
    SetConfig,
    ShapeConfig,
    SpeedConfig,
    TrainingConfig,
    VetoConfig,
    VetoScale,
    WorldsConfig,
    split_arm,
)
from emjax.config.fields import Option, Section, as_dict, missing, option, options, walk
from emjax.config.sections import (
    BenchmarkConfig,
    Budget,
    CheckpointConfig,
    ComputeConfig,
    Draw,
    EngineConfig,
    EvalConfig,
    JudgeConfig,
    KtoConfig,
    LoraConfig,
    MeshConfig,
    Rates,
    TrainConfig,
    Watch,
)

__all__ = [
    "EXPERIMENTS", "ArmConfig", "ArmsConfig", "BenchmarkConfig", "Budget", "CheckpointConfig", "ComputeConfig", "Draw",
    "EngineConfig", "EvalConfig", "EvaluationConfig", "Experiment", "FinetuneConfig", "GridConfig", "InteractConfig",
    "InteractionConfig", "JudgeConfig", "KtoConfig", "LevelsConfig", "LoraConfig", "MeshConfig", "MixtureConfig", "Option",
    "PersonasConfig", "PretrainConfig", "Rates", "RatingConfig", "RoleConfig", "RolesConfig", "RoundsConfig", "SafetyConfig",
    "Section", "SelectConfig", "SetConfig", "ShapeConfig", "SpeedConfig", "TrainConfig", "TrainingConfig", "VetoConfig",
    "VetoScale", "Watch", "WorldsConfig", "as_dict", "missing", "option", "options", "split_arm", "walk",
]  # fmt: skip
