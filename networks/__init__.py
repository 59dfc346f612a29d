"""The networks: torch modules, their checkpoints, and one entry that tells all there is of each.

    fan.py, dan.py, ran.py, deep_emotion.py    the modules, on resnet.py
    preprocessing.py, score_fusion.py          what comes before and behind all of them
    entries.py                                 one entry a network: parts, classes, recipe, trainer
    checkpoint.py, prior.py                    weights, and how common each emotion is

`export` makes graphs of what is here, `training` makes its weights.
"""
