"""The training of each method: what its authors published, scaled to the steps there are, and our own."""

from __future__ import annotations

from pyquant.learn.schedule import Adam, Cosine, Sgd, Stage, Staircase, TrainingRecipe

# One stage for all parameters. Steps are few, so squared gradients are forgotten sooner than usual; at first, on few
# gradients, Adam is at its worst, so the learning rate rises.
OURS = TrainingRecipe(
    stages=(
        Stage(
            optimizer=Adam(betas=(0.9, 0.99)),
            schedule=Cosine(rise=0.1),
            rates=(0.001, 0.002, 0.005),
            usual=0.002,
            relative=True,
        ),
    ),
    mixed=True,
)

# "And the Bit Goes Down" (Stock et al., ICLR 2020): SGD, for 2,500 steps on the centroids of each layer once coded,
# then for 90,000 on everything, the learning rate divided by ten after each third. Published rates: 0.05 and 0.01.
ABGD = TrainingRecipe(
    each_layer=Stage(
        optimizer=Sgd(momentum=0.9, weight_decay=1e-4),
        schedule=Staircase(),
        rates=(0.005, 0.015, 0.05, 0.15),
        usual=0.05,
        mean_gradient=True,
        share=2500,
        trial_share=1.0,  # tried at the first layer alone, where the whole is short
    ),
    stages=(
        Stage(
            optimizer=Sgd(momentum=0.9, weight_decay=1e-4),
            schedule=Staircase(drops=2),
            rates=(0.001, 0.003, 0.01, 0.03),
            usual=0.01,
            mean_gradient=True,
            share=90000,
        ),
    ),
)

# "Permute, Quantize, and Fine-tune" (Martinez et al., CVPR 2021): Adam on everything, from 1e-3 to 1e-6 along a cosine.
PQF = TrainingRecipe(
    stages=(Stage(optimizer=Adam(), schedule=Cosine(end=1e-3), rates=(3e-5, 1e-4, 3e-4, 1e-3), usual=1e-3),),
)
