"""Pictures of the loss around checkpoints: on the plane through three, along the line between two.

The plane is that of Garipov et al. 2018 and Izmailov et al. 2018: distances in the picture are
Euclidean distances between weights. Values are kept in a csv as they are found, so that an
interrupted run goes on from there.
"""
